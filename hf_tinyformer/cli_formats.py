"""The commands that lead to other programs' formats and back: `tinyformer export` and `import`."""

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers.utils import logging as transformers_logging

from hf_tinyformer.errors import ExportError
from hf_tinyformer.terminal import say


class Format(enum.StrEnum):
    """What a model can be written as."""

    NATIVE = "native"
    GGUF = "gguf"
    ONNX = "onnx"


class Storage(enum.StrEnum):
    """What the matrices of a GGUF file are stored in."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


def _say_how_close(sentence: str, record: Mapping[str, Any]) -> None:
    say(
        f"{sentence} Its logits differ by {record['largest_difference']:.2g} at most; "
        f"{record['tolerance']:.2g} would be rounding."
    )


def export_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a model, runs/demo/final.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; an older export is replaced.")],
    to: Annotated[
        Format,
        typer.Option(help="A class of transformers itself, llama.cpp's format, or onnxruntime's."),
    ],
    dtype: Annotated[
        Storage | None,
        typer.Option(
            help="For gguf: what weights are stored in (f16 if left out); q8_0 is a byte each."
        ),
    ] = None,
) -> None:
    """Write a model for other programs, once it has given the same logits there."""
    transformers_logging.disable_progress_bar()
    if not checkpoint.is_dir():
        # The loaders would fetch an id, but card and generation settings are read from the folder.
        raise ExportError(
            f"{checkpoint} is no folder here, but an export is made from one, such as "
            f"runs/demo/final. Bring a model of the Hub here first: tinyformer pull USER/NAME "
            "my_model."
        )
    if dtype is not None and to is not Format.GGUF:
        raise ExportError(
            f"--dtype is {dtype.value}, but only --to gguf stores weights in another format, and "
            f"--to is {to.value}. Leave --dtype away."
        )
    if to is Format.NATIVE:
        from hf_tinyformer.publishing.native import export_native

        record = export_native(checkpoint, out)
    elif to is Format.GGUF:
        from hf_tinyformer.publishing.gguf import export_gguf

        record = export_gguf(checkpoint, out, dtype=(dtype or Storage.F16).value)
    else:
        from hf_tinyformer.publishing.onnx import export_onnx

        record = export_onnx(checkpoint, out)
    _say_how_close(f"{out} holds the model as {to.value} ({record['architecture']}).", record)


def import_stock(
    source: Annotated[
        str, typer.Argument(help="GPT-2, Llama, Qwen3, ...: folder, .gguf file or id on the Hub.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write; an older import is replaced.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Read a model of another make into ours, once it has given the same logits here."""
    from hf_tinyformer.publishing.importing import import_checkpoint

    transformers_logging.disable_progress_bar()
    record = import_checkpoint(source, out, revision=revision)
    _say_how_close(f"{out} holds the model; it was a {record['architecture']}.", record)
