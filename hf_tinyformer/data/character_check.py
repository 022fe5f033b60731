"""Are two libraries of one mind about every character of a corpus?

Which characters are letters, digits or white space changes from one version of Unicode to the next,
and libraries carry tables of different versions. So each character is put to both libraries when it
is first seen, in the surroundings in which its class decides where a text is cut. Texts with a
character on which they differ are left to the library that defines what is right.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_NUM_CODE_POINTS = 0x110000


def _surround(character: str) -> str:
    """Put a character where its being a letter, digit, sign or space shows."""
    c = character
    return f"ab{c}ab {c}ab  {c} 1{c}234 !{c}!\n{c}  {c}{c}\n '{c} {c}\n\n  x{c}  1{c}\t{c}a"


class CharacterCheck:
    """Finds the texts that hold a character on which two libraries differ."""

    def __init__(self, agree: Callable[[list[str]], Sequence[bool]]) -> None:
        """Begin with no character known.

        Args:
            agree: Tells for each of some texts whether both libraries treat it alike.
        """
        self._agree = agree
        self._seen = np.zeros(_NUM_CODE_POINTS, dtype=bool)
        self._strange: set[str] = set()
        self._learn(np.arange(128))

    def _learn(self, codes: NDArray[np.integer]) -> None:
        self._seen[codes] = True
        characters = [chr(code) for code in codes.tolist()]
        verdicts = self._agree([_surround(character) for character in characters])
        self._strange |= {
            character for character, same in zip(characters, verdicts, strict=True) if not same
        }

    def find_strange(self, texts: Sequence[str]) -> list[int]:
        """Return the places of the texts that only the defining library may treat.

        Args:
            texts: Without lone surrogates.
        """
        # isascii() reads a flag; the first 128 characters are known from the beginning.
        wide = [index for index, text in enumerate(texts) if not text.isascii()]
        if wide:
            raw = "".join([texts[index] for index in wide]).encode("utf-32-le")
            codes = np.frombuffer(raw, dtype="<u4")
            unknown = ~self._seen[codes]
            if unknown.any():
                self._learn(np.unique(codes[unknown]))
        if not self._strange:
            return []
        return [index for index in range(len(texts)) if not self._strange.isdisjoint(texts[index])]
