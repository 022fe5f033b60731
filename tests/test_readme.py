"""The documents say what is so: commands, settings, files and examples are checked or run."""

import ast
import dataclasses
import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from hf_tinyformer import cli
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.run_config import RunConfig, load_run_config, model_keys

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.ko.md")
DOCUMENTS = [
    *sorted(path.name for path in ROOT.glob("*.md") if path.name != "model_card.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def find_fences(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(name), flags=re.MULTILINE | re.DOTALL)


def find_commands(name: str) -> list[list[str]]:
    """The words of each command line in the document's bash fences, comments dropped."""
    lines = "\n".join(find_fences(name, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


ALL_COMMANDS = sorted({tuple(words) for name in DOCUMENTS for words in find_commands(name)})


def parse_tinyformer(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse as the command line would; an unknown command or option raises."""
    command: Any = typer.main.get_command(cli.app)
    name, rest = "tinyformer", list(words)
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, f"{name} has no command {rest[0]}"
        name, command, rest = f"{name} {rest[0]}", command.commands[rest[0]], rest[1:]
    return name, command.make_context(name, rest).params


def find_tree() -> dict[str, str]:
    """The annotated tree of README.md as path -> purpose."""
    fence = next(text for text in find_fences("README.md", "text") if "__init__.py" in text)
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in fence.splitlines():
        match = re.fullmatch(r"((?:│   |    )*)(?:[├└]── )?(\S+)(?: +(\S.*))?", line)
        assert match, line
        is_top = not re.match(r"[│├└ ]", line)
        depth = 0 if is_top else len(match[1]) // 4 + 1
        del folders[depth:]
        path = "/".join([*folders, match[2].rstrip("/")])
        if match[2].endswith("/"):
            folders.append(match[2].rstrip("/"))
        found[path] = match[3] or ""
    return found


@pytest.mark.parametrize("name", READMES)
def test_every_configuration_is_named_and_every_named_one_is_there(name: str) -> None:
    text = read(name)
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}

    assert set(re.findall(r"configs/[\w./-]+\.yaml", text)) <= there
    assert {path for path in there if Path(path).name not in text} == set()


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_command_line_is_one_that_the_programs_accept(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments.pop(0) == "launch"
        launch = launch_command_parser().parse_args(arguments)
        assert Path(launch.config_file).is_file()
        program, arguments = "python", [launch.training_script, *launch.training_script_args]
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE)
        assert [word for word in arguments if "=" not in word and word not in targets] == []
        return
    if program == "pip":
        assert arguments[0] == "install"
        return
    if program in ("lm_eval", "torchrun"):
        return  # tests/integrations/test_recipes.py runs them
    if program == "python" and arguments[0].startswith("benchmarks/"):
        build_parser = runpy.run_path(arguments[0])["build_parser"]
        build_parser().parse_args(arguments[1:])
        return
    if program == "python":
        assert arguments.pop(0) == "train.py"
        arguments = ["train", *arguments]
    else:
        assert program == "tinyformer", f"no check for {program}"
    _, settings = parse_tinyformer(arguments)
    config = settings.get("config") or settings.get("source", "")
    if str(config).endswith(".yaml"):
        load_run_config(Path(config), settings.get("overrides") or ())


def test_both_languages_give_the_same_commands() -> None:
    assert find_commands("README.ko.md") == find_commands("README.md")


def test_both_languages_give_the_same_python() -> None:
    korean, english = (
        [ast.dump(ast.parse(code)) for code in find_fences(name, "python")]
        for name in ("README.ko.md", "README.md")
    )
    assert korean == english


def test_both_languages_give_the_same_figures() -> None:
    # Figures stand in tables and in prose; a number with a unit or a decimal point is one.
    korean, english = (
        sorted(re.findall(r"\d+\.\d+|@@\w+@@", read(name)))
        for name in ("README.ko.md", "README.md")
    )
    assert korean == english


def test_tree_lists_every_module_with_its_purpose_and_nothing_else() -> None:
    tree = find_tree()
    modules = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hf_tinyformer").rglob("*.py")
        # A room's own __init__.py is what the room's line says.
        if path.name != "__init__.py" or path.parent.name == "hf_tinyformer"
    }

    assert {path for path in tree if path.endswith(".py") and "/" in path} == modules
    assert {path for path in tree if not (ROOT / path).exists()} == set()
    assert [path for path, purpose in tree.items() if not purpose] == []


def test_korean_tree_is_the_same_tree() -> None:
    def names(document: str) -> list[list[str]]:
        fences = [text for text in find_fences(document, "text") if "──" in text]
        return [re.findall(r"^[│├└─ ]*(\S+)", text, flags=re.MULTILINE) for text in fences]

    def entries(document: str) -> list[str]:
        return [
            word for fence in names(document) for word in fence if re.match(r"[\w.]+[/.]", word)
        ]

    assert entries("README.ko.md") == entries("README.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    links = re.findall(r"\]\(([^)#]+)", read(name))

    assert [link for link in links if "://" not in link and not (folder / link).exists()] == []


def settings_of(section: str) -> list[str]:
    if section == "model":
        return model_keys()
    owner = {part.name: part.type for part in dataclasses.fields(RunConfig)}[section]
    assert isinstance(owner, type)
    return [part.name for part in dataclasses.fields(owner)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings_that_are_named_exist(name: str) -> None:
    named = re.findall(r"`(model|data|tokenizer|train)\.(?!py|onnx|ggml)([a-z_0-9]+)", read(name))

    assert [key for section, key in named if key not in settings_of(section)] == []


@pytest.mark.parametrize("name", READMES)
def test_table_of_parts_gives_the_choices_and_defaults_of_the_code(name: str) -> None:
    rows = re.findall(r"^\| (`model\..*?) \| (.*?) \| (.*?) \|$", read(name), flags=re.MULTILINE)
    checked = 0
    for keys, choices, default in rows:
        for key in re.findall(r"`model\.(\w+)`", keys):
            field = TinyFormerConfig.__dataclass_fields__[key]
            words = tuple(re.findall(r"`(\w+)`", choices))
            if words and all(isinstance(word, str) for word in get_args(field.type) or (None,)):
                assert words == get_args(field.type), key
                checked += 1
            if default.startswith("`"):
                assert default.strip("`") == str(field.default).lower(), key
                checked += 1

    assert checked >= 10


def test_requirements_named_are_those_of_the_package() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    named = re.findall(r"`((?:torch|transformers)[<>=][^`]*)`", read("README.md"))

    assert len(named) == 2
    assert set(named) <= set(project["dependencies"])
    assert project["requires-python"] == ">=3.11"
    assert "Python 3.11 or newer" in read("README.md")


def test_changelog_begins_with_the_version_of_the_package() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    versions = re.findall(r"^## (\d+\.\d+\.\d+) ", read("CHANGELOG.md"), flags=re.MULTILINE)

    assert versions[0] == project["version"]


def test_test_command_is_what_ci_runs() -> None:
    assert ["make", "test"] in find_commands("README.md")
    assert "make test" in read(".ci/run").splitlines()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which `runs/demo/final` is a model, trained in two steps."""
    from hf_tinyformer.pipeline import run_pipeline
    from hf_tinyformer.training.metrics import NullReporter

    folder = tmp_path_factory.mktemp("readme")
    (folder / "texts").mkdir()
    for index in range(40):
        text = f"def add_{index}(left, right):\n    return left + right + {index}\n" * 4
        (folder / "texts" / f"{index}.txt").write_text(text, encoding="utf-8")
    pair = {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps."}
    blimp = {**pair, "UID": "agreement", "linguistics_term": "subject_verb_agreement"}
    (folder / "blimp.jsonl").write_text(json.dumps(blimp) + "\n", encoding="utf-8")
    (folder / "lambada_test.jsonl").write_text(
        '{"text": "She called the dog and fed the dog"}\n', encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        overrides = [
            "data.builtin=null",
            "data.files=[texts/*.txt]",
            "data.validation_fraction=0.2",
            "data.sequence_length=32",
            "tokenizer.vocab_size=300",
            "model.hidden_size=32",
            "model.num_hidden_layers=2",
            "train.global_batch_size=4",
            "train.max_steps=2",
            "train.warmup_steps=0",
            "train.sample_tokens=0",
            "train.mixed_precision=fp32",
        ]
        config = load_run_config(ROOT / "configs" / "demo.yaml", overrides)
        result = run_pipeline(config, reporter=NullReporter())
        assert result.final_dir == Path("runs/demo/final")
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(find_fences("README.md", "python"))))
def test_python_example_runs(
    index: int,
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tiny_run)
    code = find_fences("README.md", "python")[index]

    exec(compile(code, f"README.md example {index}", "exec"), {})

    assert "import " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    # push and pull need the Hub, recipes other runs; tests/publishing and tests/integrations.
    [
        tuple(words)
        for words in find_commands("README.md")
        if words[0] == "tinyformer" and words[1] in ("evaluate", "generate")
    ],
    ids=" ".join,
)
def test_command_on_a_finished_run_does_its_work(
    words: tuple[str, ...],
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tiny_run)
    if words[1] == "generate":
        words = (*words, "--max-new-tokens", "8")  # the last one given counts

    with pytest.raises(SystemExit) as stop:
        cli.main(list(words[1:]))

    assert stop.value.code in (0, None)
    assert capsys.readouterr().out.strip()
