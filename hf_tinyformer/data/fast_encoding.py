"""Documents become token ids by the fastest library that gives exactly the ids of `tokenizers`.

`gigatoken` encodes byte-level BPE some twenty times as fast, for the split patterns that it knows.
It is used only where the tokenizer's rules are of that form, and only as long as it agrees with
`tokenizers` on every text that both encode: some texts chosen to be difficult, and a sample of
every batch. Ids lie end to end in one array; there are no Python lists of numbers on the way.
"""

import importlib.metadata
import itertools
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.data.tokenizer import (
    document_frame,
    encode_documents,
    tokenizer_fingerprint,
)

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


def _steps(rules: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    """Flatten a `Sequence` of normalizers or pre-tokenizers."""
    if rules is None:
        return []
    if rules["type"] == "Sequence":
        return [step for rule in rules[children] for step in _steps(rule, children)]
    return [rules]


def _is_byte_level(rules: dict[str, Any]) -> bool:
    """Tell whether a tokenizer.json is byte-level BPE in the one form that both libraries share.

    Whether it knows the split pattern, gigatoken says itself.
    """
    model = rules["model"]
    plain = (
        model["type"] == "BPE"
        and not any(model.get(key) for key in ("dropout", "unk_token", "fuse_unk"))
        and not any(model.get(key) for key in ("byte_fallback", "ignore_merges"))
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
    )
    steps = _steps(rules["pre_tokenizer"], "pretokenizers")
    if not plain or rules["normalizer"] is not None or not steps:
        return False
    *splits, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    # One of the two cuts, not both: gigatoken takes the first pattern that it finds.
    if len(splits) + int(last["use_regex"]) != 1:
        return False
    return all(
        step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]
        for step in splits
    )


def _load_fast(tokenizer: "PreTrainedTokenizerFast") -> Any:
    """Return gigatoken's encoder of the same rules, or None."""
    try:
        import gigatoken
    except ImportError:
        return None
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    if any(not token["special"] for token in rules["added_tokens"]) or not _is_byte_level(rules):
        return None
    # Letters that spell a special token are letters in a document.
    rules["added_tokens"] = []
    try:
        return gigatoken.Tokenizer.from_json(json.dumps(rules))
    except ValueError as error:
        logger.debug("gigatoken does not take this tokenizer: %s", error)
        return None


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
    """Encodes whole documents, framed as `encode_documents` does, into arrays."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Choose the library and compare it on difficult texts.

        Args:
            tokenizer: Any fast tokenizer.
        """
        self._tokenizer = tokenizer
        self._frame = document_frame(tokenizer)
        self._unknown = tokenizer.unk_token_id
        self.tokenizer = tokenizer_fingerprint(tokenizer)
        self.vocab_size = len(tokenizer)
        self.dtype = "uint16" if self.vocab_size <= 1 << 16 else "uint32"
        self.distrusted: set[str] = set()
        self._fast = _load_fast(tokenizer)
        self._compare(_PROBES)

    @property
    def name(self) -> str:
        """The library that encodes, with its version."""
        library = "tokenizers" if self._fast is None else "gigatoken"
        return f"{library} {importlib.metadata.version(library)}"

    def distrust(self, name: str) -> None:
        """Use a library no more, by its `name`."""
        self.distrusted.add(name)
        if self._fast is not None and self.name in self.distrusted:
            self._fast = None

    def _encode_slowly(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        encoded = encode_documents(self._tokenizer, texts)
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        count = int(lengths.sum())
        every_id = itertools.chain.from_iterable(encoded)
        return np.fromiter(every_id, dtype=self.dtype, count=count), lengths

    def _encode_fast(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        layout = self._fast.encode_batch(list(texts)).layout
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

    def _compare(self, texts: Sequence[str]) -> None:
        """Encode some texts by both libraries; the fast one is used no more if they differ."""
        if self._fast is None or not texts:
            return
        fast, slow = self._encode_fast(texts), self._encode_slowly(texts)
        if all(np.array_equal(*pair) for pair in zip(fast, slow, strict=True)):
            return
        logger.warning(
            "%s gives other token ids than tokenizers for a text of this corpus; "
            "everything is encoded by tokenizers, which takes longer.",
            self.name,
        )
        self.distrust(self.name)

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Encode documents on all cores.

        Args:
            texts: Documents without lone surrogates (see `check_text`).

        Returns:
            The ids of all documents, end to end, and how many each has, both one-dimensional.
        """
        self._compare(_sample(texts))
        return self._encode_slowly(texts) if self._fast is None else self._encode_fast(texts)

    def count_unknown(self, ids: NDArray[Any]) -> int:
        """Count the ids of the unknown token."""
        return 0 if self._unknown is None else int(np.count_nonzero(ids == self._unknown))
