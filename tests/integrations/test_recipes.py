"""Every page of docs/recipes, run block by block against a tiny finished run.

A page is a program: its Python blocks share their names, its commands find the files that earlier
blocks wrote. What a page claims with `assert` is therefore tested here.
"""

import importlib.util
import os
import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from integrations import recipe_runner
from integrations.recipe_runner import find_imports, run_page
from publishing.hub_server import TOKEN, HubServer

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "recipes").glob("*.md"))

pytestmark = pytest.mark.slow


def skip_unless_installed(page: Path) -> None:
    for name in sorted(find_imports(page)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.stem != "hub"], ids=lambda page: page.stem
)
def test_page_does_what_it_says(page: Path, clone: Path):
    skip_unless_installed(page)

    run_page(page)


def test_page_on_the_hub_does_what_it_says(clone: Path, tmp_path: Path):
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # huggingface_hub reads these when it is imported, so the page gets a process of its own.
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
    page = ROOT / "docs" / "recipes" / "hub.md"

    done = subprocess.run(
        [sys.executable, recipe_runner.__file__, str(page)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    server.shutdown()
    server.server_close()
    thread.join()

    assert done.returncode == 0, done.stderr
    assert server.repos["USER/demo"].private
    assert set(server.repos["USER/demo"].branches) == {"main", "wider"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_on_the_list(page: Path):
    listed = (ROOT / "docs" / "recipes" / "README.md").read_text(encoding="utf-8")

    assert page.name == "README.md" or f"({page.name})" in listed


def test_what_the_pages_install_are_extras_of_this_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for page in PAGES:
        for named in re.findall(r"hf-tinyformer\[([\w,-]+)\]", page.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= set(project["optional-dependencies"]), page.name
