"""The rooms' import rules, read from the source with `ast`: an arrow points down, never across."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_tinyformer"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Which parts of the house each part may import from; a room may always import itself.
BELOW = {
    "errors": set(),
    "artifacts": {"errors"},
    "model": set(),
    "data": {"errors", "artifacts"},
    "inference": {"errors", "artifacts", "data", "model"},
    "training": {"errors", "artifacts", "data", "model", "inference"},
    "publishing": {"errors", "artifacts", "data", "model", "inference"},
    "run_config": {"errors", "artifacts", "data", "model", "inference", "training", "publishing"},
}
BELOW["pipeline"] = BELOW["run_config"] | {"run_config"}
BELOW["prepared"] = BELOW["run_config"] | {"run_config"}
BELOW["first_weights"] = BELOW["run_config"] | {"run_config"}
BELOW["pipeline"] |= {"prepared", "first_weights"}
BELOW["terminal"] = set()
BELOW["cli_data"] = BELOW["pipeline"] | {"pipeline", "progress", "terminal"}
BELOW["cli_formats"] = BELOW["cli_data"]
BELOW["cli_tokenizer"] = BELOW["cli_data"]
BELOW["cli"] = BELOW["cli_data"] | {"cli_data", "cli_formats", "cli_tokenizer"}
BELOW["progress"] = BELOW["pipeline"]
BELOW["adapters"] = {"model"}
BELOW["__init__"] = {"errors", "model", "adapters"}
BELOW["__main__"] = {"cli"}

# The rooms within the data room, each with those that it may import from.
WITHIN_DATA = {
    "text": {"text"},
    "tokenization": {"text", "tokenization"},
    "store": {"text", "tokenization", "store"},
}

# What a checkpoint may need wherever it is loaded.
PORTABLE = {"torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
# Loading one of these takes long or may fail, so it happens only where it is used.
OPTIONAL = {"matplotlib", "tensorboard", "trackio", "wandb"}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_names(tree: ast.AST) -> list[tuple[int, str]]:
    """List (level, module) of every import below a node, relative ones with their dots counted."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def identify(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_imports_point_down_and_never_across(path: Path) -> None:
    room = room_of(path)
    for level, module in imported_names(parse(path)):
        if level == 0 and module.split(".")[0] == "hf_tinyformer":
            parts = module.split(".")
            assert len(parts) > 1, "import names from their module, not from the package"
            assert parts[1] == room or parts[1] in BELOW[room], f"{room} must not import {module}"
        if level:
            assert room == "model", "imports outside the model room are absolute"


@pytest.mark.parametrize("room", sorted(WITHIN_DATA))
def test_within_data_imports_follow_the_walk_from_text_to_batches(room: str) -> None:
    modules = list((PACKAGE / "data" / room).glob("*.py"))
    assert len(modules) > 1
    for path in modules:
        for _, module in imported_names(parse(path)):
            parts = module.split(".")
            if parts[:2] == ["hf_tinyformer", "data"]:
                assert parts[2] in WITHIN_DATA[room], f"{identify(path)} must not import {module}"


def test_every_module_of_the_data_room_is_in_one_of_its_rooms() -> None:
    inside = {
        path.relative_to(PACKAGE / "data").parts[0] for path in MODULES if room_of(path) == "data"
    }
    assert inside == {"__init__.py", *WITHIN_DATA}


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=identify)
def test_model_files_are_portable(path: Path) -> None:
    for level, module in imported_names(parse(path)):
        # Transformers copies `from .sibling import Name` only; other forms break saving or loading.
        assert level <= 1
        if level == 1:
            assert module
            assert "." not in module
        else:
            assert module.split(".")[0] in PORTABLE, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=identify)
def test_no_text_line_of_a_model_file_looks_like_a_relative_import(path: Path) -> None:
    # Transformers scans the raw text, so a docstring line of that form makes saving fail.
    code_lines = {node.lineno for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom)}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith(("from .", "import .")):
            assert number in code_lines, f"{path.name}:{number}"


def test_strict_configuration_keeps_its_annotations_alive() -> None:
    text = (PACKAGE / "model" / "configuration_tinyformer.py").read_text(encoding="utf-8")
    assert "from __future__ import annotations" not in text


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_optional_libraries_are_imported_where_they_are_used(path: Path) -> None:
    top_level = [node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    for statement in top_level:
        for level, module in imported_names(statement):
            assert level or module.split(".")[0] not in OPTIONAL, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_no_module_has_a_name_that_says_nothing(path: Path) -> None:
    assert path.stem not in {"utils", "common", "helpers", "misc", "base"}


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    if room_of(path) in {"cli", "cli_data", "cli_formats", "cli_tokenizer", "progress", "terminal"}:
        return
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "exit", "quit"}, f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "exit"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_nothing_unpickles_or_runs_text(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = (node.value.id, node.attr)
            assert called not in {("torch", "load"), ("yaml", "unsafe_load")}, str(called)
    assert not any(
        name.split(".")[0] in {"pickle", "dill", "joblib"}
        for _, name in imported_names(parse(path))
    )
