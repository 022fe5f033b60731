"""A corpus and a run small enough for tests."""

import random
from pathlib import Path


def write_corpus(folder: Path) -> Path:
    """Write a corpus whose next word follows from the last one, so that a loss can fall."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    drawn = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(40):
        start = drawn.randrange(len(words))
        text = " ".join(words[(start + offset) % len(words)] for offset in range(60))
        (folder / f"{number:02d}.txt").write_text(f"document {number}: {text}.\n")
    return folder


def words_for(folder: Path, *more: str) -> list[str]:
    return [
        "name=tiny",
        f"output_dir={folder / 'runs'}",
        f"data.files=[{folder}/texts/*.txt]",
        "data.sequence_length=32",
        "data.validation_fraction=0.2",
        "tokenizer.vocab_size=300",
        "model.hidden_size=32",
        "model.num_hidden_layers=2",
        "model.num_attention_heads=2",
        "model.hidden_dropout=0.1",
        "train.global_batch_size=8",
        "train.micro_batch_size=4",
        "train.max_steps=12",
        "train.warmup_steps=2",
        "train.evaluate_every=5",
        "train.save_every_steps=3",
        "train.mixed_precision=fp32",
        "train.sample_tokens=8",
        *more,
    ]
