import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from forked import killed_at

from hf_tinyformer import artifacts
from hf_tinyformer.artifacts import (
    check_replaceable,
    clean_folder,
    fingerprint,
    hold_folder,
    publish_folder,
    read_manifest,
    remove_folder,
    write_bytes,
    write_folder,
    write_text,
)
from hf_tinyformer.errors import ArtifactError


def write(path: Path, word: str) -> None:
    with write_folder(path, kind="tokens", facts={"word": word}) as folder:
        (folder / "sub").mkdir()
        (folder / "a.txt").write_text(word)
        (folder / "sub" / "b.txt").write_text(word * 2)


def read(path: Path) -> str:
    word = read_manifest(path, kind="tokens", check_hashes=True)["word"]
    assert (path / "a.txt").read_text() == word
    assert (path / "sub" / "b.txt").read_text() == word * 2
    return word


def test_a_folder_comes_back_as_it_was_written(tmp_path: Path):
    write(tmp_path / "x", "old")

    assert read(tmp_path / "x") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_manifest_has_sizes_and_hashes(tmp_path: Path):
    write(tmp_path / "x", "abc")

    files = json.loads((tmp_path / "x" / "manifest.json").read_text())["files"]
    # SHA-256 of "abc", from FIPS 180-4's examples.
    assert files["a.txt"] == {
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }


def test_a_kill_at_any_point_of_a_first_write_leaves_nothing_or_all(tmp_path: Path):
    point = 1
    while killed_at(point, lambda: write(tmp_path / str(point) / "x", "new")):  # noqa: B023
        folder = tmp_path / str(point)
        if (folder / "x").exists():
            assert read(folder / "x") == "new"
        write(folder / "x", "again")
        assert read(folder / "x") == "again"
        assert [path.name for path in folder.iterdir()] == ["x"]
        point += 1
    assert point > 8


def test_a_kill_at_any_point_of_a_replacement_leaves_old_or_new(tmp_path: Path):
    point, seen = 1, []
    while True:
        folder = tmp_path / str(point)
        write(folder / "x", "old")
        if not killed_at(point, lambda: write(folder / "x", "new")):  # noqa: B023
            break
        seen.append(read(folder / "x"))
        write(folder / "x", "again")
        assert read(folder / "x") == "again"
        assert [path.name for path in folder.iterdir()] == ["x"]
        point += 1
    assert seen == sorted(seen, reverse=True)  # old, old, ..., new: one moment decides
    assert set(seen) == {"old", "new"}


def test_cleaning_puts_back_what_was_about_to_be_replaced(tmp_path: Path):
    write(tmp_path / "x", "old")
    (tmp_path / "x").rename(tmp_path / ".x.old-123")
    (tmp_path / ".x.tmp-123").mkdir()
    (tmp_path / ".y.removed-7").mkdir()
    (tmp_path / ".lock").touch()

    clean_folder(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "x"]
    assert read(tmp_path / "x") == "old"


def test_a_kill_at_any_point_of_a_removal_leaves_all_or_nothing(tmp_path: Path):
    for point in (1, 2):
        write(tmp_path / "x", "old")
        assert killed_at(point, lambda: remove_folder(tmp_path / "x"))
        assert not (tmp_path / "x").exists()
        clean_folder(tmp_path)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_error_at_any_point_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    write(tmp_path / "x", "old")
    reached = 0
    for failing in range(1, 20):
        points = iter(range(1, 100))

        def fault(point: str, failing: int = failing, points=points) -> None:
            if next(points) == failing:
                raise OSError(number, os.strerror(number))

        monkeypatch.setattr(artifacts, "fault", fault)
        try:
            write(tmp_path / "x", "new")
        except OSError:
            reached += 1
            monkeypatch.setattr(artifacts, "fault", lambda point: None)
            assert read(tmp_path / "x") in ("old", "new")
            clean_folder(tmp_path)
            assert [path.name for path in tmp_path.iterdir()] == ["x"]
            write(tmp_path / "x", "old")
    assert reached > 8


def test_an_error_while_writing_leaves_no_trace(tmp_path: Path):
    def fail() -> None:
        with write_folder(tmp_path / "x", kind="tokens", facts={}) as folder:
            (folder / "a.txt").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()

    assert list(tmp_path.iterdir()) == []


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_flipped_bits_and_truncations_are_found(tmp_path: Path):
    write(tmp_path / "x", "word")
    tried = 0
    for name in ("a.txt", "sub/b.txt", "manifest.json"):
        file = tmp_path / "x" / name
        content = file.read_bytes()
        damages = [flipped(content, bit) for bit in range(0, len(content) * 8, 9)]
        damages += [content[:length] for length in range(0, len(content), 5)]
        for damaged in damages:
            file.write_bytes(damaged)
            with pytest.raises(ArtifactError):
                read_manifest(tmp_path / "x", kind="tokens", check_hashes=True)
        file.write_bytes(content)
        tried += len(damages)
    assert read(tmp_path / "x") == "word"
    assert tried > 400


