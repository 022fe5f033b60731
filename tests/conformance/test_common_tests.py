"""Getting transformers' tests: only what is expected is unpacked, and what is missing is said."""

import io
import subprocess
import tarfile

import pytest
from conformance import common_tests
from conformance.common_tests import CommonTestsUnavailableError, find_checkout, unpack_tests

COMMON = "transformers-1.0/tests/test_modeling_common.py"


def archive(path, members):
    """Write an archive of files with these texts; a tuple is a link of that type and target."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content.encode()))
    return path


def test_nothing_but_the_test_files_is_unpacked(tmp_path):
    source = archive(
        tmp_path / "source.tar.gz",
        {
            COMMON: "common = 1",
            "transformers-1.0/setup.py": "raise SystemExit",
            "transformers-1.0/tests/../../escaped.py": "",
            "transformers-1.0/tests/deep/test_more.py": "",
            "transformers-1.0/tests/data.json": "{}",
            "/transformers-1.0/tests/test_rooted.py": "",
        },
    )

    unpack_tests(source, "1.0", tmp_path / "out" / "tests")

    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["test_modeling_common.py"]
    assert (tmp_path / "out/tests/test_modeling_common.py").read_text() == "common = 1"
    assert not list(tmp_path.rglob("escaped.py"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_refused(kind, tmp_path):
    source = archive(
        tmp_path / "source.tar.gz", {"transformers-1.0/tests/test_a.py": (kind, "/etc/passwd")}
    )

    with pytest.raises(CommonTestsUnavailableError, match=r"test_a\.py, which is no ordinary file"):
        unpack_tests(source, "1.0", tmp_path / "tests")


def test_an_archive_of_another_version_is_named(tmp_path):
    source = archive(tmp_path / "source.tar.gz", {COMMON: ""})

    with pytest.raises(
        CommonTestsUnavailableError, match=r"not the source distribution of .* 2\.0"
    ):
        unpack_tests(source, "2.0", tmp_path / "tests")


def test_a_broken_archive_is_named(tmp_path):
    whole = archive(tmp_path / "source.tar.gz", {COMMON: "common = 1" * 1000})
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(whole.read_bytes()[:100])

    with pytest.raises(CommonTestsUnavailableError, match=r"broken\.tar\.gz cannot be read"):
        unpack_tests(broken, "1.0", tmp_path / "tests")


def test_without_a_network_the_reason_says_what_to_do(tmp_path, monkeypatch):
    def fail(command, **settings):
        raise subprocess.CalledProcessError(1, command, stderr="warning\nERROR: no connection\n")

    monkeypatch.setattr(common_tests.subprocess, "run", fail)

    with pytest.raises(
        CommonTestsUnavailableError,
        match=r"transformers 1\.0 could not be fetched \(ERROR: no connection\)\. Connect, or put",
    ):
        common_tests.fetch_source_distribution("1.0", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_fetched_archive_is_kept_and_not_fetched_again(tmp_path, monkeypatch):
    (tmp_path / "transformers-1.0.tar.gz").touch()
    monkeypatch.setattr(common_tests.subprocess, "run", None)

    kept = common_tests.fetch_source_distribution("1.0", tmp_path)

    assert kept == tmp_path / "transformers-1.0.tar.gz"


def test_a_folder_that_is_no_checkout_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_CHECKOUT", str(tmp_path))
    with pytest.raises(CommonTestsUnavailableError, match=r"holds no tests/causal_lm_tester\.py"):
        find_checkout()

    monkeypatch.delenv("TRANSFORMERS_CHECKOUT")
    assert find_checkout() is None
