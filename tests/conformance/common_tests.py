"""transformers' own tests, of the version that is installed, as a package that pytest can run.

They are not committed here. The source distribution on PyPI carries `tests/test_*.py`, and in them
the mixins that every model of transformers has to pass; pip fetches it into a cache folder that git
ignores. What those files import and the distribution leaves out comes from a checkout of the
repository if one is named, otherwise from `standins/`.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .tiny_hub import write_tiny_hub

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".conformance"
CHECKOUT_VARIABLE = "TRANSFORMERS_CHECKOUT"

# Parts of a checkout's tests/ that the common tests import.
FROM_A_CHECKOUT = (
    "causal_lm_tester.py",
    "distributed_testing_utils.py",
    "exporters",
    "generation",
    "pipelines",
    "utils",
)
LARGEST_TEST_FILE = 4 * 2**20


class CommonTestsUnavailableError(Exception):
    """The tests of the installed transformers cannot be had; the text says why."""


@dataclass(frozen=True)
class Origin:
    """Where the tests of a run came from."""

    transformers: str
    """The version that is installed, and whose source distribution was read."""

    checkout: str | None
    """The version in the checkout that filled the gaps; `None`: the stand-ins did."""


def installed_version() -> str:
    """Name the transformers that is installed."""
    return importlib.metadata.version("transformers")


def fetch_source_distribution(version: str, cache: Path = CACHE) -> Path:
    """Fetch the source distribution of a version of transformers, unless the cache holds it.

    pip checks the file against the hash that the index states.

    Args:
        version: Such as `"5.23.0"`.
        cache: Folder to keep it in.

    Returns:
        The archive.

    Raises:
        CommonTestsUnavailableError: If pip cannot fetch it.
    """
    archive = cache / f"transformers-{version}.tar.gz"
    if archive.exists():
        return archive
    incoming = cache / f"incoming-{os.getpid()}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", ":all:"]
    if importlib.util.find_spec("setuptools") is not None:
        # Even to download, pip asks the package's build system for its name; spare it fetching one.
        command.append("--no-build-isolation")
    command += ["--dest", str(incoming), f"transformers=={version}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        (incoming / archive.name).replace(archive)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise CommonTestsUnavailableError(
            f"The source distribution of transformers {version} could not be fetched "
            f"({said[-1] if said else 'pip said nothing'}). Connect, or put "
            f"{archive.name} into {cache.name}/."
        ) from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return archive


def copy_test_files(archive: Path, root: str, target: Path) -> None:
    """Copy the files of `tests/` itself out of an archive.

    Args:
        archive: The source distribution.
        root: Its one folder.
        target: Folder for the files.

    Raises:
        CommonTestsUnavailableError: If one of them is no ordinary file.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.parts[:2] != (root, "tests") or len(path.parts) != 3 or path.suffix != ".py":
                continue
            if not member.isfile() or member.size > LARGEST_TEST_FILE:
                raise CommonTestsUnavailableError(
                    f"{archive.name} holds {member.name}, which is no ordinary file of at most "
                    f"{LARGEST_TEST_FILE} bytes. Delete the archive; it is fetched again."
                )
            (target / path.name).write_bytes(tar.extractfile(member).read())


def unpack_tests(archive: Path, version: str, target: Path) -> None:
    """Unpack the test files of a source distribution and nothing else.

    Args:
        archive: The source distribution.
        version: The version it has to be of.
        target: New folder for the files of its `tests/`.

    Raises:
        CommonTestsUnavailableError: If the archive is of another package or version, holds no
            common tests, or one of them is no ordinary file.
    """
    root = f"transformers-{version}"
    target.mkdir(parents=True)
    try:
        copy_test_files(archive, root, target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CommonTestsUnavailableError(
            f"{archive.name} cannot be read ({error}). Delete it; it is fetched again."
        ) from error
    if not (target / "test_modeling_common.py").exists():
        raise CommonTestsUnavailableError(
            f"{archive.name} holds no {root}/tests/test_modeling_common.py, so it is not the "
            f"source distribution of transformers {version}. Delete the archive."
        )


def find_checkout() -> Path | None:
    """Find the checkout of transformers that the environment names, if it names one.

    Raises:
        CommonTestsUnavailableError: If the named folder is none.
    """
    named = os.environ.get(CHECKOUT_VARIABLE)
    if not named:
        return None
    checkout = Path(named).expanduser().resolve()
    if not (checkout / "tests" / "causal_lm_tester.py").exists():
        raise CommonTestsUnavailableError(
            f"{CHECKOUT_VARIABLE} is {named}, but that folder holds no tests/causal_lm_tester.py. "
            "Name a checkout of the transformers repository, or unset it."
        )
    return checkout


def checkout_version(checkout: Path) -> str:
    """Read the version that a checkout states, such as `"5.16.0.dev0"`."""
    source = checkout / "src" / "transformers" / "__init__.py"
    stated = re.search(r'__version__ = "([^"]+)"', source.read_text()) if source.exists() else None
    return stated.group(1) if stated else "unknown"


def add_empty_pipeline_tests(tests: Path) -> None:
    """Give the pipeline mixin the rest of the names that it imports; no text model uses them."""
    source = (tests / "test_pipeline_mixin.py").read_text(encoding="utf-8")
    for module, name in re.findall(r"^from \.pipelines\.(\w+) import (\w+)$", source, re.MULTILINE):
        path = tests / "pipelines" / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(f"class {name}:\n    pass\n")


def assemble(folder: Path, subject: str) -> Origin:
    """Build the package of tests for one model in a new folder; pytest runs there.

    Args:
        folder: Where to; its `tests/` is the package.
        subject: One of `SUBJECTS`.

    Returns:
        Where the files came from.

    Raises:
        CommonTestsUnavailableError: If the files cannot be had.
    """
    if importlib.util.find_spec("parameterized") is None:
        raise CommonTestsUnavailableError(
            "The common tests import parameterized, which is missing. pip install parameterized."
        )
    version = installed_version()
    tests = folder / "tests"
    CACHE.mkdir(exist_ok=True)
    unpack_tests(fetch_source_distribution(version), version, tests)
    checkout = find_checkout()
    if checkout is not None:
        for name in FROM_A_CHECKOUT:
            source = checkout / "tests" / name
            if source.is_dir():
                shutil.copytree(source, tests / name)
            elif source.exists():
                shutil.copy(source, tests / name)
        if (checkout / "utils").exists():
            shutil.copytree(checkout / "utils", folder / "utils")
    for standin in (HERE / "standins").rglob("*.py"):
        path = tests / standin.relative_to(HERE / "standins")
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            shutil.copy(standin, path)
    add_empty_pipeline_tests(tests)
    # The tests look for the package's source beside themselves.
    (folder / "src").mkdir()
    package = Path(importlib.util.find_spec("transformers").origin).parent
    (folder / "src" / "transformers").symlink_to(package, target_is_directory=True)
    write_tiny_hub(folder / "tiny_hub", subject)
    shutil.copy(HERE / "subjects.py", tests / "test_subjects.py")
    for package_folder in (tests, *(path for path in tests.rglob("*") if path.is_dir())):
        (package_folder / "__init__.py").touch()
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n")
    return Origin(version, None if checkout is None else checkout_version(checkout))
