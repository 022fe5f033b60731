"""Checkpoints small enough to export in a second, of every kind."""

import torch

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer, write_tokenizer_files
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig

TEXTS = [
    "Once upon a time there was a small house by the sea, and the house was old.",
    "모든 국민은 법 앞에 평등하다. 모든 국민은 신체의 자유를 가진다.",
    "def read_lines(path):\n    return [line for line in open(path)]\n",
    "In 1989, 12,345 people didn't know it; by 2024 everyone's phone did!",
] * 8


def train_tiny_tokenizer(**settings):
    return train_tokenizer(
        TokenizerConfig(**({"vocab_size": 400} | settings)), TEXTS, sequence_length=64
    )


def write_tiny_checkpoint(folder, tokenizer, **settings):
    """Two layers of width 32, weights drawn so wide that a wrong position moves every logit."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = TinyFormerForCausalLM(TinyFormerConfig(**(sizes | settings))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros would hide a bias that was left out
                parameter.normal_(std=0.2)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    write_tokenizer_files(tokenizer, folder)
    return model
