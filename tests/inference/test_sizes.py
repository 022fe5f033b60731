import json

import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, MambaConfig, MptConfig

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.errors import ArtifactError, ConfigError
from hf_tinyformer.inference.sizes import format_bytes, measure_sizes, read_model_config


def test_parts_of_a_grouped_query_model_are_counted_by_hand():
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=10,
    )

    sizes = measure_sizes(config)

    attention = 3 * (16 * 16 + 2 * 16 * 8 + 16 * 16)
    feed_forward = 3 * 3 * 16 * 24
    assert sizes.parameters == {
        "token embeddings": 1600,
        "positions": 0,
        "attention": attention,
        "feed-forward": feed_forward,
        "norms": 7 * 16,
        "head": 1600,
    }
    assert sizes.num_parameters == 2 * 1600 + attention + feed_forward + 7 * 16
    # 2 N + 4 L H D T, the table's lookup left out.
    forward = 2 * (1600 + attention + feed_forward) + 4 * 3 * 16 * 10
    assert sizes.forward_flops_per_token == forward
    assert sizes.training_flops_per_token == 3 * forward
    assert sizes.cache_values_per_token == 2 * 3 * 8
    assert sizes.optimizer_bytes("adamw") == 8 * sizes.num_parameters
    saved = 4 * (attention + feed_forward)
    assert sizes.optimizer_bytes("muon") == 8 * sizes.num_parameters - saved


def test_gpt2_has_its_published_number_of_parameters_and_a_tied_head():
    sizes = measure_sizes(GPT2Config())

    assert sizes.num_parameters == 124_439_808
    assert sizes.parameters["head"] == 0
    assert sizes.parameters["positions"] == 1024 * 768
    # The head costs a product even though its weights are the table's.
    assert sizes.matrix_weights == 12 * 12 * 768**2 + 50257 * 768
    assert ("head (tied to the token embeddings)", "0") in sizes.rows()


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (MptConfig(d_model=32, n_heads=2, n_layers=1, max_seq_len=48), 48),
        (BloomConfig(hidden_size=32, n_head=2, n_layer=1, seq_length=24), 24),
    ],
)
def test_the_context_may_have_another_name(config, context):
    assert measure_sizes(config).context == context


@pytest.mark.parametrize(
    ("config", "key"),
    [(BloomConfig(), "max_position_embeddings"), (MambaConfig(), "num_attention_heads")],
)
def test_a_size_that_is_not_there_is_named(config, key):
    with pytest.raises(ConfigError, match=f"{key} is unset in the config.json of this"):
        measure_sizes(config)


def test_a_model_larger_than_any_memory_is_measured_all_the_same():
    config = LlamaConfig(hidden_size=2**16, intermediate_size=2**18, num_hidden_layers=8)

    assert measure_sizes(config).num_parameters > 10**11


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_bytes_are_written_with_a_fitting_unit(count, text):
    assert format_bytes(count) == text


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="has no configuration to read"):
        read_model_config(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"head_dim": 7}, "head_dim is 7, but rotary positions turn pairs"),
        ({"hidden_size": "64"}, "Field 'hidden_size' expected int, got str"),
    ],
)
def test_a_wrong_value_in_the_configuration_is_named(tmp_path, settings, reason):
    config = TinyFormerConfig().to_dict() | settings
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(ArtifactError, match=f"has no configuration to read: {reason}") as info:
        read_model_config(str(tmp_path))
    assert "\n" not in str(info.value)


def test_the_configuration_of_a_folder_is_read_without_its_weights(tmp_path):
    GPT2Config(n_layer=3).save_pretrained(tmp_path)

    assert read_model_config(str(tmp_path)).num_hidden_layers == 3


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    config = {"model_type": "other", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")

    with pytest.raises(ArtifactError, match="has no configuration to read"):
        read_model_config(str(tmp_path))

    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("scheme", ["rope", "learned", "sinusoidal", "alibi", "relative", "none"])
@pytest.mark.parametrize("tied", [True, False])
def test_parts_of_our_model_add_up_to_all_of_it(scheme, tied):
    config = TinyFormerConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        position_embedding_type=scheme,
        tie_word_embeddings=tied,
        attention_bias=True,
    )

    sizes = measure_sizes(config)

    model = TinyFormerForCausalLM(config)
    assert sizes.num_parameters == sum(p.numel() for p in model.parameters())
    assert sizes.parameters["token embeddings"] == 3200
    assert sizes.parameters["head"] == (0 if tied else 3200)
    # A learned table of 16 x 32, or T5's 32 buckets for each of 4 heads.
    assert sizes.parameters["positions"] == {"learned": 512, "relative": 128}.get(scheme, 0)
    # Five norms of the residual stream; in each layer one of the queries and one of the keys.
    assert sizes.parameters["norms"] == 5 * 32 + 2 * 2 * 8
    assert sizes.parameters["attention"] == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 2 * 32 + 2 * 16)
