"""Runs a page of docs/recipes in the working directory: Python blocks in order, commands between.

`python recipe_runner.py PAGE` runs one in a process of its own, which pages that need settings of
the environment are run in.
"""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

from hf_tinyformer import cli

BLOCK = re.compile(r"^```(python|bash)(?: file=(\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Commands that are not run from a page, with the reason.
NOT_RUN = {
    "pip": "what is to be installed is there, or the page is skipped",
    "tinyformer demo": "serves until stopped; test_demo.py",
    "accelerate launch": "names GPUs; tests/training runs it with two CPU processes",
}


def find_commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def find_imports(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    names = {"lm_eval"} if "\nlm_eval " in text else set()
    for language, _, block in BLOCK.findall(text):
        if language == "python":
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names.add((node.module or "").partition(".")[0])
    return names


def run_command(words: list[str]) -> None:
    if words[0] in NOT_RUN or " ".join(words[:2]) in NOT_RUN:
        return
    if words[0] == "tinyformer":
        code = None
        try:
            cli.main(words[1:])
        except SystemExit as stop:
            code = stop.code
        assert code in (0, None), words
        return
    modules = {"lm_eval": "lm_eval", "torchrun": "torch.distributed.run"}
    command = [sys.executable, "-m", modules[words[0]], *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


def run_page(page: Path) -> None:
    names: dict[str, object] = {"__name__": "__recipe__"}
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        language, file, block = match.groups()
        if file:
            Path(file).write_text(block, encoding="utf-8")
        elif language == "python":
            exec(compile(block, f"{page.name}:{match.start()}", "exec"), names)
        else:
            for words in find_commands(block):
                run_command(words)


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
