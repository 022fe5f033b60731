"""The configuration: what it fills in, what it refuses, what it saves."""

import json
import re

import pytest
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)

from hf_tinyformer import TinyFormerConfig


def test_the_default_shape_is_qwen3s():
    config = TinyFormerConfig()

    assert (config.norm_type, config.norm_placement, config.mlp_type) == (
        "rmsnorm",
        "pre",
        "swiglu",
    )
    assert config.position_embedding_type == "rope"
    assert config.use_qk_norm
    assert not config.attention_bias
    assert not config.mlp_bias


def test_sizes_left_open_follow_from_the_others():
    config = TinyFormerConfig(hidden_size=96, num_attention_heads=6, mlp_type="gelu")

    assert config.head_dim == 16
    assert config.num_key_value_heads == 6
    assert config.intermediate_size == 384


def test_rope_parameters_exist_only_for_rope():
    assert TinyFormerConfig().rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    assert TinyFormerConfig(position_embedding_type="learned").rope_parameters is None


def test_a_score_bias_has_no_tensor_parallel_plan():
    for scheme in ("alibi", "relative"):
        assert TinyFormerConfig(position_embedding_type=scheme).base_model_tp_plan is None
    assert TinyFormerConfig().base_model_tp_plan["layers.*.self_attn.q_proj"] == "colwise"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0, but it must be 1 or more"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 3},
            r"num_key_value_heads is 3, but it must divide num_attention_heads \(4\)",
        ),
        ({"head_dim": 15}, "head_dim is 15, but rotary positions turn pairs"),
        (
            {"hidden_size": 15, "head_dim": 4, "position_embedding_type": "sinusoidal"},
            "hidden_size is 15, but sinusoidal",
        ),
        (
            {"position_embedding_type": "relative", "relative_attention_num_buckets": 6},
            "relative_attention_num_buckets is 6, but it must be a multiple of 4",
        ),
        (
            {"position_embedding_type": "relative", "relative_attention_max_distance": 16},
            r"relative_attention_max_distance is 16, but .* \(32\)",
        ),
        ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0, but it must be at least 0 and below 1"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"classifier_dropout": 2}, "classifier_dropout is 2"),
        ({"norm_eps": 0}, "norm_eps is 0, but it must be above 0"),
        ({"initializer_range": 0.0}, "initializer_range is 0.0"),
    ],
)
def test_a_setting_that_cannot_work_is_named_with_its_rule(settings, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        TinyFormerConfig(**settings)


def test_heads_that_do_not_divide_the_width_are_named():
    with pytest.raises(ValueError, match=r"num_attention_heads is 3, .* hidden_size \(64\)"):
        TinyFormerConfig(hidden_size=64, num_attention_heads=3)

    assert TinyFormerConfig(hidden_size=64, num_attention_heads=3, head_dim=16).head_dim == 16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position_embedding_type", "rotary"),
        ("norm_type", "batchnorm"),
        ("norm_placement", "sandwich"),
        ("mlp_type", "relu"),
        ("hidden_size", "64"),
        ("num_hidden_layers", 2.5),
        ("tie_word_embeddings", "yes"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=f"(?s){name}.*{value}"):
        TinyFormerConfig(**{name: value})


def test_whole_numbers_serve_as_rates():
    assert TinyFormerConfig(hidden_dropout=0, norm_eps=1).hidden_dropout == 0


def test_settings_survive_saving(tmp_path):
    config = TinyFormerConfig(
        hidden_size=48,
        num_attention_heads=4,
        position_embedding_type="relative",
        norm_placement="post",
        mlp_type="relu2",
        is_causal=False,
        eos_token_id=[2, 3],
    )
    config.save_pretrained(tmp_path)

    assert TinyFormerConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_the_saved_config_names_the_class_behind_every_auto_class(tmp_path):
    TinyFormerConfig().save_pretrained(tmp_path)

    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "tinyformer"
    assert saved["auto_map"] == {
        "AutoConfig": "configuration_tinyformer.TinyFormerConfig",
        "AutoModel": "modeling_tinyformer.TinyFormerModel",
        "AutoModelForCausalLM": "modeling_tinyformer.TinyFormerForCausalLM",
        "AutoModelForMaskedLM": "modeling_tinyformer.TinyFormerForMaskedLM",
        "AutoModelForQuestionAnswering": "modeling_tinyformer.TinyFormerForQuestionAnswering",
        "AutoModelForSequenceClassification": (
            "modeling_tinyformer.TinyFormerForSequenceClassification"
        ),
        "AutoModelForTokenClassification": ("modeling_tinyformer.TinyFormerForTokenClassification"),
    }


def test_the_documentation_covers_every_setting():
    documented = set(re.findall(r"^ {4}(\w+) \(", TinyFormerConfig.__doc__, re.MULTILINE))
    own = {name for name in TinyFormerConfig.__annotations__ if not name.startswith("_")}

    assert own <= documented
