"""Are two libraries of one mind about every character of a corpus?

Which characters are letters, digits or white space changes from one version of Unicode to the next,
and libraries carry tables of different versions. So each character is put to both libraries when it
is first seen, in the surroundings in which its class decides where a text is cut; only letters
without case that have been such since Unicode 3.2 (2002), most of them Hangul and Han, are the same
in every table. Texts with a character on which they differ are left to the library that defines
what is right.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_NEW, _SAME, _STRANGE = range(3)

_BLOCK = 1 << 16
"""Characters looked up together: what is made for them stays in the processor's cache."""


def _blocks(text: str) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield where each block of a text begins, and the numbers of its characters."""
    for begin in range(0, len(text), _BLOCK):
        raw = text[begin : begin + _BLOCK].encode("utf-32-le")
        yield begin, np.frombuffer(raw, dtype="<u4")


def _surround(character: str) -> str:
    """Put a character where its being a letter, digit, sign or space shows."""
    c = character
    return f"ab{c}ab {c}ab  {c} 1{c}234 !{c}!\n{c}  {c}{c}\n '{c} {c}\n\n  x{c}  1{c}\t{c}a"


def _is_settled(code: int) -> bool:
    character = chr(code)
    then = unicodedata.ucd_3_2_0.category(character)
    return then == "Lo" == unicodedata.category(character)


class CharacterCheck:
    """Finds the texts that hold a character on which two libraries differ."""

    def __init__(self, agree: Callable[[list[str]], Sequence[bool]]) -> None:
        """Begin with the first 128 characters.

        Args:
            agree: Tells for each of some texts whether both libraries treat it alike.
        """
        self._agree = agree
        self._verdicts = np.full(0x110000, _NEW, dtype=np.uint8)
        self._learn(range(128))
        self._is_ascii_same = _STRANGE not in self._verdicts[:128]

    def _learn(self, codes: Iterable[int]) -> None:
        new = list(codes)
        self._verdicts[new] = _SAME
        suspects = [code for code in new if not _is_settled(code)]
        # Many in one text first: few texts hold one that differs, and each text has its price.
        for together in (64, 1):
            groups = [suspects[at : at + together] for at in range(0, len(suspects), together)]
            texts = ["\n".join(_surround(chr(code)) for code in group) for group in groups]
            verdicts = self._agree(texts) if texts else []
            suspects = [
                code
                for group, same in zip(groups, verdicts, strict=True)
                if not same
                for code in group
            ]
        self._verdicts[suspects] = _STRANGE
        self._has_strange = _STRANGE in self._verdicts

    def find_strange(self, texts: Sequence[str]) -> list[int]:
        """Return the places of the texts that only the defining library may treat.

        Args:
            texts: Without lone surrogates.
        """
        # isascii() reads a flag.
        wide = [at for at, text in enumerate(texts) if not (self._is_ascii_same and text.isascii())]
        joined = "".join(texts[at] for at in wide)
        new: set[int] = set()
        for _, codes in _blocks(joined):
            verdicts = self._verdicts[codes]
            if not verdicts.all():
                new.update(codes[verdicts == _NEW].tolist())
        if new:
            self._learn(sorted(new))
        if not self._has_strange:
            return []
        ends = np.cumsum([len(texts[at]) for at in wide])
        found: set[int] = set()
        for begin, codes in _blocks(joined):
            positions = begin + np.flatnonzero(self._verdicts[codes] == _STRANGE)
            found.update(np.searchsorted(ends, positions, side="right").tolist())
        return sorted(wide[at] for at in found)
