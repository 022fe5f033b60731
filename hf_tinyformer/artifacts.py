"""The one writer of everything that must survive a crash.

A folder is written under a temporary name beside its place, every file is flushed to disk, a
manifest with each file's size and SHA-256 is added last, and one rename makes the folder appear.
So a folder with its final name is whole, whatever moment the machine stopped at. A kill leaves at
most a `.name.tmp-*` folder, which the next writer of the same name removes.

The functions call `fault` at each point where a machine can stop; tests replace it to stop there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_tinyformer.errors import ArtifactError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


def fault(point: str) -> None:
    """Mark a point where the machine may stop. Does nothing unless a test replaces it."""


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Return 16 hex digits that stand for a JSON-like value; equal values give equal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _temporary_siblings(path: Path, purpose: str) -> list[Path]:
    return sorted(path.parent.glob(f".{path.name}.{purpose}-*"))


def _remove_leftovers(path: Path) -> None:
    for leftover in [*_temporary_siblings(path, "tmp"), *_temporary_siblings(path, "trash")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step: readers see the old text or the new one, never a part.

    Args:
        path: The file. Its folder must exist.
        text: The whole new content, stored as UTF-8.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        fault("file written")
        os.fsync(stream.fileno())
    fault("file flushed")
    temporary.replace(path)
    fault("file renamed")
    _flush_to_disk(path.parent)


def _publish(staging: Path, path: Path) -> None:
    if path.exists():
        trash = path.with_name(f".{path.name}.trash-{os.getpid()}")
        path.rename(trash)
        fault("old folder moved away")
    staging.rename(path)
    fault("folder renamed")
    _flush_to_disk(path.parent)
    _remove_leftovers(path)
    fault("old folder removed")


@contextmanager
def write_folder(path: Path, *, kind: str, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Write a folder so that it appears whole or not at all.

    Args:
        path: Where the folder will stand. An older folder there is replaced at the last moment.
        kind: What the folder is (`tokenizer`, `tokens`, `checkpoint`), checked by `read_manifest`.
        facts: JSON values that later stages need: what the folder was made from, counts, a step.

    Yields:
        The temporary folder to write into.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    staging = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    staging.mkdir()
    fault("folder begun")
    try:
        yield staging
        files = {}
        for file in _list_files(staging):
            _flush_to_disk(file)
            name = file.relative_to(staging).as_posix()
            files[name] = {"size": file.stat().st_size, "sha256": hash_file(file)}
            fault(f"{name} flushed")
        manifest = {
            "format": FORMAT_VERSION,
            "kind": kind,
            "facts": dict(facts),
            "files": files,
        }
        write_text(
            staging / MANIFEST_NAME, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        )
        _flush_to_disk(staging)
        _publish(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _load_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_NAME
    if not file.is_file():
        raise ArtifactError(
            f"{path} has no {MANIFEST_NAME}, so nothing says that it is whole. "
            "Delete the folder and run the stage that writes it again."
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(manifest["files"], dict) or not isinstance(manifest["facts"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(
            f"{file} is not readable as a manifest. "
            "Delete the folder and run the stage that writes it again."
        ) from None
    return dict(manifest)


def read_manifest(path: Path, *, kind: str, check_hashes: bool = False) -> dict[str, Any]:
    """Check a folder against its manifest and return the manifest's facts.

    Args:
        path: The folder.
        kind: What the folder must be.
        check_hashes: Also read every file and compare its SHA-256; sizes are always compared.

    Returns:
        The `facts` that the writer gave.

    Raises:
        ArtifactError: If the folder is missing, of another kind or format, or damaged.
    """
    manifest = _load_manifest(path)
    if manifest.get("kind") != kind or manifest.get("format") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} is a {manifest.get('kind')} of format {manifest.get('format')}, but a {kind} "
            f"of format {FORMAT_VERSION} is needed. Point to another folder or make this one again."
        )
    for name, expected in manifest["files"].items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["size"]:
            raise ArtifactError(
                f"{file} has {size} bytes, but {MANIFEST_NAME} says {expected['size']}. "
                f"The folder is damaged: delete {path} and make it again."
            )
        if check_hashes and hash_file(file) != expected["sha256"]:
            raise ArtifactError(
                f"{file} does not have the SHA-256 that {MANIFEST_NAME} says. "
                f"The folder is damaged: delete {path} and make it again."
            )
    return dict(manifest["facts"])
