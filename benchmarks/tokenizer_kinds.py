"""Compare kinds of tokenizer by what a small model does with them, at equal compute.

    python benchmarks/tokenizer_kinds.py --wiki ko_wikipedia --reviews ko_nsmc --work /tmp/kinds

For each kind: a tokenizer from the same text, then one model of the same shape, trained on as many
tokens as the budget of training FLOPs pays for (the output head included, see inference/sizes.py),
half of them from encyclopedia articles and half from film reviews. Then bits per byte of texts that
neither has seen. A kind with an unknown token hides bytes from its model, so its figure as it
stands is no code for the text. The last column makes it one: wherever the model writes `<unk>`, the
model of `bpe` spells what stands there, at what that costs it in this very place.

The folders have train and val (or test) .jsonl.xz files with a field `text`.
"""

import argparse
import json
import lzma
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from hf_tinyformer.data.tokenization.tokenizer import (
    count_hidden_bytes,
    encode_documents,
    load_tokenizer,
)
from hf_tinyformer.inference.loading import load_checkpoint
from hf_tinyformer.inference.scoring import cut_windows, evaluate_texts
from hf_tinyformer.inference.sizes import measure_sizes
from hf_tinyformer.pipeline import run_pipeline
from hf_tinyformer.prepared import prepare_tokenizer
from hf_tinyformer.run_config import build_model_config, load_run_config

KINDS = ("bpe", "jamo", "syllable", "word")


class Quiet:
    """Takes a run's progress and shows none of it."""

    def __getattr__(self, _name: str):
        return lambda *_arguments, **_settings: None


def read_texts(path: Path, num_bytes: int) -> Iterator[str]:
    """Give whole texts until there are enough bytes."""
    with lzma.open(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            text = json.loads(line)["text"]
            yield text
            num_bytes -= len(text.encode())
            if num_bytes <= 0:
                return


def write_subset(source: Path, target: Path, num_bytes: int) -> Path:
    """Write the first texts of a corpus as .jsonl, once."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8") as stream:
            for text in read_texts(source, num_bytes):
                stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return target


CONFIG = """
name: {kind}
output_dir: {work}/runs
data:
  sources:
    wiki: {{files: [{wiki}]}}
    reviews: {{files: [{reviews}]}}
  sequence_length: 256
tokenizer:
  kind: {kind}
  vocab_size: {vocab_size}
  train_bytes: 8_000_000
model:
  hidden_size: 128
  num_hidden_layers: 4
  num_attention_heads: 4
train:
  global_batch_size: 8
  warmup_steps: 20
  mixed_precision: fp32
  evaluate_every: 1000000
  save_every_steps: 1000000
  sample_prompt: "나는 학교에"
seed: {seed}
"""


def measure(kind: str, arguments: argparse.Namespace, files: dict[str, Path]) -> dict[str, Any]:
    """Train one kind's tokenizer and model, and score it on both corpora."""
    work = arguments.work / f"seed-{arguments.seed}"
    work.mkdir(parents=True, exist_ok=True)
    config_path = work / f"{kind}.yaml"
    config_path.write_text(
        CONFIG.format(
            kind=kind,
            work=work,
            vocab_size=arguments.vocab_size,
            seed=arguments.seed,
            wiki=files["wiki"],
            reviews=files["reviews"],
        )
    )
    config = load_run_config(config_path)
    tokenizer = prepare_tokenizer(config, config.run_dir / "tokenizer")
    sizes = measure_sizes(build_model_config(config, vocab_size=len(tokenizer)))
    tokens_a_step = config.train.global_batch_size * config.data.sequence_length
    steps = round(arguments.flops / sizes.training_flops_per_token / tokens_a_step)
    started = time.perf_counter()
    result = run_pipeline(
        load_run_config(config_path, [f"train.max_steps={steps}"]), reporter=Quiet(), cpu=True
    )
    row: dict[str, Any] = {
        "kind": kind,
        "vocabulary": len(tokenizer),
        "parameters": sizes.num_parameters,
        "tokens": steps * tokens_a_step,
        "training_flops": steps * tokens_a_step * sizes.training_flops_per_token,
        "seconds": round(time.perf_counter() - started),
    }
    model, tokenizer = load_checkpoint(result.final_dir)
    tokenizer = load_tokenizer(config.run_dir / "tokenizer")
    for name in ("wiki", "reviews"):
        texts = list(read_texts(getattr(arguments, name), arguments.held_out))
        scores = evaluate_texts(model, tokenizer, texts)
        encoded = encode_documents(tokenizer, texts)
        num_bytes = sum(len(text.encode()) for text in texts)
        inner = sum(map(len, encoded)) - 2 * len(texts)  # without <s> and </s>
        unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded)
        row[name] = {
            "bytes_per_token": num_bytes / inner,
            "unknown_tokens": unknown / inner,
            "hidden_bytes": sum(count_hidden_bytes(tokenizer, texts)) / num_bytes,
            "bits_per_byte": scores.bits_per_byte,
        }
    return row


