"""The command line: `tinyformer STAGE ...`. With train.py, the only place that prints or exits."""

import gc
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.table import Table
from rich.text import Text
from transformers.utils import logging as transformers_logging

from hf_tinyformer.cli_data import data_app
from hf_tinyformer.cli_formats import export_checkpoint, import_stock
from hf_tinyformer.cli_tokenizer import tokenizer_app
from hf_tinyformer.errors import ConfigError, TinyFormerError
from hf_tinyformer.terminal import (
    CheckpointArgument,
    ConfigArgument,
    OverridesArgument,
    console,
)
from hf_tinyformer.terminal import say as _say

INTERRUPTED = 75
"""Exit status of a run that was stopped and can go on (EX_TEMPFAIL of sysexits.h)."""

app = typer.Typer(
    help="From raw text to a Hugging Face model that AutoModel loads.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")
app.command("export")(export_checkpoint)
app.command("import")(import_stock)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _start_logging(stream: TextIO) -> None:
    level = logging.INFO if _is_main_process() else logging.ERROR
    if isinstance(stream, io.TextIOWrapper):
        # The name of a file need not be text.
        stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("hf_tinyformer")
    package.handlers = [handler]
    package.setLevel(level)
    package.propagate = False


def _hide_bars_of_libraries() -> None:
    """Keep transformers from drawing a bar for each small local file, over what matters."""
    transformers_logging.disable_progress_bar()


def _load_checkpoint(checkpoint: str, device: str | None = None) -> tuple[Any, Any]:
    import torch

    from hf_tinyformer.inference.loading import load_checkpoint

    if Path(checkpoint).exists():
        _hide_bars_of_libraries()
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_checkpoint(checkpoint, device=chosen)


@app.command()
def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print every setting with its meaning, and stop.")
    ] = False,
) -> None:
    """Train a model from raw text: tokenizer, tokens, training, final folder.

    The same command goes on where the last one stopped. Ctrl-C writes a checkpoint first.
    """
    from hf_tinyformer.run_config import explain, load_run_config

    run_config = load_run_config(config, overrides or ())
    if show:
        print(explain(run_config), end="")
        return
    from hf_tinyformer.pipeline import run_pipeline
    from hf_tinyformer.progress import TrainingDisplay
    from hf_tinyformer.training.processes import leave_together

    _hide_bars_of_libraries()
    with TrainingDisplay(console, quiet=not _is_main_process()) as display:
        result = run_pipeline(run_config, reporter=display)
    leave_together()
    if not _is_main_process():
        raise typer.Exit(0 if result.final_dir else INTERRUPTED)
    if result.final_dir is None:
        # Another value would begin again, or go on from the same place as this time.
        same = "the same command"
        how = same if run_config.train.resume == "auto" else f"{same} with train.resume=auto"
        _say(
            f"Stopped after step {result.training.step}; {result.training.checkpoint} holds it. "
            f"Run {how} to go on."
        )
        raise typer.Exit(INTERRUPTED)
    read = ", ".join(f"{name} {count:.2f}" for name, count in result.training.epochs.items())
    _say(f"Times that each source was read: {read}.")
    _say(f"The model is in {result.final_dir}. Try: tinyformer generate {result.final_dir}")


@app.command()
def evaluate(
    checkpoint: CheckpointArgument,
    text: Annotated[
        list[str] | None, typer.Option(help="Glob of texts to score; may be given repeatedly.")
    ] = None,
    text_field: Annotated[
        str, typer.Option(help="Field or column with the text, in records and tables.")
    ] = "text",
    blimp: Annotated[Path | None, typer.Option(help="BLiMP as .jsonl.")] = None,
    lambada: Annotated[Path | None, typer.Option(help="LAMBADA as .jsonl.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows scored at once.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON only.")] = False,
    like_lm_eval: Annotated[
        bool,
        typer.Option("--like-lm-eval", help="Score --text as lm-evaluation-harness counts."),
    ] = False,
) -> None:
    """Score a model: loss, perplexity and bits per byte on any text; BLiMP; LAMBADA."""
    from hf_tinyformer.progress import counting_bar

    if not (text or blimp or lambada):
        raise ConfigError("there is nothing to score. Give --text, --blimp or --lambada.")
    model, tokenizer = _load_checkpoint(checkpoint, device)
    figures: dict[str, Any] = {}
    with counting_bar(console, quiet=as_json) as on_progress:
        if text:
            from hf_tinyformer.data.text.files import read_files
            from hf_tinyformer.inference.scoring import evaluate_texts

            texts = (document.text for document in read_files("--text", text, text_field))
            figures["text"] = evaluate_texts(
                model,
                tokenizer,
                texts,
                like_lm_eval=like_lm_eval,
                batch_size=batch_size,
                on_progress=on_progress,
            )
        if blimp:
            from hf_tinyformer.inference.benchmarks import evaluate_blimp

            figures["blimp"] = evaluate_blimp(
                model, tokenizer, blimp, batch_size=batch_size, on_progress=on_progress
            )
        if lambada:
            from hf_tinyformer.inference.benchmarks import evaluate_lambada

            figures["lambada"] = evaluate_lambada(
                model, tokenizer, lambada, batch_size=batch_size, on_progress=on_progress
            )
    _show_figures(figures, as_json=as_json)


