"""Byte-level BPE learned fast, with exactly the merges of `tokenizers`.

Two things take its time. Cutting the text into words is done by RE2 (through pyarrow) with a
pattern that is equal to the tokenizer's own; texts with a character on which the two regex engines
differ are cut by `tokenizers`. Choosing the merges from the counted words is done by `gigabpe`,
which breaks ties as `tokenizers` does. Where the pattern is another, or a library is missing,
`tokenizers` does it all.

Counts have 64 bits here. Inside the trainers those of pairs may have 32, which the cap on the
training text (`choose_texts`) keeps from overflowing.
"""

import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.data.tokenization.character_check import CharacterCheck

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

MIN_FREQUENCY = 2
"""What was seen once is a memory of one text, not a unit."""

_CHARACTERS_AT_ONCE = 4 << 20
_THREADS = 2
_REPEATS_AT_ONCE = 1 << 12

_MARK = "\ufdd0"
"""A code point that is no character. Texts that hold it all the same are cut by `tokenizers`."""

_SPACE = r"\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
_SPACE_NO_LINE_END = _SPACE.replace(r"\t-\r", r"\t\x{0B}\x{0C}")
_LOOK_AHEAD = r"\s+(?!\S)"
_BLANK_LINES = r"\s*[\r\n]+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel cuts by when it is not told otherwise."""

_NOT = rf"[^\x{{FDD0}}{_SPACE}\pL\pN]"
_PIECES = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    **{piece: piece for piece in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")},
    r"[^\r\n\p{L}\p{N}]?\p{L}+": r"[^\x{FDD0}\r\n\pL\pN]?\pL+",
    r" ?\p{L}+": r" ?\pL+",
    r" ?\p{N}+": r" ?\pN+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*": rf" ?{_NOT}+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+": rf" ?{_NOT}+",
    _BLANK_LINES: rf"[{_SPACE}]*[\r\n]+",
    _LOOK_AHEAD: "",  # RE2 cannot look ahead: a mark is put into the text beforehand
    r"\s+": rf"[{_SPACE}]+",
    r"\s": rf"[{_SPACE}]",
}
"""Pieces of patterns, joined by |, in the spelling of `tokenizers` and in RE2's."""


def _translate(pattern: str) -> list[str] | None:
    """Split a pattern into pieces and spell each for RE2; None if one is unknown."""
    found, rest = [], pattern
    while rest:
        digits = re.match(r"\\p\{N\}(\{1,\d+\})?(?=\||$)", rest)
        piece = digits[0] if digits else ""
        for known in _PIECES:
            if len(known) > len(piece) and rest.startswith(known):
                after = rest[len(known) :]
                piece = known if not after or after[0] == "|" else piece
        if not piece:
            return None
        found.append(rf"\pN{digits[1] or ''}" if digits else _PIECES[piece])
        rest = rest[len(piece) + 1 :]
    return found


def _pattern_of(backend: "Tokenizer") -> str | None:
    """Return the pattern that a byte-level tokenizer cuts by; None if it cuts in another way."""
    rules = json.loads(backend.to_str())
    cutter = rules["pre_tokenizer"]
    if rules["normalizer"] is not None or cutter is None:
        return None
    steps = cutter["pretokenizers"] if cutter["type"] == "Sequence" else [cutter]
    *splits, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        return None if splits else _GPT2
    if len(splits) != 1 or splits[0]["type"] != "Split":
        return None
    (split,) = splits
    pattern: str | None = split["pattern"].get("Regex")
    return pattern if split["behavior"] == "Isolated" and not split["invert"] else None