def hidden_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Find the characters that unknown tokens stand for."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    pairs = zip(encoding.ids, encoding.offsets, strict=True)
    return [span for index, span in pairs if index == tokenizer.unk_token_id]


@torch.inference_mode()
def spell(model: Any, tokenizer: Any, text: str, spans: list[tuple[int, int]]) -> float:
    """Return the nats that a model spends on the tokens in some spans of a text."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    ids = [tokenizer.bos_token_id, *encoding.ids]
    context = model.config.max_position_embeddings
    losses: list[float] = []
    for row in cut_windows(ids, context, context // 2):
        logits = model(torch.tensor([row.ids[:-1]])).logits[0, row.num_context - 1 :]
        targets = torch.tensor(row.ids[row.num_context :])
        losses += cross_entropy(logits, targets, reduction="none").tolist()
    hidden = {place for start, stop in spans for place in range(start, stop)}
    pairs = zip(losses, encoding.offsets, strict=True)
    return sum(loss for loss, (start, _) in pairs if start in hidden)


def charge(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Add the bits a byte that hidden text costs, spelled by the model of `bpe`."""
    runs = {
        row["kind"]: arguments.work / f"seed-{arguments.seed}/runs/{row['kind']}" for row in rows
    }
    for row in rows:
        tokenizer = load_tokenizer(runs[row["kind"]] / "tokenizer")
        for name in ("wiki", "reviews"):
            row[name]["charged"] = row[name]["bits_per_byte"]
            if not row[name]["hidden_bytes"]:
                continue
            model, speller = load_checkpoint(runs["bpe"] / "final")
            nats, num_bytes = 0.0, 0
            for text in read_texts(getattr(arguments, name), arguments.held_out):
                nats += spell(model, speller, text, hidden_spans(tokenizer, text))
                num_bytes += len(text.encode())
            row[name]["charged"] += nats / math.log(2) / num_bytes


def format_table(rows: list[dict[str, Any]], name: str) -> str:
    """Write one corpus' figures as a markdown table."""
    lines = [
        f"| {name} | vocabulary | parameters | training tokens | bytes a token | unknown tokens "
        "| bytes hidden | bits per byte as it stands | hidden bytes spelled |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        figures = row[name]
        lines.append(
            f"| `{row['kind']}` | {row['vocabulary']:,} | {row['parameters']:,} "
            f"| {row['tokens']:,} | {figures['bytes_per_token']:.2f} "
            f"| {figures['unknown_tokens']:.1%} | {figures['hidden_bytes']:.1%} "
            f"| {figures['bits_per_byte']:.3f} | {figures['charged']:.3f} |"
        )
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wiki", type=Path, required=True, help="folder of the encyclopedia")
    parser.add_argument("--reviews", type=Path, required=True, help="folder of the reviews")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and results")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--flops", type=float, default=1.5e13, help="of training, for each kind")
    parser.add_argument("--megabytes", type=float, default=12, help="of training text, each corpus")
    parser.add_argument("--held-out", type=int, default=400_000, help="bytes scored, each corpus")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Measure every kind, and print the tables."""
    arguments = build_parser().parse_args()
    files = {}
    for name in ("wiki", "reviews"):
        folder = getattr(arguments, name)
        (source,) = folder.glob("train.jsonl.xz")
        target = arguments.work.resolve() / f"{name}.jsonl"
        files[name] = write_subset(source, target, int(arguments.megabytes * 1e6))
        setattr(arguments, name, next(iter(sorted(folder.glob("val*.jsonl.xz")))))
    rows = []
    for kind in arguments.kinds:
        rows.append(measure(kind, arguments, files))
        print(json.dumps(rows[-1]), flush=True)
    charge(rows, arguments)
    results = arguments.work / f"results-{arguments.seed}.json"
    results.write_text(json.dumps(rows, indent=2) + "\n")
    for name in ("wiki", "reviews"):
        print(f"\n{format_table(rows, name)}")


if __name__ == "__main__":
    main()
