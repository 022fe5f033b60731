"""The one writer of everything that must survive a crash.

A folder is written under a temporary name beside its place, every file is flushed to disk, a
manifest with each file's size and SHA-256 is added last, and one rename makes the folder appear.
So a folder with its final name is whole, whatever moment the machine stopped at. A kill leaves at
most hidden siblings, which the next writer or reader of that name deals with:

    .name.tmp-PID      half written: removed
    .name.old-PID      the folder that was about to be replaced: put back if nothing replaced it
    .name.removed-PID  about to be deleted: removed

The functions call `fault` at each point where a machine can stop; tests replace it to stop there.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_tinyformer.errors import ArtifactError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_LEFTOVERS = ("tmp", "old", "removed")


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


def _siblings(path: Path, purpose: str) -> list[Path]:
    return sorted(path.parent.glob(f".{path.name}.{purpose}-*"))


def _recover(path: Path) -> None:
    # A kill between the two renames of `_publish` leaves the old folder under its hidden name only.
    for old in _siblings(path, "old"):
        if not path.exists():
            old.rename(path)


def _remove(path: Path) -> None:
    # A folder may have been reached by a link, on a larger disk: what it points to stays.
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_leftovers(path: Path) -> None:
    for leftover in [sibling for word in _LEFTOVERS for sibling in _siblings(path, word)]:
        _remove(leftover)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step: readers see the old content or the new one, never a part.

    Args:
        path: The file. Its folder must exist.
        content: The whole new content.
    """
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        fault("file written")
        os.fsync(stream.fileno())
    fault("file flushed")
    temporary.replace(path)
    fault("file renamed")
    _flush_to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step, see `write_bytes`.

    Args:
        path: The file. Its folder must exist.
        text: The whole new content, stored as UTF-8 with its own line ends.
    """
    write_bytes(path, text.encode("utf-8"))


def _render_manifest(manifest: Mapping[str, Any]) -> str:
    # The manifest vouches for the files, and its own checksum for its facts.
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    full = {**rest, "checksum": fingerprint(rest)}
    return json.dumps(full, indent=2, ensure_ascii=False) + "\n"


def _publish(staging: Path, path: Path) -> None:
    if path.exists():
        # In a container the process that was killed may have had our number.
        for old in _siblings(path, "old"):
            _remove(old)
        path.rename(path.with_name(f".{path.name}.old-{os.getpid()}"))
        fault("old folder moved away")
    staging.rename(path)
    fault("folder renamed")
    _flush_to_disk(path.parent)
    _remove_leftovers(path)
    fault("old folder removed")


def publish_folder(
    staging: Path,
    path: Path,
    *,
    kind: str,
    facts: Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Give a folder that is filled its manifest and, in one step, its final name.

    Args:
        staging: The filled folder, on the same disk as `path`.
        path: Where it will stand. An older folder there is replaced.
        kind: What it is, checked by `read_manifest`.
        facts: JSON values that later stages need.
        known: `size` and `sha256` of files, by their names in the folder, that an earlier manifest
            vouches for: they are on disk, and not read again.
    """
    _recover(path)
    files = {}
    for file in _list_files(staging):
        name = file.relative_to(staging).as_posix()
        if name == MANIFEST_NAME:  # of an attempt that was killed
            continue
        if known is not None and name in known:
            files[name] = dict(known[name])
            continue
        _flush_to_disk(file)
        files[name] = {"size": file.stat().st_size, "sha256": hash_file(file)}
        fault(f"{name} flushed")
    manifest = {"format": FORMAT_VERSION, "kind": kind, "facts": dict(facts), "files": files}
    write_text(staging / MANIFEST_NAME, _render_manifest(manifest))
    _flush_to_disk(staging)
    _publish(staging, path)


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
    _recover(path)
    _remove_leftovers(path)
    staging = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    staging.mkdir()
    fault("folder begun")
    try:
        yield staging
        publish_folder(staging, path, kind=kind, facts=facts)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        _recover(path)
        raise


def check_replaceable(path: Path, *, kind: str, fact: str | None = None) -> None:
    """Refuse a place where a user asks for a folder, unless it is free or holds an older such one.

    Args:
        path: Where a folder is to be written.
        kind: What it will be.
        fact: A fact that an older one's manifest must have too.

    Raises:
        ArtifactError: If something else is there, which `write_folder` would replace.
    """
    if not path.name:
        raise ArtifactError(f"{path} is no name of a folder to write. Give it one.")
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        facts = read_manifest(path, kind=kind)
    except ArtifactError:
        facts = None
    if facts is None or (fact is not None and fact not in facts):
        raise ArtifactError(
            f"{path} is there and not an older one of what is to be written (a whole {kind} with a "
            f"{MANIFEST_NAME}), so it is not replaced. Take another name, or move it away."
        )


def remove_folder(path: Path) -> None:
    """Delete a folder in one step: it is whole under its name, or it is gone.

    Args:
        path: The folder.
    """
    removed = path.with_name(f".{path.name}.removed-{os.getpid()}")
    path.rename(removed)
    fault("folder set aside")
    shutil.rmtree(removed)
    fault("folder removed")


def clean_folder(parent: Path) -> None:
    """Put back or remove what writers that were killed left in a folder of folders.

    Only the folder's one writer may call this, see `hold_folder`.

    Args:
        parent: The folder to clean, such as `checkpoints/`. It may be missing.
    """
    pattern = re.compile(rf"\.(.+)\.(?:{'|'.join(_LEFTOVERS)})-\d+")
    names = {match[1] for path in parent.glob(".*") if (match := pattern.fullmatch(path.name))}
    for name in sorted(names):
        _recover(parent / name)
        _remove_leftovers(parent / name)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder, until the block ends.

    The lock is the kernel's, so a process that is killed leaves none behind.

    Args:
        folder: The folder, made if missing. A file `.lock` is left in it.

    Yields:
        Nothing.

    Raises:
        ArtifactError: If another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise ArtifactError(
                f"{folder} is held by process {stream.read().strip() or 'unknown'}, but a run "
                "folder has one writer. Wait for that process, stop it, or choose another name."
            ) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def _load_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_NAME
    if not path.exists():
        _recover(path)
    if not path.exists():
        raise ArtifactError(f"{path} is not there. Point to another folder, or make this one.")
    if not file.is_file():
        raise ArtifactError(
            f"{path} has no {MANIFEST_NAME}, so nothing says that it is whole. "
            "Delete the folder and run the stage that writes it again."
        )
    try:
        content = file.read_bytes()
        manifest = json.loads(content.decode("utf-8"))
        if content != _render_manifest(manifest).encode("utf-8"):
            raise ValueError
    except (ValueError, AttributeError):
        raise ArtifactError(
            f"{file} is not as it was written. "
            f"The folder is damaged: delete {path} and run the stage that writes it again."
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


def read_file_hashes(path: Path) -> dict[str, dict[str, Any]]:
    """Return `size` and `sha256` of each file that a folder's manifest vouches for, by name.

    Raises:
        ArtifactError: If the folder has no whole manifest.
    """
    return dict(_load_manifest(path)["files"])
