"""The commands under `tinyformer tokenizer`: train one, show how it cuts, measure and compare."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hf_tinyformer.terminal import ConfigArgument, OverridesArgument, console, say

if TYPE_CHECKING:
    from hf_tinyformer.data.tokenization.tokenizer_report import TokenizerReport

tokenizer_app = typer.Typer(
    help="Train a tokenizer, see how it cuts, compare it with others.", no_args_is_help=True
)

_COLOURS = ("black on cyan", "black on yellow", "black on green", "black on magenta")


@tokenizer_app.command("train")
def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; the run's own tokenizer/ if left out.")
    ] = None,
) -> None:
    """Train only the tokenizer of a run."""
    from contextlib import nullcontext

    from hf_tinyformer.artifacts import check_replaceable, hold_folder
    from hf_tinyformer.prepared import pin_data, prepare_tokenizer, text_dir
    from hf_tinyformer.run_config import load_run_config

    run_config = load_run_config(config, overrides or ())
    folder = output or run_config.run_dir / "tokenizer"
    if output is not None:
        check_replaceable(output, kind="tokenizer")
    with hold_folder(run_config.run_dir) if output is None else nullcontext():
        run_config = pin_data(run_config, text_dir(run_config))
        tokenizer = prepare_tokenizer(run_config, folder)
    say(f"{folder} holds a tokenizer of {len(tokenizer)} tokens.")


def _load(source: str) -> Any:
    from hf_tinyformer.errors import ArtifactError
    from hf_tinyformer.inference.loading import load_tokenizer_of

    tokenizer = load_tokenizer_of(source)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ArtifactError(
            f"{source} has a {type(tokenizer).__name__}, but only tokenizers with a tokenizer.json "
            "can be shown and measured. Choose one that has it."
        )
    return tokenizer


@tokenizer_app.command("show")
def show(
    folder: Annotated[str, typer.Argument(help="Folder or id of a tokenizer or a model.")],
    text: Annotated[str, typer.Argument(help="Text to cut.")],
) -> None:
    """Show how a tokenizer cuts a text, and whether the pieces give the text back."""
    from hf_tinyformer.data.text.documents import check_text
    from hf_tinyformer.data.tokenization.tokenizer import encode_documents
    from hf_tinyformer.data.tokenization.tokenizer_report import show_tokens

    check_text(text, "The text to cut")
    tokenizer = _load(folder)
    pieces = show_tokens(tokenizer, text)
    line = Text()
    for index, (_, piece) in enumerate(pieces):
        line.append(_printable(piece, "\u21b5\n"), style=_COLOURS[index % len(_COLOURS)])
    console.print(line)
    table = Table("id", "piece")
    for token_id, piece in pieces:
        table.add_row(str(token_id), Text(repr(piece)))
    console.print(table)
    num_bytes = len(text.encode())
    say(f"{len(pieces)} tokens, {num_bytes / max(1, len(pieces)):.2f} bytes a token")
    back = tokenizer.decode(encode_documents(tokenizer, [text])[0], skip_special_tokens=True)
    if back != text:
        say(f"They do not give the text back, but: {back}")


@tokenizer_app.command("report")
def report(
    tokenizers: Annotated[
        list[str], typer.Argument(help="Folders of tokenizers or models, or ids on the Hub.")
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="Glob of held-out texts; may be given repeatedly.")
    ] = None,
    text_field: Annotated[
        str, typer.Option(help="Field or column with the text, in records and tables.")
    ] = "text",
    config: Annotated[
        Path | None, typer.Option(help="Read the validation split of this run's YAML instead.")
    ] = None,
    max_megabytes: Annotated[
        float, typer.Option(min=0.001, help="Read the first texts only, up to this much.")
    ] = 20.0,
    top: Annotated[int, typer.Option(min=0, help="Tokens in each list.")] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON only.")
    ] = False,
) -> None:
    """Measure tokenizers side by side on text that they were not trained on."""
    from hf_tinyformer.data.tokenization.tokenizer_report import report_tokenizer

    texts = _read_texts(text or [], text_field, config, max_megabytes)
    reports = [report_tokenizer(name, _load(name), texts, num_shown=top) for name in tokenizers]
    if as_json:
        print(json.dumps([each.to_json() for each in reports], indent=2, ensure_ascii=False))
        return
    _print_reports(reports)


def _read_texts(
    patterns: list[str], text_field: str, config: Path | None, max_megabytes: float
) -> list[str]:
    from hf_tinyformer.data.text.corpus import iterate_documents
    from hf_tinyformer.data.text.files import read_files
    from hf_tinyformer.errors import ConfigError
    from hf_tinyformer.prepared import check_named, pin_data, text_dir
    from hf_tinyformer.run_config import load_run_config

    if bool(patterns) == (config is not None):
        raise ConfigError(
            f"{len(patterns)} of --text and {int(config is not None)} of --config are given, but "
            "a report reads the one or the other. Give --text 'held_out/*.txt'."
        )
    if config is not None:
        run_config = load_run_config(config, [])
        check_named(run_config, "to read")
        run_config = pin_data(run_config, text_dir(run_config))
        documents = iterate_documents(run_config.data, "validation")
    else:
        documents = read_files("--text", patterns, text_field)
    texts: list[str] = []
    room = max_megabytes * 1e6
    for document in documents:
        if room <= 0:
            break
        texts.append(document.text)
        room -= len(document.text.encode())
    return texts


def _printable(piece: str, line_end: str) -> str:
    return "".join(
        character if character.isprintable() else line_end if character == "\n" else "\ufffd"
        for character in piece
    )


def _table_of(
    reports: list["TokenizerReport"], *, first: str | None = None, title: str | None = None
) -> Table:
    table = Table(title=title)
    if first is not None:
        table.add_column(first)
    names = [Path(each.name).name for each in reports]
    for each, name in zip(reports, names, strict=True):
        table.add_column(Text(name if names.count(name) == 1 else each.name))
    return table


def _print_reports(reports: list["TokenizerReport"]) -> None:
    figures = _table_of(reports, first="")
    for label, key, form in (
        ("vocabulary", "vocab_size", "{:,}"),
        ("texts", "texts", "{:,}"),
        ("bytes of text", "bytes", "{:,}"),
        ("tokens", "tokens", "{:,}"),
        ("bytes a token", "bytes_per_token", "{:.2f}"),
        ("characters a token", "characters_per_token", "{:.2f}"),
        ("words a token", "words_per_token", "{:.2f}"),
        ("unknown tokens", "unknown_rate", "{:.2%}"),
        ("bytes hidden by them", "hidden_rate", "{:.2%}"),
        ("vocabulary used", "vocabulary_use", "{:.1%}"),
        ("texts that come back", "texts_unchanged", "{:,}"),
        ("... in another spelling (NFC)", "texts_equivalent", "{:,}"),
        ("... not", "texts_lost", "{:,}"),
    ):
        cells = (form.format(each.to_json()[key]) for each in reports)
        figures.add_row(label, *(Text(cell, justify="right") for cell in cells))
    console.print(figures)
    for title, name in (("longest tokens", "longest"), ("most frequent tokens", "most_frequent")):
        columns = [
            Text("\n").join(
                Text.assemble(
                    (_printable(piece, "\u21b5"), _COLOURS[row % len(_COLOURS)]), f" {count:,}"
                )
                for row, (piece, count) in enumerate(getattr(each, name))
            )
            for each in reports
        ]
        table = _table_of(reports, title=title)
        table.add_row(*columns)
        console.print(table)
    if any(each.hidden_bytes for each in reports):
        say(
            "Bytes behind unknown tokens are lost, and a model is never asked for them: do not "
            "compare its bits per byte with those of a tokenizer that hides none."
        )
