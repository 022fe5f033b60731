"""Every page of docs/recipes, run block by block against a tiny finished run.

A page is a program: its Python blocks share their names, its commands find the files that earlier
blocks wrote. What a page claims with `assert` is therefore tested here.
"""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hf_tinyformer import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs" / "recipes").glob("*.md"))

# Commands that a test of their own runs: they wait for somebody, or need several processes.
RUN_ELSEWHERE = {
    "tinyformer demo": "test_demo.py",
    "torchrun": "test_distributed.py",
    "accelerate launch": "test_distributed.py",
    "vllm serve": "needs a GPU; the contract is probed in tests/model",
}

pytestmark = pytest.mark.slow


def find_blocks(page: Path) -> list[tuple[str, str]]:
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(python|bash)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def find_commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def find_imports(page: Path) -> set[str]:
    names = {"lm_eval"} if "\nlm_eval " in page.read_text(encoding="utf-8") else set()
    for language, block in find_blocks(page):
        if language == "python":
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names.add((node.module or "").partition(".")[0])
    return names


def run_command(words: list[str]) -> None:
    if words[0] in ("pip", "make"):
        return
    if " ".join(words[:2]) in RUN_ELSEWHERE or words[0] in RUN_ELSEWHERE:
        return
    if words[0] == "tinyformer":
        with pytest.raises(SystemExit) as stop:
            cli.main(words[1:])
        assert stop.value.code in (0, None), words
        return
    assert words[0] == "lm_eval", f"nobody runs {words[0]}"
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_does_what_it_says(page: Path, clone: Path, capsys: pytest.CaptureFixture[str]):
    for name in sorted(find_imports(page)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    names: dict[str, object] = {"__name__": "__recipe__"}

    for number, (language, block) in enumerate(find_blocks(page)):
        if language == "python":
            exec(compile(block, f"{page.name} block {number}", "exec"), names)
        else:
            for words in find_commands(block):
                run_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_is_on_the_list(page: Path):
    listed = (ROOT / "docs" / "recipes" / "README.md").read_text(encoding="utf-8")

    assert page.name == "README.md" or f"({page.name})" in listed


def test_what_the_pages_install_are_extras_of_this_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    for page in PAGES:
        for named in re.findall(r"hf-tinyformer\[([\w,-]+)\]", page.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= set(extras), page.name