class _Cutter:
    """Cuts texts into words where no merge may cross, and counts them."""

    def __init__(self, backend: "Tokenizer", pattern: str, pieces: list[str]) -> None:
        self._backend = backend
        self._pattern = "|".join(piece for piece in pieces if piece)
        last = _SPACE_NO_LINE_END if _BLANK_LINES in pattern else _SPACE
        looks_ahead = _LOOK_AHEAD in pattern
        self._mark_before = rf"([{_SPACE}])([{last}])([^{_SPACE}])" if looks_ahead else None
        self._check = CharacterCheck(self._agree)

    def cut_slowly(self, text: str) -> list[str]:
        """Cut as `tokenizers` does, which is right by definition."""
        pieces = self._backend.pre_tokenizer.pre_tokenize_str(text)
        return [text[start:stop] for _, (start, stop) in pieces]

    def cut_fast(self, texts: "Sequence[str] | pa.Array") -> "pa.ListArray":
        """Cut by RE2. There may be empty words."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = pa.array(texts, type=pa.large_string())
        if self._mark_before is not None:
            column = pc.replace_substring_regex(
                column, pattern=self._mark_before, replacement=rf"\1{_MARK}\2\3"
            )
        column = pc.replace_substring_regex(
            column, pattern=self._pattern, replacement=rf"\0{_MARK}"
        )
        return pc.split_pattern(column, pattern=_MARK)

    def _agree(self, texts: list[str]) -> list[bool]:
        return [
            _MARK not in text and [word for word in fast if word] == self.cut_slowly(text)
            for text, fast in zip(texts, self.cut_fast(texts).to_pylist(), strict=True)
        ]

    def set_apart(self, texts: list[str]) -> tuple[list[str], list[str]]:
        """Divide texts into those that RE2 may cut and the others."""
        strange = set(self._check.find_strange(texts))
        easy = [text for index, text in enumerate(texts) if index not in strange]
        return easy, [texts[index] for index in sorted(strange)]

    def count(self, texts: list[str]) -> "pa.StructArray":
        """Count the words of texts that RE2 may cut: fields `values` and `counts`."""
        return self.cut_fast(texts).flatten().value_counts()


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _letters() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Give the letter that stands for each byte, in UTF-8: its first and its second byte or 0."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    codes = [byte if byte in printing else next(others) for byte in range(256)]
    spelled = [chr(code).encode().ljust(2, b"\0") for code in codes]
    first, second = np.array([list(pair) for pair in spelled], dtype=np.uint8).T
    return first, second


def _spell(words: "pa.Array") -> "pa.Array":
    """Write words in the letters that stand for their bytes, with a space after each."""
    import pyarrow as pa

    _, offsets_buffer, data = words.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[: len(words) + 1]
    raw = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
    ends = offsets[1:] - offsets[0]
    # Three places a byte: its letter (one or two), and a space if a word ends here.
    first, second = _letters()
    places = np.zeros((len(raw), 3), dtype=np.uint8)
    places[:, 0], places[:, 1] = first[raw], second[raw]
    places[ends - 1, 2] = ord(" ")
    sizes = np.cumsum(np.count_nonzero(places, axis=1))
    flat = places.ravel()
    letters = flat[flat != 0]
    begins = np.concatenate(([0], sizes[ends - 1]))
    buffers = [None, pa.py_buffer(begins), pa.py_buffer(letters)]
    return pa.Array.from_buffers(pa.large_string(), len(words), buffers)


def _repeat_words(words: "pa.Array", counts: NDArray[np.int64]) -> Iterator[memoryview]:
    """Yield every word as often as it was counted, in letters, some at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # A word of one byte holds no pair.
    longer = pc.greater(pc.binary_length(words), 1)
    words, counts = _spell(words.filter(longer)), counts[longer.to_numpy(zero_copy_only=False)]
    while len(words):
        some = np.minimum(counts, _REPEATS_AT_ONCE)
        repeated = pc.binary_repeat(words, pa.array(some))
        _, offsets, data = repeated.buffers()
        yield memoryview(data)[: np.frombuffer(offsets, dtype=np.int64)[len(repeated)]]
        words, counts = words.filter(pa.array(counts > some)), (counts - some)[counts > some]


def _write_words(cutter: _Cutter, texts: Iterable[str], file: Path) -> None:
    """Write the words of all texts, on two cores, in letters and with spaces between them.

    Memory holds some batches of texts. Words of one batch are counted first, since many are the
    same; the file has them as often as the texts have.
    """
    import pyarrow as pa

    slow: Counter[str] = Counter()
    running: list[Future[list[memoryview]]] = []

    def spell(batch: list[str]) -> list[memoryview]:
        counted = cutter.count(batch)
        return list(_repeat_words(counted.field(0), counted.field(1).to_numpy()))

    with file.open("wb") as stream, ThreadPoolExecutor(_THREADS) as pool:

        def write(most: int) -> None:
            while len(running) > most:
                stream.writelines(running.pop(0).result())

        stream.write(" ".join(_alphabet()).encode() + b"\n")
        for batch in _batched(texts):
            easy, strange = cutter.set_apart(batch)
            for text in strange:
                slow.update(cutter.cut_slowly(text))
            running.append(pool.submit(spell, easy))
            write(_THREADS)
        write(0)
        counts = np.fromiter(slow.values(), dtype=np.int64, count=len(slow))
        stream.writelines(_repeat_words(pa.array(list(slow), pa.large_string()), counts))


def _alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _train_fast(
    backend: "Tokenizer", texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str]
) -> bool:
    """Train if both libraries can; otherwise leave the texts unread and return False."""
    pattern = _pattern_of(backend)
    pieces = None if pattern is None else _translate(pattern)
    if pattern is None or pieces is None:
        return False
    if _LOOK_AHEAD in pattern and r"[\r\n]*" in pattern and _BLANK_LINES not in pattern:
        # The mark that stands for looking ahead would part the line ends that a sign takes along.
        return False
    try:
        import gigabpe
    except ImportError:
        return False
    from tokenizers import AddedToken, models

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "words.txt"
        _write_words(_Cutter(backend, pattern, pieces), texts, file)
        vocabulary, merges = gigabpe.train_bpe(
            [str(file)],
            vocab_size,
            special_tokens=list(special_tokens),
            min_frequency=MIN_FREQUENCY,
            pretokenizer="whitespace",
        )
    backend.model = models.BPE(vocab=vocabulary, merges=merges)
    backend.add_special_tokens([AddedToken(token, special=True) for token in special_tokens])
    return True


def train_bpe(
    backend: "Tokenizer",
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str],
) -> None:
    """Learn byte-level BPE: the tokenizer that `tokenizers.trainers.BpeTrainer` would give.

    Args:
        backend: Its pre-tokenizer cuts the texts; its model and special tokens are set.
        texts: Without lone surrogates, read once.
        vocab_size: Tokens in all: special ones, 256 bytes, and merges.
        special_tokens: The first ids, in order.
    """
    from tokenizers import trainers

    if _train_fast(backend, texts, vocab_size, special_tokens):
        return
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=list(special_tokens),
        initial_alphabet=_alphabet(),  # every byte: lossless on all text
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
