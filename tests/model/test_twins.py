"""Stock architectures with our weights copied in give our logits."""

import pytest
import torch
from tiny_models import random_tokens, tiny_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from hf_tinyformer.model.positions import sinusoidal_positions

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


def rope_settings(model):
    config = model.config
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": config.rope_parameters,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize("tie", [True, False])
def test_llama(tie):
    model = scattered(use_qk_norm=False, tie_word_embeddings=tie)
    twin = LlamaForCausalLM(
        LlamaConfig(**rope_settings(model), rms_norm_eps=1e-6, tie_word_embeddings=tie)
    )
    twin.load_state_dict(renamed(model, BLOCK))

    assert_same_logits(model, twin)


def test_qwen3():
    model = scattered()
    twin = Qwen3ForCausalLM(
        Qwen3Config(**rope_settings(model), rms_norm_eps=1e-6, tie_word_embeddings=True)
    )
    twin.load_state_dict(renamed(model, BLOCK))

    assert_same_logits(model, twin)


def test_starcoder2():
    model = scattered(**CLASSIC | {"num_key_value_heads": 2})
    twin = Starcoder2ForCausalLM(
        Starcoder2Config(
            **rope_settings(model),
            norm_epsilon=1e-5,
            use_bias=True,
            residual_dropout=0.0,
            embedding_dropout=0.0,
            tie_word_embeddings=True,
        )
    )
    twin.load_state_dict(renamed(model, BLOCK | {"up_proj": "c_fc", "down_proj": "c_proj"}))

    assert_same_logits(model, twin)


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal"])
def test_gpt2(scheme):
    model = scattered(**CLASSIC, position_embedding_type=scheme)
    twin = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4, pad_token_id=0)
    )
    names = {
        "model.embed_tokens": "transformer.wte",
        "model.embeddings.positions": "transformer.wpe",
        "model.layers": "transformer.h",
        "model.norm": "transformer.ln_f",
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    }
    weights = renamed(model, names)
    if scheme == "sinusoidal":
        weights["transformer.wpe.weight"] = sinusoidal_positions(torch.arange(64), 32)
    for name in list(weights):
        if ".q_proj." in name:
            parts = [
                weights.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")
            ]
            weights[name.replace("self_attn.q_proj", "attn.c_attn")] = torch.cat(parts)
    # GPT-2's layers are transposed.
    weights = {
        name: tensor.T if ".h." in name and tensor.dim() == 2 else tensor
        for name, tensor in weights.items()
    }
    twin.load_state_dict(weights)

    assert_same_logits(model, twin)


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal"])
def test_opt_with_the_norms_after(scheme):
    model = scattered(**CLASSIC, position_embedding_type=scheme, norm_placement="post")
    twin = OPTForCausalLM(
        OPTConfig(
            vocab_size=40,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            do_layer_norm_before=False,
            activation_function="gelu_pytorch_tanh",
            dropout=0.0,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    weights = renamed(
        model,
        {
            "model.": "model.decoder.",
            "embeddings.positions": "embed_positions",
            "o_proj": "out_proj",
            "mlp.up_proj": "fc1",
            "mlp.down_proj": "fc2",
            "attention_norm": "self_attn_layer_norm",
            "mlp_norm": "final_layer_norm",
        },
    )
    name = "model.decoder.embed_positions.weight"
    table = weights[name] if scheme == "learned" else sinusoidal_positions(torch.arange(64), 32)
    weights[name] = torch.nn.functional.pad(table, (0, 0, 2, 0))  # OPT's table begins at 2
    twin.load_state_dict(weights)

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
