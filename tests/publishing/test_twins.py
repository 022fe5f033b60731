"""Our weights in stock classes, and stock weights in ours: the same numbers, both ways."""

import re

import pytest
import torch
import transformers
from tiny_models import EVERY_KIND, EVERY_NAME, random_tokens, tiny_config, tiny_model

from hf_tinyformer.errors import ExportError
from hf_tinyformer.publishing.twin_table import TWINS
from hf_tinyformer.publishing.twins import find_twin, from_native, our_config, to_native

CLASSIC = {
    "norm_type": "layernorm",
    "mlp_type": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "use_qk_norm": False,
    "norm_eps": 1e-5,
    "num_key_value_heads": 4,
}
BARE = {"use_qk_norm": False}

SHAPES = {
    "llama": BARE,
    "llama, biases, its own head": BARE
    | {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "tie_word_embeddings": False},
    "qwen3": {},
    "qwen3, its own head": {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": False},
    "arcee, relu2": BARE | {"mlp_type": "relu2"},
    "arcee, gelu": BARE | {"mlp_type": "gelu", "mlp_bias": True},
    "apertus, relu2": {"mlp_type": "relu2"},
    "apertus, gelu": {"mlp_type": "gelu", "attention_bias": True},
    "smollm3": BARE | {"position_embedding_type": "none", "head_dim": 16},
    "starcoder2": CLASSIC | {"num_key_value_heads": 2},
    "starcoder2, relu2, no biases": CLASSIC
    | {"mlp_type": "relu2", "attention_bias": False, "mlp_bias": False},
    "starcoder2, some biases": CLASSIC | {"attention_bias": False},
    "stablelm": BARE | {"norm_type": "layernorm", "tie_word_embeddings": False},
    "gpt2": CLASSIC | {"position_embedding_type": "learned"},
    "gpt2, relu2, its own head": CLASSIC
    | {"position_embedding_type": "learned", "mlp_type": "relu2", "tie_word_embeddings": False},
    "gpt2, no biases": CLASSIC
    | {"position_embedding_type": "learned", "attention_bias": False, "mlp_bias": False},
    "gpt2, sinusoidal": CLASSIC | {"position_embedding_type": "sinusoidal"},
    "gpt2, no positions": CLASSIC | {"position_embedding_type": "none"},
    "opt": CLASSIC | {"position_embedding_type": "learned", "norm_placement": "post"},
    "opt, no biases": CLASSIC
    | {
        "position_embedding_type": "learned",
        "norm_placement": "post",
        "attention_bias": False,
        "mlp_bias": False,
    },
    "opt, sinusoidal": CLASSIC
    | {"position_embedding_type": "sinusoidal", "norm_placement": "post"},
    "opt, no positions": CLASSIC | {"position_embedding_type": "none", "norm_placement": "post"},
}
"""Each begins with the architecture it must become."""

ROPE_KINDS = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WIDE = {"initializer_range": 0.2}
STOCK = {
    "llama": ("LlamaConfig", WIDE | {"intermediate_size": 48, "num_key_value_heads": 2}),
    "llama with biases": (
        "LlamaConfig",
        WIDE | {"intermediate_size": 48, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "qwen3": (
        "Qwen3Config",
        WIDE | {"intermediate_size": 48, "head_dim": 8, "num_key_value_heads": 2},
    ),
    "arcee": ("ArceeConfig", WIDE | {"intermediate_size": 48}),
    "apertus": ("ApertusConfig", WIDE | {"intermediate_size": 48, "hidden_act": "relu2"}),
    "smollm3": (
        "SmolLM3Config",
        WIDE | {"intermediate_size": 48, "no_rope_layers": [0, 0], "no_rope_layer_interval": 1},
    ),
    "starcoder2": ("Starcoder2Config", WIDE | {"intermediate_size": 48}),
    "stablelm": (
        "StableLmConfig",
        WIDE
        | {
            "intermediate_size": 48,
            "num_key_value_heads": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "gpt2": ("GPT2Config", WIDE | {"n_inner": 48}),
    "opt before": (
        "OPTConfig",
        {"ffn_dim": 48, "init_std": 0.2, "activation_function": "gelu_new", "dropout": 0.0},
    ),
    "opt after": (
        "OPTConfig",
        {
            "ffn_dim": 48,
            "init_std": 0.2,
            "activation_function": "relu2",
            "do_layer_norm_before": False,
            "tie_word_embeddings": False,
        },
    ),
}


def scattered(model):
    """Make norms and biases show when one is lost."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def stock_config(name, **changes):
    config_class, settings = STOCK[name]
    return getattr(transformers, config_class)(**(SIZES | settings | changes))


def stock_model(name, **changes):
    config = stock_config(name, **changes)
    return scattered(transformers.AutoModelForCausalLM.from_config(config)).eval()


@torch.no_grad()
def logits_of(model, tokens):
    return model(tokens, attention_mask=torch.ones_like(tokens)).logits


def assert_same_logits(one, other):
    tokens = random_tokens(2, 20)
    expected, found = logits_of(one, tokens), logits_of(other, tokens)
    # Weights are ten times their usual spread here, and so are the logits.
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)


def assert_same_weights(one, other):
    expected, found = one.state_dict(), other.state_dict()
    assert list(expected) == list(found)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_with_a_twin_gives_the_same_logits_there(name):
    model = scattered(tiny_model(**SHAPES[name]))

    native = to_native(model)

    assert native.config.model_type == name.split(",")[0]
    assert type(native).__module__.startswith("transformers.models.")
    assert_same_logits(model, native)


@pytest.mark.parametrize("name", SHAPES)
def test_a_twin_writes_the_same_text_with_its_cache(name):
    model = scattered(tiny_model(**SHAPES[name]))
    prompt = random_tokens(1, 5)
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(prompt)}

    assert torch.equal(
        model.generate(prompt, **settings), to_native(model).generate(prompt, **settings)
    )


@pytest.mark.parametrize(
    "name", [name for name in SHAPES if not any(w in name for w in ("sinus", "no ", "some"))]
)
def test_there_and_back_is_the_same_model_bit_for_bit(name):
    model = scattered(tiny_model(**SHAPES[name]))

    back = from_native(to_native(model))

    assert_same_weights(model, back)
    expected, found = model.config.to_dict(), back.config.to_dict()
    # What the twin has no word for and no trained model needs.
    for key in ("relative_attention_num_buckets", "relative_attention_max_distance", "dtype"):
        expected.pop(key), found.pop(key)
    assert found == expected


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_model_gives_the_same_logits_in_our_blocks(name):
    native = stock_model(name)

    assert_same_logits(native, from_native(native))


@pytest.mark.parametrize("name", [name for name in STOCK if name != "opt before"])
def test_a_stock_model_comes_back_bit_for_bit_with_its_settings(name):
    native = stock_model(name)
    if name.startswith("opt"):
        # The rows that no token uses do not come along.
        native.model.decoder.embed_positions.weight.data[:2] = 0

    back = to_native(from_native(native))

    assert type(back) is type(native)
    assert_same_weights(native, back)
    found, expected = back.config.to_dict(), native.config.to_dict()
    for key in ("architectures", "dtype", "hidden_act", "activation_function"):
        found.pop(key, None), expected.pop(key, None)
    assert found == expected


def test_opt_with_the_norms_before_comes_back_as_gpt2():
    native = stock_model("opt before")

    back = to_native(from_native(native))

    assert back.config.model_type == "gpt2"
    assert_same_logits(native, back)


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_stretched_rotary_positions_stay_the_same(kind):
    rope = {"rope_type": kind, "rope_theta": 10_000.0, **ROPE_KINDS[kind]}
    native = stock_model("llama", rope_parameters=rope)
    tokens = random_tokens(2, 50)

    model = from_native(native)

    torch.testing.assert_close(logits_of(model, tokens), logits_of(native, tokens))
    torch.testing.assert_close(logits_of(to_native(model), tokens), logits_of(native, tokens))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_half_precision_stays_half_precision(name):
    model = scattered(tiny_model(**SHAPES[name])).to(torch.bfloat16)

    native = to_native(model)
    back = from_native(native)

    assert {parameter.dtype for parameter in native.parameters()} == {torch.bfloat16}
    assert native.config.dtype == back.config.dtype == torch.bfloat16
    assert_same_weights(model, back)


def test_a_bias_that_we_lack_is_written_as_zeros():
    native = to_native(tiny_model(**SHAPES["gpt2, no biases"]))

    biases = [tensor for name, tensor in native.named_parameters() if name.endswith("c_fc.bias")]

    assert len(biases) == 2
    assert not any(bias.any() for bias in biases)


def test_dropout_goes_along():
    native = to_native(
        tiny_model(**SHAPES["gpt2"], hidden_dropout=0.1, attention_dropout=0.2).eval()
    )

    assert (native.config.embd_pdrop, native.config.resid_pdrop) == (0.1, 0.1)
    assert native.config.attn_pdrop == 0.2


@pytest.mark.parametrize("kind", EVERY_KIND, ids=EVERY_NAME)
def test_every_kind_has_a_twin_or_is_refused_in_one_line(kind):
    try:
        twin, sentence = find_twin(tiny_config(**kind)), ""
    except ExportError as error:
        twin, sentence = None, str(error)

    assert twin in TWINS or re.fullmatch(
        r"model\.\w+ is .*, but no stock architecture .*", sentence
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"position_embedding_type": "alibi"},
            r"model.position_embedding_type is alibi, but no stock .* Qwen3ForCausalLM.* has "
            r"position_embedding_type rope",
        ),
        (BARE | {"norm_placement": "post"}, r"model.norm_placement is post, .* Llama.* pre"),
        ({"mlp_bias": True}, r"model.mlp_bias is True, .* Qwen3\w+, the nearest, has mlp_bias F"),
        (
            CLASSIC | {"position_embedding_type": "learned", "num_key_value_heads": 2},
            r"model.num_key_value_heads is 2, .* GPT2\w+, the nearest, has num_key_value_heads 4",
        ),
        (
            CLASSIC
            | {"position_embedding_type": "learned", "norm_placement": "post", "norm_eps": 1e-6},
            r"model.norm_eps is 1e-06, .* OPT\w+, the nearest, has norm_eps 1e-05",
        ),
        (
            BARE | {"hidden_size": 34, "head_dim": 8},
            r"model.num_attention_heads is 4, .* has num_attention_heads a divisor of hidden_size",
        ),
        ({"is_causal": False}, r"model.is_causal is False"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_shape_without_a_twin_is_refused_by_name(settings, sentence):
    with pytest.raises(ExportError, match=sentence):
        find_twin(tiny_config(**settings))


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is T"),
        ("gpt2", {"activation_function": "relu"}, r"activation_function is relu, .* gelu_new"),
        ("opt after", {"word_embed_proj_dim": 16}, "word_embed_proj_dim is 16, but hidden_size is"),
        ("opt after", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is gelu, .* silu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is set"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window is 8"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types is sliding_attention for some layers",
        ),
        ("starcoder2", {"sliding_window": 8}, "sliding_window is 8"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers is 1 for some layers"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual is True"),
    ],
)
def test_what_our_blocks_do_not_compute_is_refused_by_its_key(name, changes, sentence):
    with pytest.raises(ExportError, match=sentence):
        our_config(stock_config(name, **changes))


def test_another_architecture_is_refused_with_those_that_are_known():
    with pytest.raises(ExportError, match=r"model_type is bloom, but we can read llama, qwen3"):
        our_config(transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=2))
