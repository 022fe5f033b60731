import pytest
import torch

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.inference.evaluation import summarize_losses
from hf_tinyformer.publishing.card import CardFacts, SplitFacts, TrainingFacts
from hf_tinyformer.publishing.final import write_final

TEXT = "def read_lines(path):\n    with open(path) as stream:\n        return list(stream)\n"

RUN_CONFIG = """\
name: tiny
data:
  files: [corpus/*.txt, /home/somebody/texts/*.txt]
train:
  max_steps: 3
"""


def make_model(tokenizer, **settings):
    torch.manual_seed(0)
    return TinyFormerForCausalLM(
        TinyFormerConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.5,
            **settings,
        )
    ).eval()


def make_facts(**changes):
    facts = {
        "name": "tiny",
        "corpus": "`corpus/*.txt`",
        "splits": {
            "train": SplitFacts(num_documents=12, num_bytes=3456, num_tokens=1234),
            "validation": SplitFacts(num_documents=2, num_bytes=100, num_tokens=50),
        },
        "split_rule": "Whole documents by the hash of their text.",
        "training": TrainingFacts(
            steps=300,
            weights_step=250,
            tokens_seen=9600,
            seconds=90,
            global_batch_size=4,
            sequence_length=8,
            optimizer="Muon for matrices, AdamW for the rest",
            schedule="warm-up, stable, decay",
            precision="float32",
            hardware="CPU, 2 threads",
            seed=0,
        ),
        "evaluation": summarize_losses(98.0, 49, 100),
        "run_config": RUN_CONFIG,
        "sample_prompt": "def ",
        "languages": ("code",),
        "license": "apache-2.0",
    }
    return CardFacts(**{**facts, **changes})


@pytest.fixture(scope="session")
def tokenizer():
    config = TokenizerConfig(vocab_size=300)
    return train_tokenizer(config, [TEXT] * 8, sequence_length=32)


@pytest.fixture(scope="session")
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture(scope="session")
def final_dir(tmp_path_factory, model, tokenizer):
    """A finished folder; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("runs") / "tiny" / "final"
    curve = folder.parent / "loss.png"
    curve.parent.mkdir()
    curve.write_bytes(b"\x89PNG\r\n\x1a\n")
    write_final(folder, model=model, tokenizer=tokenizer, card_facts=make_facts(), curve=curve)
    return folder
