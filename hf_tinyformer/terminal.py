"""What the commands share: the console, plain words on it, the arguments that most of them take."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

console = Console()

ConfigArgument = Annotated[Path, typer.Argument(help="YAML file, such as configs/demo.yaml.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE...", help="Settings over the file's, train.max_steps=500."),
]
CheckpointArgument = Annotated[
    str, typer.Argument(help="Folder of a model, such as runs/demo/final, or an id on the Hub.")
]


def say(text: str) -> None:
    """Print plain words: nothing in them is markup, and no control character reaches the screen."""
    printable = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    console.print(Text(printable), soft_wrap=True)
