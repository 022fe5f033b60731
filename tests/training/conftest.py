import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_tinyformer.data.corpus import DataConfig, Document
from hf_tinyformer.data.tokenizer import TokenizerConfig, train_tokenizer
from hf_tinyformer.data.tokens import open_token_store, write_token_store
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.loop import TrainingResult, train
from hf_tinyformer.training.metrics import MetricsLog, NullReporter
from hf_tinyformer.training.precision import build_accelerator

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
            "mixed_precision": "no",
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


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    folder = tmp_path_factory.mktemp("tokens")
    documents = make_documents(0, 60)
    texts = (document.text for document in documents)
    tokenizer = train_tokenizer(
        TokenizerConfig(kind="char"), texts, sequence_length=SEQUENCE_LENGTH
    )
    write_token_store(
        folder / "tokens",
        tokenizer=tokenizer,
        documents={"train": documents, "validation": make_documents(1, 6)},
        facts={},
    )
    return Room(tokenizer, open_token_store(folder / "tokens"))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take longer than the tiny runs."""
    monkeypatch.setattr(MetricsLog, "draw", lambda self: None)
