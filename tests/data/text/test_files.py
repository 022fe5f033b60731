import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_tinyformer.data.text.files import list_files
from hf_tinyformer.errors import DataError


@pytest.fixture(autouse=True)
def _stand_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("texts/closed/a.txt", "texts/b.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)


def test_a_folder_that_may_not_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    # Root may read every folder.
    def refuse_closed(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse_closed)
    with pytest.raises(DataError, match=r"^texts/closed cannot be read \(Permission denied\)"):
        list_files("data.files", ["texts"])
    refused = []

    found = list_files("data.files", ["texts"], lambda place, error: refused.append(place))

    assert found == [Path("texts/b.txt")]
    assert refused == ["texts/closed"]


@pytest.mark.parametrize("backwards", [False, True])
def test_of_two_names_of_a_folder_the_first_counts_in_any_order_of_the_file_system(
    monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    Path("texts/another").symlink_to("closed")
    walk = os.walk

    def ordered(*arguments: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for current, folders, names in walk(*arguments, **options):
            folders.sort(reverse=backwards)
            yield current, folders, names

    monkeypatch.setattr(os, "walk", ordered)

    assert list_files("data.files", ["texts"]) == [Path("texts/another/a.txt"), Path("texts/b.txt")]
