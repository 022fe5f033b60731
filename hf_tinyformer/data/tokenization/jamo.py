"""Korean syllables and the letters (jamo) they are written with.

A syllable such as 는 is one character, U+B290; its jamo ㄴ, ㅡ and ㄴ are the characters U+1102,
U+1173 and U+11AB, which every program draws as one syllable again. Both spellings are canonically
equivalent (The Unicode Standard, section 3.12). Only syllables are touched here: other scripts'
letters keep the form they have.
"""

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FIRST, _LAST = 0xAC00, 0xD7A3
_NUM_VOWELS, _NUM_FINALS = 21, 28  # the first of the finals is none

# Unicode orders syllables by initial, then vowel, then final.
INITIALS = [chr(0x1100 + index) for index in range(19)]
VOWELS = [chr(0x1161 + index) for index in range(_NUM_VOWELS)]
FINALS = [chr(0x11A7 + index) for index in range(1, _NUM_FINALS)]

# The same letters as they stand alone, in the order of the three lists above.
_ALONE = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ" + "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_ALONE += "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
_STANDING_ALONE = str.maketrans("".join(INITIALS + VOWELS + FINALS), _ALONE)

_SYLLABLES = {code: unicodedata.normalize("NFD", chr(code)) for code in range(_FIRST, _LAST + 1)}


def decompose_syllables(text: str) -> str:
    """Spell every Korean syllable by its jamo; the rest of the text stays as it is."""
    return text if text.isascii() else text.translate(_SYLLABLES)


def spell_alone(text: str) -> str:
    """Make jamo readable: whole syllables are composed, and lone jamo become letters.

    A lone final (U+11AB) has no shape of its own on most screens; the letter ㄴ has one.
    """
    composed = re.sub("[\u1100-\u11ff]+", lambda run: unicodedata.normalize("NFC", run[0]), text)
    return composed.translate(_STANDING_ALONE)


def _range(first: int, count: int) -> str:
    return f"{chr(_FIRST + first)}-{chr(_FIRST + first + count - 1)}"


def _rules() -> list[tuple[str, str]]:
    """List 67 replacements, one a jamo, that do in `tokenizers` what `decompose_syllables` does.

    Unicode's own decomposition (NFD) would be one rule, but takes all accented letters apart too.
    A syllable has its final put behind it, then its vowel before that; then it becomes its initial.
    """
    rules = []
    for index, final in enumerate(FINALS, start=1):
        places = range(index, _LAST - _FIRST + 1, _NUM_FINALS)
        rules.append((f"(?<=[{''.join(chr(_FIRST + place) for place in places)}])", final))
    an_initial = _NUM_VOWELS * _NUM_FINALS
    for index, vowel in enumerate(VOWELS):
        starts = range(index * _NUM_FINALS, _LAST - _FIRST + 1, an_initial)
        rules.append((f"(?<=[{''.join(_range(start, _NUM_FINALS) for start in starts)}])", vowel))
    for index, initial in enumerate(INITIALS):
        rules.append((f"[{_range(index * an_initial, an_initial)}]", initial))
    return rules


def build_normalizer() -> Any:
    """Build the normalizer of `tokenizers` that spells syllables by their jamo."""
    from tokenizers import Regex, normalizers

    return normalizers.Sequence(
        [normalizers.Replace(Regex(pattern), content) for pattern, content in _rules()]
    )


def has_jamo_normalizer(backend: "Tokenizer") -> bool:
    """Tell whether a tokenizer's normalizer is the one that `build_normalizer` builds."""
    normalizer = backend.normalizer
    if normalizer is None or type(normalizer).__name__ != "Sequence":
        return False
    found = json.loads(normalizer.__getstate__()).get("normalizers", [])
    return [
        (rule.get("pattern", {}).get("Regex"), rule.get("content")) for rule in found
    ] == _rules()
