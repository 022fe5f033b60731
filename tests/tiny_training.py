"""A model, a corpus and a training run that take milliseconds a step."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_tinyformer.data.store.preparation import write_token_store
from hf_tinyformer.data.store.tokens import open_token_store
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.documents import Document
from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.training.checkpoint import MODEL_NAME, OPTIMIZER_NAME
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.loop import train
from hf_tinyformer.training.metrics import NullReporter
from hf_tinyformer.training.precision import build_accelerator
from hf_tinyformer.training.result import TrainingResult

SEQUENCE_LENGTH = 16


def make_documents(seed: int, count: int) -> list[Document]:
    drawn = random.Random(seed)
    words = ["red", "blue", "green", "ship", "sea", "sky", "sun", "sand"]
    texts = [" ".join(drawn.choices(words, k=drawn.randint(4, 30))) + "." for _ in range(count)]
    return [Document(text=text, source=f"test:{n}") for n, text in enumerate(texts)]


@dataclass
class Room:
    """Everything a tiny run needs, and the run itself."""

    tokenizer: Any
    stores: Any

    def model(self, dropout: float = 0.0) -> TinyFormerForCausalLM:
        torch.manual_seed(0)
        return TinyFormerForCausalLM(
            TinyFormerConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=SEQUENCE_LENGTH,
                hidden_dropout=dropout,
                attention_dropout=dropout,
            )
        )

    @staticmethod
    def config(**settings: Any) -> TrainConfig:
        quick = {
            "global_batch_size": 8,
            "max_steps": 6,
            "warmup_steps": 2,
            "evaluate_every": 3,
            "save_every_steps": 2,
            "save_every_minutes": None,
            "sample_tokens": 0,
            "mixed_precision": "fp32",
        }
        return TrainConfig(**(quick | settings))

    def train(
        self,
        run_dir: Path,
        *,
        model: Any = None,
        reporter: Any = None,
        dropout: float = 0.0,
        identity: dict[str, Any] | None = None,
        **settings: Any,
    ) -> TrainingResult:
        config = self.config(**settings)
        return train(
            model=model if model is not None else self.model(dropout),
            tokenizer=self.tokenizer,
            stores=self.stores,
            run_dir=run_dir,
            config=config,
            data=DataConfig(files=["unused"], sequence_length=SEQUENCE_LENGTH),
            seed=1,
            identity=identity or {"seed": 1},
            accelerator=build_accelerator(config, cpu=True),
            reporter=reporter or NullReporter(),
        )


def build_room(folder: Path) -> Room:
    documents = make_documents(0, 60)
    texts = (document.text for document in documents)
    tokenizer = train_tokenizer(
        TokenizerConfig(kind="syllable", byte_fallback=False),
        texts,
        sequence_length=SEQUENCE_LENGTH,
    )
    write_token_store(
        folder / "tokens",
        tokenizer=tokenizer,
        documents={"train": documents, "validation": make_documents(1, 6)},
        facts={},
    )
    return Room(tokenizer, open_token_store(folder / "tokens"))


TIMES = ("seconds", "tokens_per_second")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Read a run's metrics, without those that measure time."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in lines]


def read_tensors(checkpoint: Path) -> dict[str, bytes]:
    """Read the bytes that must be equal for two checkpoints to be the same."""
    return {name: (checkpoint / name).read_bytes() for name in (MODEL_NAME, OPTIMIZER_NAME)}
