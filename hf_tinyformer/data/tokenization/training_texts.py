"""Which texts a tokenizer is learned from: all of them, or evenly chosen ones up to a cap."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hf_tinyformer.errors import ConfigError

logger = logging.getLogger(__name__)

_LONGEST_PIECE = 1 << 20
"""Characters of a long document that are chosen together at most."""

_SHORTEST_PIECE = 1 << 10

_LEAST_PIECES = 64
"""How many of the longest pieces fit under the cap, so that there is a choice."""

_EVERYTHING = 1 << 64


@dataclass(frozen=True, slots=True)
class _Piece:
    digest: int
    document: int
    number: int
    size: int
    text: str


def _divide(text: str, longest: int) -> Iterator[str]:
    """Cut a long document, where possible after a line end or before a space."""
    begin = 0
    while len(text) - begin > longest:
        end = begin + longest
        line = text.rfind("\n", begin, end) + 1
        stop = line if line > begin else text.rfind(" ", begin + 1, end)
        stop = stop if stop > begin else end
        yield text[begin:stop]
        begin = stop
    yield text[begin:] if begin else text


def _join(pieces: list[_Piece]) -> Iterator[str]:
    """Put the pieces of a document that still follow each other together again."""
    run: list[_Piece] = []
    for piece in pieces:
        if run and (piece.document, piece.number) != (run[-1].document, run[-1].number + 1):
            yield "".join(part.text for part in run)
            run = []
        run.append(piece)
    if run:
        yield "".join(part.text for part in run)


def choose_texts(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Choose training texts evenly, by their hash, so that they fit into memory.

    Which are chosen depends on the texts and the cap only. A document of more than a million
    characters, or of more than a 64th of the cap, is chosen in pieces. If all texts fit, they come
    as they are.

    Args:
        texts: Without lone surrogates, read once and to the end.
        max_bytes: UTF-8 bytes chosen at most, and held in memory until they are used.

    Yields:
        The chosen texts, in their order.

    Raises:
        ConfigError: If the cap is too low for a single piece.
    """
    longest = min(_LONGEST_PIECE, max(_SHORTEST_PIECE, max_bytes // _LEAST_PIECES))
    kept: list[_Piece] = []
    below = _EVERYTHING
    total = kept_bytes = 0
    for document, text in enumerate(texts):
        for number, piece in enumerate(_divide(text, longest)):
            raw = piece.encode("utf-8")
            total += len(raw)
            digest = hashlib.blake2b(raw, digest_size=8, person=b"tokenizer").digest()
            chosen = _Piece(int.from_bytes(digest, "big"), document, number, len(raw), piece)
            if chosen.digest < below:
                kept.append(chosen)
                kept_bytes += len(raw)
        while kept_bytes > max_bytes:
            below = below * 7 // 8
            kept = [piece for piece in kept if piece.digest < below]
            kept_bytes = sum(piece.size for piece in kept)
    if below < _EVERYTHING:
        if not kept_bytes:
            raise ConfigError(
                f"tokenizer.train_bytes is {max_bytes}, but no even choice of the text's {total} "
                "bytes is so small, so that there is nothing to learn from. Raise it, or leave it "
                "out."
            )
        logger.info(
            "the tokenizer is learned from %s of %s bytes of text, chosen evenly "
            "(tokenizer.train_bytes is %s)",
            f"{kept_bytes:,}",
            f"{total:,}",
            f"{max_bytes:,}",
        )
    yield from _join(kept)
