"""Documents become token ids by the fastest library that gives exactly the ids of `tokenizers`.

`gigatoken` encodes byte-level BPE some twenty times as fast, for the split patterns that it knows.
It is used only where the tokenizer's rules are of that form, and only as long as it agrees with
`tokenizers` on every text that both encode: texts chosen to be difficult, the vocabulary's own
pieces, each character in several surroundings when it is first seen, and a sample of every batch.
Ids lie end to end in one array; there are no Python lists of numbers on the way.
"""

import importlib.metadata
import itertools
import logging
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from hf_tinyformer.data.tokenization.character_check import CharacterCheck
from hf_tinyformer.data.tokenization.jamo import decompose_syllables, has_jamo_normalizer
from hf_tinyformer.data.tokenization.tokenizer import (
    count_hidden_bytes,
    count_ids,
    document_frame,
    encode_documents,
    fingerprint_rules,
)
from hf_tinyformer.data.tokenization.tokenizer_training import byte_letters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

_SHARE_COMPARED = 256
"""One byte in so many is also encoded by `tokenizers`, some twenty times as slow."""

_PIECE = 2048
"""Characters of a text that are compared at once."""

_PROBES = [
    "",
    " ",
    "a",
    "The King's men don't count 1, 22, 333 or 4444; they'LL'VE 'S it'\u017f.",
    "def f(x):\n    return  x\r\n\r\n\t\tif x:   \n\n\n   y\t \n z ",
    "나는 학교에 갑니다. ᄒ\u1161\u11ab글 日本語 ไทย हिन्दी العربية עברית",
    "e\u0301 \u0301x ½²³ Ⅷ ٣٤ \u00a0\u2003x\u3000y\u200bz \ufeff\x00\x07\x1f\x7f",
    "👩\u200d👩\u200d👧\ufe0f🇰🇷 !!!??? ... ---\n--- //\n http://a.b/c?d=e#f <s></s><pad>",
    "x" * 300 + " " * 300 + "!" * 300 + "\n" * 300 + "1" * 300,
]


def _is_byte_level(rules: dict[str, Any]) -> bool:
    """Tell whether a tokenizer.json is byte-level BPE in the one form that both libraries share.

    Whether it knows the split pattern, gigatoken says itself.
    """
    model, cutter = rules["model"], rules["pre_tokenizer"]
    switches = ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(model.get(key) for key in (*switches, *affixes)):
        return False
    if rules["normalizer"] is not None or cutter is None:
        return False
    *splits, last = cutter["pretokenizers"] if cutter["type"] == "Sequence" else [cutter]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    # One of the two cuts, not both: gigatoken takes the first pattern that it finds.
    if len(splits) + int(last["use_regex"]) != 1:
        return False
    return all(
        step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]
        for step in splits
    )


def _load_fast(rules: dict[str, Any]) -> Any:
    """Return gigatoken's encoder of the rules of a tokenizer.json, or None."""
    try:
        import gigatoken
    except ImportError:
        return None
    if any(not token["special"] for token in rules["added_tokens"]) or not _is_byte_level(rules):
        return None
    # Letters that spell a special token are letters in a document. Nor may the token stay in the
    # vocabulary, where gigatoken would take it for a piece of the same bytes.
    model = rules["model"]
    pieces = {"".join(merge) for merge in model["merges"]}.union(byte_letters())
    model["vocab"] = {token: index for token, index in model["vocab"].items() if token in pieces}
    rules["added_tokens"] = []
    try:
        return gigatoken.Tokenizer.from_json(orjson.dumps(rules))
    except (ValueError, RuntimeError) as error:
        logger.debug("gigatoken does not take this tokenizer: %s", error)
        return None


def _spell_vocabulary(tokens: Iterable[str]) -> list[str]:
    """Write every token of a byte-level vocabulary that is whole characters as text."""
    table = byte_letters()
    texts = []
    for token in tokens:
        raw = bytes(table[letter] for letter in token if letter in table)
        try:
            texts.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            continue  # a part of a character
    return texts


def _sample(texts: Sequence[str]) -> list[str]:
    """Take short pieces of some texts, evenly from all characters."""
    ends = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
    places = np.arange(0, ends[-1] if texts else 0, _PIECE * _SHARE_COMPARED)
    found = np.searchsorted(ends, places, side="right")
    begins = places - ends[found] + [len(texts[index]) for index in found]
    return [
        texts[index][begin : begin + _PIECE]
        for index, begin in zip(found.tolist(), begins.tolist(), strict=True)
    ]


