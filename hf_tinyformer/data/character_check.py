"""Are two libraries of one mind about every character of a corpus?

Which characters are letters, digits or white space changes from one version of Unicode to the next,
and libraries carry tables of different versions. So each character is put to both libraries when it
is first seen, in the surroundings in which its class decides where a text is cut. Texts with a
character on which they differ are left to the library that defines what is right.
"""

import re
from collections.abc import Callable, Iterable, Sequence

_ASCII = frozenset(map(chr, range(128)))


def _surround(character: str) -> str:
    """Put a character where its being a letter, digit, sign or space shows."""
    c = character
    return f"ab{c}ab {c}ab  {c} 1{c}234 !{c}!\n{c}  {c}{c}\n '{c} {c}\n\n  x{c}  1{c}\t{c}a"


def _one_of(characters: Iterable[str], *, but: bool = False) -> re.Pattern[str]:
    """Make a pattern of one character out of these, or of any other; `re` looks it up in a table.

    Arrays would do as well, but they let go of the interpreter at every step, and getting it back
    from the thread that reads takes longer than the step.
    """
    spelled = "".join(f"\\U{ord(character):08x}" for character in sorted(characters))
    return re.compile(f"[{'^' if but else ''}{spelled}]")


class CharacterCheck:
    """Finds the texts that hold a character on which two libraries differ."""

    def __init__(self, agree: Callable[[list[str]], Sequence[bool]]) -> None:
        """Begin with the first 128 characters.

        Args:
            agree: Tells for each of some texts whether both libraries treat it alike.
        """
        self._agree = agree
        self._known: set[str] = set()
        self._strange: set[str] = set()
        self._num_in_pattern = 0
        self._learn(_ASCII)

    def _learn(self, new: Iterable[str]) -> None:
        suspects = sorted(new)
        self._known.update(suspects)
        # Many in one text first: few texts hold one that differs, and each text has its price.
        for together in (64, 1):
            groups = [suspects[at : at + together] for at in range(0, len(suspects), together)]
            texts = ["\n".join(map(_surround, group)) for group in groups]
            verdicts = self._agree(texts) if texts else []
            suspects = [
                character
                for group, same in zip(groups, verdicts, strict=True)
                if not same
                for character in group
            ]
        self._strange.update(suspects)
        # A pattern of thousands of characters takes a while to make, so it may lag a little behind.
        if len(self._known) > 1.25 * self._num_in_pattern:
            self._may_be_new = _one_of(self._known, but=True)
            self._num_in_pattern = len(self._known)

    def find_strange(self, texts: Sequence[str]) -> list[int]:
        """Return the places of the texts that only the defining library may treat.

        Args:
            texts: Without lone surrogates.
        """
        # isascii() reads a flag.
        wide = [text for text in texts if not text.isascii()]
        found = {character for text in wide for character in self._may_be_new.findall(text)}
        if new := found - self._known:
            self._learn(new)
        if not self._strange:
            return []
        is_strange = _one_of(self._strange)
        return [index for index, text in enumerate(texts) if is_strange.search(text)]
