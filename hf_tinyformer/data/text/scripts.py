"""Which scripts a text is written in, by Unicode's own table (property Script, UAX #24)."""

import functools
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

SCRIPTS = (
    *("Latin", "Hangul", "Han", "Hiragana", "Katakana", "Cyrillic", "Greek", "Arabic", "Hebrew"),
    *("Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Tamil", "Telugu", "Kannada", "Malayalam"),
    *("Sinhala", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Mongolian", "Georgian"),
    *("Armenian", "Ethiopic"),
)
"""Scripts told apart; any other counts as `other`."""

COMMON, OTHER = "common", "other"
"""`common`: what belongs to no one script, such as digits, spaces, signs, emoji, and accents that
are characters of their own."""

NAMES = (OTHER, *SCRIPTS, COMMON)


@functools.cache
def _script_numbers() -> NDArray[np.uint8]:
    """Give each code point the place of its script in `NAMES`, `(0x110000,)`; made in 0.3 s."""
    import regex  # transformers needs it too, so it is there

    below = "".join(map(chr, range(0xD800)))
    above = "".join(map(chr, range(0xE000, 0x110000)))  # surrogates are no text
    numbers = np.zeros(0x110000, dtype=np.uint8)
    for script in (*SCRIPTS, "Common", "Inherited"):
        number = NAMES.index(script) if script in NAMES else NAMES.index(COMMON)
        for first, characters in ((0, below), (0xE000, above)):
            for run in regex.finditer(rf"\p{{Script={script}}}+", characters):
                numbers[first + run.start() : first + run.end()] = number
    return numbers


def count_scripts(texts: Iterable[str]) -> NDArray[np.int64]:
    """Count characters by script.

    Args:
        texts: Text without lone surrogates. Several megabytes at once go fastest.

    Returns:
        Characters of each of `NAMES`, `(len(NAMES),)`.
    """
    points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
    return np.bincount(_script_numbers()[points], minlength=len(NAMES))


def name_shares(counts: NDArray[np.int64]) -> Mapping[str, float]:
    """Turn counts into shares of all characters, the largest first, those without any left out."""
    total = max(1, int(counts.sum()))
    order = sorted(range(len(NAMES)), key=lambda index: (-counts[index], index))
    return {NAMES[index]: int(counts[index]) / total for index in order if counts[index]}
