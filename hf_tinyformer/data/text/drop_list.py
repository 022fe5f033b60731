"""Documents to leave out: what `tinyformer data audit --drop` writes and `data.drop` reads.

A .jsonl file: a first line that says what it is, then a line for each text with a copy to leave
out, by the hash of the text and the places of its copies:

    {"kind": "drop list", "format": 1, "texts": 2, "documents": 3}
    {"text": "03c7...", "keep": null, "drop": ["train corpus texts/b.jsonl:7"]}
    {"text": "5ad0...", "keep": "train corpus texts/a.jsonl:12", "drop": ["train corpus ...", ...]}

So whether a document stays is a question of that document alone: any process can read any part of
the corpus, in any order, with the same answer. A text of the list at a place that it does not name
means that the corpus has changed since, and is an error.
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_tinyformer.artifacts import write_text
from hf_tinyformer.data.text.documents import Document
from hf_tinyformer.data.text.duplicates import digest_text
from hf_tinyformer.errors import DataError

_HEAD = {"kind": "drop list", "format": 1}


def name_place(split: str, source: str, document_source: str) -> str:
    """Name where a document stands: its split, its source's name, its place there."""
    return f"{split} {source} {document_source}"


@dataclass(frozen=True, slots=True)
class DroppedText:
    """One text with copies to leave out."""

    text: bytes
    """Its `digest_text`."""

    keep: str | None
    """Place of the copy that stays, if one does."""

    drop: tuple[str, ...]
    """Places of the copies that do not."""


class DropList:
    """Texts to leave out, in memory: some 300 bytes each."""

    def __init__(self, path: Path, texts: Iterable[DroppedText], *, fingerprint: str) -> None:
        """Take the list.

        Args:
            path: Where it was read, for messages.
            texts: Its lines.
            fingerprint: Stands for its content.
        """
        self.fingerprint = fingerprint
        self._path = path
        self._texts = {entry.text: entry for entry in texts}

    def drops(self, document: Document, *, split: str, source: str) -> bool:
        """Say whether a document is left out.

        Args:
            document: Any document of the corpus.
            split: The split that it stands in.
            source: Name of the source that it comes from.

        Raises:
            DataError: If the list knows the text, but not at this place.
        """
        entry = self._texts.get(digest_text(document.text))
        if entry is None:
            return False
        place = name_place(split, source, document.source)
        if place in entry.drop:
            return True
        if place == entry.keep:
            return False
        raise DataError(
            f"data.drop is {self._path}, which knows the text of {document.source} ({split}), but "
            f"not at that place: it names {entry.keep or entry.drop[0]}. The corpus, its order or "
            "its split has changed; run `tinyformer data audit` with --drop again."
        )


def write_drop_list(path: Path, texts: Iterable[DroppedText]) -> None:
    """Write a list, the same texts always as the same bytes.

    Args:
        path: The file. Its folder must exist.
        texts: In any order.

    Raises:
        DataError: If a place is to be kept and dropped, so that no copy would be left.
    """
    ordered = sorted(texts, key=lambda entry: entry.text)
    head = {**_HEAD, "texts": len(ordered), "documents": sum(len(e.drop) for e in ordered)}
    lines = [json.dumps(head)]
    for entry in ordered:
        if entry.keep in entry.drop:
            raise DataError(
                f"{path} was to keep and to drop {entry.keep}, but two documents cannot begin in "
                "one place. Report this, and leave their file out of the audit until then."
            )
        record = {"text": entry.text.hex(), "keep": entry.keep, "drop": sorted(entry.drop)}
        lines.append(json.dumps(record, ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")


def _parse(line: str) -> DroppedText:
    record: dict[str, Any] = json.loads(line)
    return DroppedText(bytes.fromhex(record["text"]), record["keep"], tuple(record["drop"]))


def read_drop_list(path: Path) -> DropList:
    """Read what `write_drop_list` wrote; a file that was read before and is the same, from memory.

    Raises:
        DataError: If the file is missing, something else, or not whole.
    """
    try:
        status = path.stat()
        return _read(path, (status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise DataError(
            f"data.drop is {path}, but it cannot be read ({error.strerror}). Write it with "
            "`tinyformer data audit CONFIG --drop FILE`, or set data.drop to null."
        ) from None


@functools.lru_cache(maxsize=2)
def _read(path: Path, _version: tuple[int, int]) -> DropList:
    content = path.read_bytes()
    try:
        # Not splitlines(): a path may hold a line end of Unicode, which JSON leaves as it is.
        head, *lines = content.decode("utf-8").removesuffix("\n").split("\n")
        found = json.loads(head)
        texts = [_parse(line) for line in lines]
        is_whole = {key: found[key] for key in _HEAD} == _HEAD and found["texts"] == len(texts)
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise DataError(
            f"data.drop is {path}, but it is no whole list of documents to leave out. Write it "
            "again with `tinyformer data audit CONFIG --drop FILE`."
        )
    return DropList(path, texts, fingerprint=hashlib.sha256(content).hexdigest()[:16])
