"""What a tokenizer does with text: how it cuts, how far its tokens reach, and what it loses."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from hf_tinyformer.data.tokenization.jamo import spell_alone
from hf_tinyformer.data.tokenization.tokenizer import (
    count_hidden_bytes,
    count_ids,
    document_frame,
    encode_documents,
)
from hf_tinyformer.data.tokenization.tokenizer_training import byte_letters
from hf_tinyformer.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHARACTERS_AT_ONCE = 1 << 20


@dataclass(kw_only=True)
class TokenizerReport:
    """Figures of one tokenizer on one text."""

    name: str
    """Where the tokenizer came from."""

    vocab_size: int
    """Ids, special ones included."""

    texts: int = 0
    """Documents read."""

    bytes: int = 0
    """Their size in UTF-8."""

    characters: int = 0
    """Their Unicode code points."""

    words: int = 0
    """Their words, as white space parts them."""

    tokens: int = 0
    """Tokens inside the documents; what is put around them does not count."""

    unknown_tokens: int = 0
    """Those that stand for what the vocabulary lacks."""

    hidden_bytes: int = 0
    """Bytes behind them, which the model never sees. Its bits per byte leave them out."""

    used_tokens: int = 0
    """Different tokens met."""

    texts_unchanged: int = 0
    """Documents that decoding gave back letter for letter."""

    texts_equivalent: int = 0
    """Documents that came back in another, canonically equivalent spelling (equal in NFC)."""

    longest: list[tuple[str, int]] = field(default_factory=list)
    """The tokens of most characters that were met, and how often each was."""

    most_frequent: list[tuple[str, int]] = field(default_factory=list)
    """The tokens met most, and how often."""

    @property
    def texts_lost(self) -> int:
        """Documents that did not come back."""
        return self.texts - self.texts_unchanged - self.texts_equivalent

    def rates(self) -> dict[str, float]:
        """Put the counts in proportion."""
        return {
            "bytes_per_token": self.bytes / self.tokens,
            "characters_per_token": self.characters / self.tokens,
            "words_per_token": self.words / self.tokens,
            "unknown_rate": self.unknown_tokens / self.tokens,
            "hidden_rate": self.hidden_bytes / self.bytes,
            "vocabulary_use": self.used_tokens / self.vocab_size,
        }

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {**asdict(self), "texts_lost": self.texts_lost, **self.rates()}


def show_tokens(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[tuple[int, str]]:
    r"""Cut a text as a document's inside and make every piece readable.

    Args:
        tokenizer: Any fast tokenizer.
        text: What to cut.

    Returns:
        Pairs of id and piece. A piece that is a part of a character reads as its bytes, `\xed\x95`,
        and one that is a part of a Korean syllable as letters that stand alone: 느, ㄴ.
    """
    prefix, suffix = document_frame(tokenizer)
    ids = encode_documents(tokenizer, [text])[0]
    ids = ids[len(prefix) : len(ids) - len(suffix)]
    return [(index, show_token(tokenizer, index)) for index in ids]


def show_token(tokenizer: "PreTrainedTokenizerFast", index: int) -> str:
    """Make one token readable, as `show_tokens` does."""
    piece = tokenizer.backend_tokenizer.decode([index], skip_special_tokens=False)
    if "\ufffd" in piece:
        letters, table = tokenizer.convert_ids_to_tokens(index), byte_letters()
        if re.fullmatch("<0x[0-9A-F]{2}>", letters):
            return f"\\x{letters[3:5].lower()}"
        raw = bytes(table[letter] for letter in letters if letter in table)
        piece = raw.decode("utf-8", errors="backslashreplace") or piece
    return spell_alone(piece)


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        if text:
            batch.append(text)
            size += len(text)
        if size >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count_returned(
    report: TokenizerReport,
    tokenizer: "PreTrainedTokenizerFast",
    texts: Sequence[str],
    encoded: Sequence[list[int]],
) -> None:
    for text, ids in zip(texts, encoded, strict=True):
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if decoded == text:
            report.texts_unchanged += 1
        elif unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", text):
            report.texts_equivalent += 1


def _count_characters(tokenizer: "PreTrainedTokenizerFast", index: int) -> int:
    """Count a token's whole characters; a syllable is one, whatever it is spelled by."""
    text = tokenizer.backend_tokenizer.decode([index], skip_special_tokens=True)
    return len(spell_alone(text).replace("\ufffd", ""))


def report_tokenizer(
    name: str, tokenizer: "PreTrainedTokenizerFast", texts: Iterable[str], *, num_shown: int = 10
) -> TokenizerReport:
    """Measure a tokenizer on texts that it was not trained on.

    Args:
        name: What to call it.
        tokenizer: Any fast tokenizer.
        texts: Documents without lone surrogates, read once. Empty ones are passed over.
        num_shown: Length of the lists of longest and of most frequent tokens.

    Raises:
        DataError: If there is no text.
    """
    report = TokenizerReport(name=name, vocab_size=count_ids(tokenizer))
    prefix, suffix = document_frame(tokenizer)
    counts: Counter[int] = Counter()
    for batch in _batched(texts):
        framed = encode_documents(tokenizer, batch)
        encoded = [ids[len(prefix) : len(ids) - len(suffix)] for ids in framed]
        counts.update(chain.from_iterable(encoded))
        report.texts += len(batch)
        report.bytes += sum(len(text.encode()) for text in batch)
        report.characters += sum(map(len, batch))
        report.words += sum(len(text.split()) for text in batch)
        report.hidden_bytes += sum(count_hidden_bytes(tokenizer, batch))
        _count_returned(report, tokenizer, batch, encoded)
    report.tokens = counts.total()
    if not report.tokens:
        raise DataError(
            f"the text to report on gives {report.tokens} tokens, but at least 1 is needed. "
            "Point to files that have text."
        )
    report.used_tokens = len(counts)
    if tokenizer.unk_token_id is not None:
        report.unknown_tokens = counts[tokenizer.unk_token_id]
    shown = {index: show_token(tokenizer, index) for index in counts}
    reach = {index: _count_characters(tokenizer, index) for index in counts}
    by_length = sorted(counts, key=lambda index: (-reach[index], index))
    by_count = sorted(counts, key=lambda index: (-counts[index], index))
    report.longest = [(shown[index], counts[index]) for index in by_length[:num_shown]]
    report.most_frequent = [(shown[index], counts[index]) for index in by_count[:num_shown]]
    return report