def _show_figures(figures: dict[str, Any], *, as_json: bool) -> None:
    from dataclasses import asdict

    plain = {name: asdict(value) for name, value in figures.items()}
    if as_json:
        print(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    table = Table("what", "figure", "value")
    for name, values in plain.items():
        for key, value in values.items():
            for label, number in value.items() if isinstance(value, dict) else [("", value)]:
                shown = f"{number:.4f}" if isinstance(number, float) else f"{number:,}"
                table.add_row(Text(name), Text(f"{key} {label}".strip()), Text(shown))
    console.print(table)


@app.command()
def generate(
    checkpoint: CheckpointArgument,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the K likeliest; 0: all.")] = 50,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest that sum to P.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen if left out.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Talk with a model that has a chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: what it is told first.")] = None,
) -> None:
    """Continue a text, word by word as it comes; or, with --chat, talk.

    With --chat and a PROMPT, one answer is given. Without one, each line that you type is a turn;
    /new forgets the conversation, and an empty line ends it.
    """
    from transformers import TextStreamer

    from hf_tinyformer.inference.generation import generate_text

    model, tokenizer = _load_checkpoint(checkpoint, device)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "streamer": TextStreamer(tokenizer, skip_prompt=chat, skip_special_tokens=True),
    }
    if chat:
        _talk(model, tokenizer, prompt, system, settings)
    else:
        generate_text(model, tokenizer, prompt, **settings)


def _talk(
    model: Any, tokenizer: Any, prompt: str, system: str | None, settings: dict[str, Any]
) -> None:
    from hf_tinyformer.inference.chat import Conversation

    conversation = Conversation(model, tokenizer, system=system)
    if prompt:
        conversation.reply(prompt, **settings)
        return
    is_asked = sys.stdin.isatty()
    while line := _read_line("> " if is_asked else ""):
        if line == "/new":
            conversation.forget()
        else:
            conversation.reply(line, **settings)


def _read_line(question: str) -> str:
    try:
        return input(question).strip()
    except (EOFError, KeyboardInterrupt):
        return ""


@app.command()
def demo(
    checkpoint: CheckpointArgument,
    host: Annotated[
        str, typer.Option(help="Address; this machine only if left out.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 7860,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen if left out.")] = None,
) -> None:
    """Open a page where the model writes token by token and shows its attention."""
    from hf_tinyformer.inference.demo import build_page, serve_page

    model, tokenizer = _load_checkpoint(checkpoint, device)
    folder = Path(checkpoint).resolve()
    page = build_page(
        model, tokenizer, name=folder.parent.name if folder.name == "final" else folder.name
    )
    address = serve_page(page, host=host, port=port, block=False)
    _say(f"{checkpoint} is at {address}. Ctrl-C ends it.")
    page.block_thread()


@app.command()
def info(
    source: Annotated[str, typer.Argument(help="YAML file of a run; folder or id of a model.")],
    overrides: OverridesArgument = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Show too what a step costs each of so many GPUs (YAML only)."),
    ] = None,
    fp32: Annotated[
        bool, typer.Option("--fp32", help="... computed in float32, not bf16.")
    ] = False,
) -> None:
    """Show a model's parameters by part, its FLOPs per token and its memory."""
    from hf_tinyformer.inference.sizes import measure_sizes, read_model_config
    from hf_tinyformer.run_config import build_model_config, load_run_config

    if source.endswith((".yaml", ".yml")):
        run_config = load_run_config(Path(source), overrides or ())
        vocab_size = run_config.tokenizer.vocab_size
        if run_config.init_from is not None:
            model_config = read_model_config(run_config.init_from)
        else:
            model_config = build_model_config(run_config, vocab_size=vocab_size)
    else:
        model_config = read_model_config(source)
        if processes is not None:
            raise ConfigError(
                f"--processes is {processes}, but what a step costs follows from a run's settings, "
                f"and {source} is no YAML file. Name the run's, such as configs/demo.yaml."
            )
    table = Table("", "", title=Text(source))
    for label, value in measure_sizes(model_config).rows():
        table.add_row(label, Text(value, justify="right"))
    console.print(table)
    if processes is not None:
        from hf_tinyformer.training.costs import compare_sharing

        ddp, fsdp2 = compare_sharing(
            model_config,
            run_config.train,
            length=run_config.data.sequence_length,
            processes=processes,
            bf16=not fp32,
        )
        table = Table(f"a step on each of {processes}", "DDP", "FSDP2")
        for (label, one), (_, other) in zip(ddp.rows(), fsdp2.rows(), strict=True):
            table.add_row(label, Text(one, justify="right"), Text(other, justify="right"))
        console.print(table)


@app.command()
def push(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a model, runs/demo/final.")],
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Anyone may see it.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; the main one if left out.")] = None,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload model",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Send a model to the Hub in one commit, private unless you say otherwise."""
    from hf_tinyformer.publishing.hub import push_folder

    def confirm(files: list[tuple[str, int]]) -> bool:
        for name, size in files:
            _say(f"{size:>14,}  {name}")
        visibility = "public" if public else "private"
        return yes or typer.confirm(f"Send these to {repo_id} ({visibility})?")

    url = push_folder(
        checkpoint,
        repo_id,
        private=not public,
        revision=revision,
        message=message,
        confirm=confirm,
    )
    _say(f"{url}" if url else "Nothing was sent.")


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the Hub.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write; must not be there yet.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Bring a model from the Hub into a folder."""
    from hf_tinyformer.publishing.hub import pull_folder

    pull_folder(repo_id, folder, revision=revision)
    _say(f"{repo_id} is in {folder}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error the user can put right is one line and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Where JSON is asked for, nothing else may stand on standard output.
    _start_logging(sys.stderr if "--json" in words else sys.stdout)
    # What was imported stays: the garbage collector need not look through it again and again.
    gc.freeze()
    try:
        app(args=words, prog_name="tinyformer")
    except TinyFormerError as error:
        _fail(str(error))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _fail(f"{name}{error.strerror or error}. Check the path, its permissions and free space.")


def _fail(message: str) -> None:
    if _is_main_process():
        print(f"tinyformer: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
