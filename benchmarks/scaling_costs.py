"""Compute the tables of docs/scaling.md, from the formulas in hf_tinyformer/training/costs.py.

python benchmarks/scaling_costs.py            print them
python benchmarks/scaling_costs.py --write    put them into docs/scaling.md
"""

import re
import sys
from pathlib import Path
from typing import Any

from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.inference.sizes import format_bytes, measure_sizes
from hf_tinyformer.run_config import RunConfig, build_model_config
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.costs import (
    Activations,
    Counts,
    Sharing,
    StepCosts,
    count_parameters,
    measure_activations,
    step_costs,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
VOCABULARY = 50_304
BYTES_PER_SECOND = 50e9
"""A GPU's share of a 400 Gb/s network."""

# hidden size, layers, heads, key/value heads, tokens in a row, rows at once
SHAPES = {
    "0.12 B": (768, 12, 12, 12, 1024, 16),
    "1.5 B": (2048, 28, 16, 16, 2048, 4),
    "5.9 B": (4096, 32, 32, 8, 4096, 1),
}
PROCESSES = (1, 8, 64)
SHARINGS: tuple[Sharing, ...] = ("ddp", "fsdp2")


def build_config(shape: tuple[int, ...]) -> Any:
    hidden_size, layers, heads, key_value_heads, length, _ = shape
    run = RunConfig(
        data=DataConfig(builtin="python-stdlib", sequence_length=length),
        tokenizer=TokenizerConfig(vocab_size=VOCABULARY),
        train=TrainConfig(),
        model={
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
        },
    )
    return build_model_config(run, vocab_size=VOCABULARY)


def row(
    name: str, processes: int, sharing: Sharing, costs: StepCosts, optimizer: str
) -> tuple[str, ...]:
    return (
        name,
        f"{processes:,}",
        {"ddp": "DDP", "fsdp2": "FSDP2"}[sharing],
        optimizer,
        format_bytes(costs.weights + costs.gradients + costs.optimizer),
        format_bytes(costs.compute_weights),
        format_bytes(costs.activations),
        format_bytes(costs.muon_update),
        f"**{format_bytes(costs.memory)}**",
        format_bytes(costs.traffic),
        f"{costs.traffic / BYTES_PER_SECOND:.2f} s" if costs.traffic else "-",
    )


HEAD = (
    *("model", "GPUs", "how", "optimizer", "weights, gradients, state", "to compute with"),
    *("activations", "Muon's update", "memory of each", "sent by each, a step", "at 50 GB/s"),
)


def compute_rows() -> list[tuple[str, ...]]:
    rows = []
    for name, shape in SHAPES.items():
        config = build_config(shape)
        activations: dict[Sharing, Activations] = {
            sharing: measure_activations(config, length=shape[4], bf16=True, sharing=sharing)
            for sharing in SHARINGS
        }
        for optimizer in ("muon", "adamw"):
            counts: Counts = count_parameters(config, optimizer=optimizer)
            for processes in PROCESSES:
                for sharing in SHARINGS if processes > 1 else SHARINGS[:1]:
                    costs = step_costs(
                        counts,
                        activations[sharing],
                        sharing=sharing,
                        processes=processes,
                        micro_batch_size=shape[5],
                        num_micro_batches=1,
                        bf16=True,
                    )
                    if optimizer == "muon" or processes in (1, 8):
                        rows.append(row(name, processes, sharing, costs, optimizer))
    return rows


def render(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---", "---:", "---", "---", *["---:"] * (len(head) - 4)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def replace_table(text: str, table: str) -> str:
    return re.sub(
        r"(?<=<!-- costs -->\n\n).*?(?=\n<!-- end of costs -->)", lambda _: table, text, flags=re.S
    )


def main() -> None:
    table = render(HEAD, compute_rows())
    if sys.argv[1:] == ["--write"]:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(replace_table(text, table), encoding="utf-8")
    else:
        print(table)
        for name, shape in SHAPES.items():
            print(name, f"{measure_sizes(build_config(shape)).num_parameters:,} parameters")


if __name__ == "__main__":
    main()