class DocumentEncoder:
    """Encodes whole documents, framed as `encode_documents` does, into arrays.

    Three steps, of which the first two may run side by side: `encode`, `examine`, `correct`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Choose the library.

        Args:
            tokenizer: Any fast tokenizer.
        """
        self._tokenizer = tokenizer
        # Encoding sets switches of the tokenizer for its while, and two threads do it here.
        self._one_at_a_time = threading.Lock()
        self._frame = document_frame(tokenizer)
        self._unknown = tokenizer.unk_token_id
        rules = orjson.loads(tokenizer.backend_tokenizer.to_str())
        self.tokenizer = fingerprint_rules(tokenizer, rules)
        self.vocab_size = count_ids(tokenizer)
        self.dtype = "uint16" if self.vocab_size <= 1 << 16 else "uint32"
        self.distrusted: set[str] = set()
        self._is_jamo = has_jamo_normalizer(tokenizer.backend_tokenizer)
        if self._is_jamo:
            rules["normalizer"] = None  # done before, by `decompose_syllables`
        self._fast = _load_fast(rules)
        self._is_fast = self._fast is not None
        self._vocabulary = rules["model"]["vocab"]
        self._check: CharacterCheck | None = None

    @property
    def name(self) -> str:
        """The library that encodes, with its version."""
        library = "gigatoken" if self._is_fast else "tokenizers"
        return f"{library} {importlib.metadata.version(library)}"

    def distrust(self, name: str) -> None:
        """Use a library no more, by its `name`."""
        self.distrusted.add(name)
        if self._is_fast and self.name in self.distrusted:
            self._is_fast = False

    def _encode_slowly(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        with self._one_at_a_time:
            encoded = encode_documents(self._tokenizer, texts)
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        count = int(lengths.sum())
        every_id = itertools.chain.from_iterable(encoded)
        return np.fromiter(every_id, dtype=self.dtype, count=count), lengths

    def _encode_fast(
        self,
        texts: Sequence[str],
        utf8: Sequence[bytes] | None = None,
        *,
        parallel: bool | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        documents = texts if utf8 is None else utf8
        if self._is_jamo:
            documents = [decompose_syllables(text) for text in texts]
        layout = self._fast.encode_batch(list(documents), parallel=parallel).layout
        offsets = np.asarray(layout.offsets.data)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        prefix, suffix = self._frame
        lengths = np.diff(offsets) + (len(prefix) + len(suffix))
        if not prefix and not suffix:
            return ids.astype(self.dtype), lengths
        ends = np.cumsum(lengths)
        flat = np.empty(int(lengths.sum()), dtype=self.dtype)
        inside = np.ones(len(flat), dtype=bool)
        for place, token in enumerate(prefix):
            flat[ends - lengths + place] = token
            inside[ends - lengths + place] = False
        for place, token in enumerate(reversed(suffix), 1):
            flat[ends - place] = token
            inside[ends - place] = False
        flat[inside] = ids
        return flat, lengths

    def _agree(self, texts: Sequence[str]) -> list[bool]:
        """Tell for each text whether both libraries encode it alike."""
        # On this thread, which would spin until a worker is free while others encode.
        fast, fast_lengths = self._encode_fast(texts, parallel=False)
        slow, slow_lengths = self._encode_slowly(texts)
        if np.array_equal(fast_lengths, slow_lengths) and np.array_equal(fast, slow):
            return [True] * len(texts)
        pairs = zip(
            np.split(fast, np.cumsum(fast_lengths)[:-1]),
            np.split(slow, np.cumsum(slow_lengths)[:-1]),
            strict=True,
        )
        return [np.array_equal(*pair) for pair in pairs]

    def _compare(self, texts: Sequence[str]) -> None:
        """Encode some texts by both libraries; the fast one is used no more if they differ."""
        if not self._is_fast or all(self._agree(texts)):
            return
        logger.warning(
            "%s gives other token ids than tokenizers for a text of this corpus; "
            "everything is encoded by tokenizers, which takes longer.",
            self.name,
        )
        self.distrust(self.name)

    def _begin_check(self) -> CharacterCheck:
        pieces = _spell_vocabulary(self._vocabulary)
        lines = ["\n".join(pieces[at : at + 64]) for at in range(0, len(pieces), 64)]
        self._compare([*_PROBES, *lines])
        return CharacterCheck(self._agree)

    def examine(self, texts: Sequence[str]) -> list[int]:
        """Compare the libraries on what is new in some documents, and on a sample of them.

        The first time, on difficult texts and on the vocabulary too.

        Args:
            texts: Documents without lone surrogates (see `check_text`).

        Returns:
            The places of the documents that only `tokenizers` may encode.
        """
        if not self._is_fast or not texts:
            return []
        if self._check is None:
            self._check = self._begin_check()
        strange = self._check.find_strange(texts)
        apart = set(strange)
        self._compare(_sample([text for at, text in enumerate(texts) if at not in apart]))
        return strange

    def encode(
        self, texts: Sequence[str], utf8: Sequence[bytes] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Encode documents on all cores.

        Args:
            texts: Documents without lone surrogates (see `check_text`).
            utf8: Their bytes, where they are at hand: that saves making them.

        Returns:
            The ids of all documents, end to end, and how many each has, both one-dimensional. To
            be kept only if the library is still trusted (see `name`) when `examine` has seen the
            documents, and after `correct`.
        """
        if not self._is_fast or not texts:
            return self._encode_slowly(texts)
        return self._encode_fast(texts, utf8)

    def correct(
        self,
        ids: NDArray[Any],
        lengths: NDArray[np.int64],
        texts: Sequence[str],
        strange: Sequence[int],
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Encode once more, by `tokenizers`, what only it may encode.

        Args:
            ids: From `encode`.
            lengths: From `encode`.
            texts: The documents.
            strange: What `examine` found in them.

        Returns:
            Ids and lengths as `encode` gives them.
        """
        if not strange:
            return ids, lengths
        pieces = np.split(ids, np.cumsum(lengths)[:-1])
        ids, lengths = self._encode_slowly([texts[index] for index in strange])
        for index, piece in zip(strange, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
            pieces[index] = piece
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        return np.concatenate(pieces), lengths

    def count_hidden_bytes(self, texts: Sequence[str]) -> int:
        """Count the bytes of text that stand behind unknown tokens, and are lost with them."""
        with self._one_at_a_time:
            return sum(count_hidden_bytes(self._tokenizer, texts))

    def count_unknown(self, ids: NDArray[Any], num_documents: int) -> int:
        """Count the ids of the unknown token inside some documents.

        What frames them may be the same token, as in GPT-2's tokenizer, and does not count.
        """
        if self._unknown is None:
            return 0
        prefix, suffix = self._frame
        framing = num_documents * (prefix + suffix).count(self._unknown)
        return int(np.count_nonzero(ids == self._unknown)) - framing
