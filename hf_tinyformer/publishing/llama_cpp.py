"""Ask llama.cpp, in a process of its own, what it makes of a GGUF file."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_tinyformer.errors import ExportError

SECONDS = 1800
"""After which llama.cpp is taken to be stuck."""


@dataclass(frozen=True)
class Answers:
    """What llama.cpp gave."""

    tokens: list[list[int]]
    """Of each text."""

    scores: np.ndarray
    """Log-probabilities of the token after each row, shape `(rows, vocab_size)`."""

    greedy: list[int]
    """What it added to the prompt."""

    tokens_per_second: float
    """How fast it wrote that, one token after another."""


def has_llama_cpp() -> bool:
    """Tell whether llama.cpp is installed, as the package xllamacpp."""
    return importlib.util.find_spec("xllamacpp") is not None


def _find_cause(output: str) -> str:
    """Find the line that says what went wrong: llama.cpp's first error, or Python's last."""
    lines = output.strip().splitlines() or ["it said nothing"]
    errors = [line.partition(" E ")[2] for line in lines if " E " in line]
    return (errors or lines[-1:])[0].strip().rstrip(".")


def ask(
    model: Path,
    *,
    context: int,
    vocab_size: int,
    texts: Sequence[str] = (),
    rows: Sequence[Sequence[int]] = (),
    prompt: Sequence[int] = (),
    max_new_tokens: int = 0,
) -> Answers:
    """Let llama.cpp cut texts, score what follows rows of tokens, and continue a prompt greedily.

    Args:
        model: A GGUF file.
        context: Tokens that a row may have.
        vocab_size: Tokens that the model knows.
        texts: Texts to cut as prompts; a special token in them counts as one.
        rows: Rows of tokens.
        prompt: What to continue.
        max_new_tokens: By how many tokens; 0 for not at all.

    Returns:
        Its answers, computed with float32 keys and values and without flash attention.

    Raises:
        ExportError: If llama.cpp cannot load or run the file.
    """
    question = {
        "model": str(model),
        "context": context,
        "vocab_size": vocab_size,
        "texts": list(texts),
        "rows": [list(row) for row in rows],
        "prompt": list(prompt),
        "max_new_tokens": max_new_tokens,
    }
    program = Path(__file__).with_name("llama_cpp_server.py")
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "question.json", Path(folder) / "answers.npz"
        asked.write_text(json.dumps(question), encoding="utf-8")
        # -P: the program's own folder has modules that are called like libraries.
        command = [sys.executable, "-P", str(program), str(asked), str(answered)]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
        if done.returncode or not answered.is_file():
            raise ExportError(
                f"llama.cpp ended with status {done.returncode} on {model.name}: "
                f"{_find_cause(done.stderr)}. "
                "Nothing was written; please report this with the checkpoint's config.json."
            )
        with np.load(answered, allow_pickle=False) as arrays:
            return Answers(
                tokens=[arrays[f"tokens_{index}"].tolist() for index in range(len(texts))],
                scores=arrays["scores"],
                greedy=arrays["greedy"].tolist() if max_new_tokens else [],
                tokens_per_second=float(arrays["tokens_per_second"]) if max_new_tokens else 0.0,
            )
