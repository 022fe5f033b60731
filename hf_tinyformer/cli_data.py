"""The commands under `tinyformer data`: prepare a corpus, describe it, look for duplicates."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hf_tinyformer.terminal import ConfigArgument, OverridesArgument, console, say

if TYPE_CHECKING:
    from hf_tinyformer.data.store.statistics import Group

data_app = typer.Typer(
    help="Prepare a corpus once, describe it, look for duplicates.", no_args_is_help=True
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures as JSON only.")]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@data_app.command("prepare")
def prepare(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to fill; data.prepared, or the run's folder, if left out."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, or tasks at a time.")] = 1,
    executor: Annotated[
        str | None, typer.Option(help="datatrove executor: local, slurm or ray.")
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Tasks that an executor deals the corpus into.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the executor, such as partition=cpu."),
    ] = None,
) -> None:
    """Train the tokenizer and cut the text, once for many runs, which name it by data.prepared.

    The same command goes on where the last one stopped, whatever stopped it.
    """
    from hf_tinyformer.data.store.store_job import StoreJob, run_job
    from hf_tinyformer.errors import ConfigError
    from hf_tinyformer.prepared import prepare_corpus, text_dir
    from hf_tinyformer.progress import parts_bar
    from hf_tinyformer.run_config import load_run_config

    for name, value in (("--tasks", tasks), ("--option", " ".join(option or []))):
        if value and executor is None:
            raise ConfigError(
                f"{name} is {value}, but it is an executor's, and --executor is not given. Add "
                "--executor local, slurm or ray, or leave it out."
            )
    run_config = load_run_config(config, overrides or ())
    folder = output or text_dir(run_config)

    def make(job: StoreJob) -> None:
        if executor is not None:
            from hf_tinyformer.data.store import distributed_preparation as distributed

            options = distributed.parse_options(option or [])
            built = distributed.build_executor(
                executor, job, workers=workers, tasks=tasks, options=options
            )
            distributed.run_executor(executor, built)
            return
        with parts_bar(console) as on_progress:
            run_job(job, workers=workers, on_progress=on_progress)

    stores = prepare_corpus(run_config, folder, make=make)
    if stores is None:
        say(f"The tasks are queued. When they are done, {folder}/tokens is there.")
        return
    for name, store in (("train", stores.train), ("validation", stores.validation)):
        say(f"{name:<10} {store.num_documents:,} documents, {store.num_tokens:,} tokens")
    say(f"{folder} holds the tokenizer and the tokens. Runs use them by data.prepared={folder}")


@data_app.command("stats")
def describe(
    source: Annotated[
        str, typer.Argument(help="YAML file of a run, or folder of a token store or of a run.")
    ],
    overrides: OverridesArgument = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="PNG of the lengths; statistics.png in the run's folder if left out."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count documents, bytes, tokens and scripts, and show how long documents are."""
    from hf_tinyformer.data.store.statistics import draw_lengths
    from hf_tinyformer.prepared import describe_source
    from hf_tinyformer.progress import counting_bar

    with counting_bar(console, quiet=as_json, what="bytes read") as on_progress:
        groups, folder = describe_source(source, overrides or (), on_progress=on_progress)
    picture = picture or folder / "statistics.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw_lengths(groups, picture)
    if as_json:
        _print_json({"groups": [group.summary() for group in groups], "picture": str(picture)})
        return
    for group in groups:
        _show_group(group)
    say(f"Lengths as a picture: {picture}")


