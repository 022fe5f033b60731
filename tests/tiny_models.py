"""Models small enough to make thousands of, and every kind of them."""

import itertools

import torch

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM

SCHEMES = ("rope", "learned", "sinusoidal", "alibi", "relative", "none")
PLACEMENTS = ("pre", "post")
NORM_TYPES = ("rmsnorm", "layernorm")
MLP_TYPES = ("swiglu", "gelu", "relu2")

EVERY_KIND = [
    dict(
        zip(
            ("position_embedding_type", "norm_placement", "norm_type", "mlp_type"),
            kind,
            strict=True,
        )
    )
    for kind in itertools.product(SCHEMES, PLACEMENTS, NORM_TYPES, MLP_TYPES)
]
EVERY_NAME = ["-".join(kind.values()) for kind in EVERY_KIND]


def tiny_config(**changes):
    """Two layers of width 32, four query heads on two key and value heads.

    Weights are drawn wider than usual, so that a wrong position or mask moves a logit by far more
    than rounding does.
    """
    settings = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return TinyFormerConfig(**(settings | changes))


def tiny_model(model_class=TinyFormerForCausalLM, **changes):
    """A model in evaluation mode, on the named attention function."""
    implementation = changes.pop("attn_implementation", None)
    model = model_class(tiny_config(**changes)).eval()
    if implementation is not None:
        model.set_attn_implementation(implementation)
    return model


def random_tokens(batch, sequence, vocab_size=40):
    """Tokens that are none of the special ones."""
    return torch.randint(3, vocab_size, (batch, sequence))
