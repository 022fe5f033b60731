"""Stock architectures with our weights copied in give our logits.

Settings and weights are renamed by the table of native twins; that table's own tests are in
tests/publishing/test_twins.py.
"""

import pytest
import torch
from tiny_models import random_tokens, tiny_model
from transformers import BloomConfig, BloomForCausalLM

from hf_tinyformer.publishing.twins import to_native

CLASSIC = {
    "norm_type": "layernorm",
    "mlp_type": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "use_qk_norm": False,
    "norm_eps": 1e-5,
    "num_key_value_heads": 4,
}
BLOCK = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}


def scattered(**settings):
    """A model whose norms and biases show when one is lost."""
    model = tiny_model(**settings)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model


def renamed(model, names):
    """The state dict with every part of a name that stands in `names` replaced."""
    result = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        result[name] = tensor
    return result


def assert_same_logits(model, twin, **inputs):
    tokens = random_tokens(2, 20)
    with torch.no_grad():
        ours, theirs = model(tokens, **inputs).logits, twin.eval()(tokens, **inputs).logits
    # Weights are ten times their usual spread here, and so are the logits.
    torch.testing.assert_close(ours, theirs, atol=1e-5 * ours.abs().max().item(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"use_qk_norm": False}),
        ("llama", {"use_qk_norm": False, "tie_word_embeddings": False}),
        ("qwen3", {}),
        ("starcoder2", CLASSIC | {"num_key_value_heads": 2}),
        ("gpt2", CLASSIC | {"position_embedding_type": "learned"}),
        ("gpt2", CLASSIC | {"position_embedding_type": "sinusoidal"}),
        ("opt", CLASSIC | {"position_embedding_type": "learned", "norm_placement": "post"}),
        ("opt", CLASSIC | {"position_embedding_type": "sinusoidal", "norm_placement": "post"}),
    ],
)
def test_a_stock_architecture_gives_our_logits(name, settings):
    model = scattered(**settings)

    twin = to_native(model)

    assert twin.config.model_type == name
    # OPT takes its positions from the mask.
    assert_same_logits(model, twin, attention_mask=torch.ones(2, 20, dtype=torch.long))


def test_bloom_but_for_its_norm_on_the_embeddings():
    model = scattered(**CLASSIC, position_embedding_type="alibi")
    twin = BloomForCausalLM(
        BloomConfig(
            vocab_size=40,
            hidden_size=32,
            n_layer=2,
            n_head=4,
            layer_norm_epsilon=1e-5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    twin.transformer.word_embeddings_layernorm = torch.nn.Identity()
    weights = renamed(
        model,
        {
            "model.embed_tokens": "transformer.word_embeddings",
            "model.layers": "transformer.h",
            "model.norm": "transformer.ln_f",
            "self_attn.o_proj": "self_attention.dense",
            "mlp.up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
        }
        | BLOCK,
    )
    for name in list(weights):
        if ".q_proj." in name:
            # Bloom stores query, key and value of each head side by side.
            parts = [
                weights.pop(name.replace("q_proj", part)).unflatten(0, (4, 8))
                for part in ("q_proj", "k_proj", "v_proj")
            ]
            fused = torch.stack(parts, dim=1).flatten(0, 2)
            weights[name.replace("self_attn.q_proj", "self_attention.query_key_value")] = fused
    twin.load_state_dict(weights)

    assert_same_logits(model, twin, attention_mask=torch.ones(2, 20, dtype=torch.long))