@pytest.mark.parametrize("name", ["a.txt", "sub/b.txt", "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    write(tmp_path / "x", "word")
    (tmp_path / "x" / name).unlink()

    with pytest.raises(ArtifactError, match=name):
        read_manifest(tmp_path / "x", kind="tokens")


def test_a_folder_of_another_kind_is_refused(tmp_path: Path):
    write(tmp_path / "x", "word")

    with pytest.raises(ArtifactError, match="is a tokens of format 1, but a checkpoint"):
        read_manifest(tmp_path / "x", kind="checkpoint")


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(ArtifactError, match="nowhere is not there"):
        read_manifest(tmp_path / "nowhere", kind="tokens")


def test_a_copied_folder_is_still_whole(tmp_path: Path):
    write(tmp_path / "x", "word")
    shutil.copytree(tmp_path / "x", tmp_path / "y")

    assert read(tmp_path / "y") == "word"


def test_a_text_file_is_replaced_whole_at_any_kill(tmp_path: Path):
    file = tmp_path / "f.txt"
    write_text(file, "old")
    point = 1
    while killed_at(point, lambda: write_text(file, "new\n")):
        assert file.read_text() in ("old", "new\n")
        point += 1
    assert point == 4
    assert file.read_bytes() == b"new\n"
    assert [path.name for path in tmp_path.iterdir()] == ["f.txt"]


def test_bytes_are_written_as_they_are(tmp_path: Path):
    write_bytes(tmp_path / "f", bytes(range(256)))

    assert (tmp_path / "f").read_bytes() == bytes(range(256))


def test_equal_values_have_equal_fingerprints_whatever_their_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_held_folder_is_refused_with_the_holder_named(tmp_path: Path):
    with (
        hold_folder(tmp_path),
        pytest.raises(ArtifactError, match=rf"held by process {os.getpid()}, but .* one writer"),
        hold_folder(tmp_path),
    ):
        pass


def test_a_killed_holder_does_not_block(tmp_path: Path):
    def hold_and_die() -> None:
        with hold_folder(tmp_path):
            artifacts.fault("held")

    assert killed_at(1, hold_and_die)

    with hold_folder(tmp_path):
        pass
    with hold_folder(tmp_path):  # and it is let go at the end of the block
        pass


def test_only_a_free_place_or_an_older_such_folder_is_written_to(tmp_path: Path):
    write(tmp_path / "older", "x")
    (tmp_path / "empty").mkdir()

    for name in ("none", "empty", "older"):
        check_replaceable(tmp_path / name, kind="tokens")


def test_what_somebody_else_wrote_is_not_replaced(tmp_path: Path):
    write(tmp_path / "tokens", "x")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    for name in ("thesis", "file", "link", "."):
        with pytest.raises(ArtifactError, match=r"so it is not replaced"):
            check_replaceable(tmp_path / name, kind="tokens")
    with pytest.raises(ArtifactError, match="not an older one"):
        check_replaceable(tmp_path / "tokens", kind="export")
    with pytest.raises(ArtifactError, match="not an older one"):
        check_replaceable(tmp_path / "tokens", kind="tokens", fact="imported")
    with pytest.raises(ArtifactError, match="no name of a folder"):
        check_replaceable(Path(), kind="tokens")


def test_what_a_killed_process_of_our_number_left_is_no_obstacle(tmp_path: Path):
    write(tmp_path / "x", "old")
    left = tmp_path / f".x.old-{os.getpid()}"
    shutil.copytree(tmp_path / "x", left)
    staging = tmp_path / "staging"
    shutil.copytree(tmp_path / "x", staging)

    publish_folder(staging, tmp_path / "x", kind="tokens", facts={"word": "old"})

    assert read(tmp_path / "x") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_behind_a_link_is_replaced_by_one_and_stays(tmp_path: Path):
    write(tmp_path / "disk", "old")
    (tmp_path / "tokens").symlink_to(tmp_path / "disk", target_is_directory=True)

    write(tmp_path / "tokens", "new")
    write(tmp_path / "tokens", "newer")

    assert read(tmp_path / "tokens") == "newer"
    assert read(tmp_path / "disk") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "tokens"]