def _show_group(group: "Group") -> None:
    figures = group.summary()
    lengths = figures.pop("lengths", {})
    scripts = figures.pop("scripts", {})
    table = Table("what", "figure", title=f"{group.split}: {group.source}", title_justify="left")
    for name in ("split", "source"):
        figures.pop(name)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    for name in ("least", "median", "mean", "p90", "p99", "greatest"):
        if lengths:
            table.add_row(f"length, {name} ({lengths['unit']})", f"{lengths[name]:,}")
    for name, share in [item for item in scripts.items() if item[1] >= 0.0001][:6]:
        table.add_row(f"characters, {name}", f"{share:.2%}")
    console.print(table)
    most = max((count for *_, count in lengths.get("histogram", [])), default=1)
    for low, high, count in lengths.get("histogram", []):
        bar = "\u2588" * round(40 * count / most)
        console.print(Text(f"{low:>11,} to {high - 1:<11,} {bar} {count:,}"), soft_wrap=True)


@data_app.command("audit")
def audit(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    drop: Annotated[
        Path | None, typer.Option(help="File to write: what to leave out, for data.drop.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="JSON to write; audit.json in the run's folder if left out.")
    ] = None,
    near: Annotated[bool, typer.Option(help="Seek near duplicates too.")] = True,
    threshold: Annotated[
        float, typer.Option(help="Jaccard similarity from which two texts are near duplicates.")
    ] = 0.8,
    examples: Annotated[int, typer.Option(min=0, help="Examples of each kind.")] = 10,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Find exact, normalized and near duplicates within and between train and validation."""
    from dataclasses import replace

    from hf_tinyformer.artifacts import write_text
    from hf_tinyformer.data.text.audit import audit_corpus
    from hf_tinyformer.data.text.drop_list import write_drop_list
    from hf_tinyformer.prepared import check_named, pin_data, text_dir
    from hf_tinyformer.progress import counting_bar
    from hf_tinyformer.run_config import load_run_config

    run_config = load_run_config(config, overrides or ())
    check_named(run_config, "to audit")
    run_config = pin_data(run_config, text_dir(run_config))
    # A new list is made of the whole corpus, not of what an older one left.
    data = replace(run_config.data, drop=None) if drop else run_config.data
    with counting_bar(console, quiet=as_json, what="bytes read") as on_progress:
        found = audit_corpus(
            data,
            near=near,
            threshold=threshold,
            examples=examples,
            workers=workers,
            on_progress=on_progress,
        )
    report = report or run_config.run_dir / "audit.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    write_text(report, json.dumps(found.report, indent=2, ensure_ascii=False) + "\n")
    if drop:
        drop.parent.mkdir(parents=True, exist_ok=True)
        write_drop_list(drop, found.dropped)
    if as_json:
        _print_json(found.report)
        return
    _show_audit(found.report)
    say(f"The report is in {report}.")
    if drop:
        say(f"{drop} lists what to leave out: set data.drop={drop}")


def _show_audit(report: dict[str, Any]) -> None:
    documents, search = report["documents"], report["search"]
    say(f"{documents['train']:,} documents in train, {documents['validation']:,} in validation")
    kinds = [kind for kind in ("exact", "normalized", "near") if report[kind] is not None]
    table = Table("documents", *kinds)
    names = {
        "copies_within_train": "of train, again in train",
        "copies_within_validation": "of validation, again in validation",
        "train_also_in_validation": "of train, also in validation",
        "validation_also_in_train": "of validation, also in train",
    }
    for name, words in names.items():
        table.add_row(words, *(f"{report[kind][name]:,}" for kind in kinds))
    console.print(table)
    for example in report["examples"]:
        say(f"{example['kind']} ({example['similarity']:.2f}): {example['excerpt']!r}")
        say(f"    {example['first']}\n    {example['second']}")
    if search:
        say(
            f"Near means {search['threshold']:.0%} of {search['shingle_characters']}-character "
            f"pieces shared. {search['pairs_sharing_a_band']:,} pairs looked alike, "
            f"{search['pairs_compared_in_full']:,} were compared in full: "
            f"{search['pairs_confirmed']:,} are near, {search['pairs_refused']:,} are not. A pair "
            f"just at the threshold is found with {search['chance_of_finding_at_threshold']:.2%}."
        )
    gone = report["would_drop"]
    say(f"Dropping leaves out {gone['train']:,} of train and {gone['validation']:,} of validation.")
