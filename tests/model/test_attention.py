"""Attention, against numbers worked by hand."""

import math

import pytest
import torch
from tiny_models import random_tokens, tiny_config, tiny_model

from hf_tinyformer.model.attention import (
    TinyFormerAttention,
    eager_attention_forward,
    repeat_key_value,
)


def attention(**changes):
    """One layer that projects nothing: query, key and value are the hidden states themselves."""
    changes = {
        "hidden_size": 4,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "use_qk_norm": False,
        "position_embedding_type": "none",
    } | changes
    config = tiny_config(**changes)
    config._attn_implementation = "eager"
    layer = TinyFormerAttention(config, layer_idx=0).eval()
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj):
        torch.nn.init.eye_(projection.weight)
    return layer


def test_scores_are_divided_by_the_root_of_the_head_width():
    # Two tokens at right angles, head_dim 4: scores 3 * 3 / sqrt(4) = 4.5 and 0.
    hidden_states = 3 * torch.eye(4)[None, :2]

    output, weights = attention()(hidden_states)

    own = math.exp(4.5) / (math.exp(4.5) + 1)
    assert weights[0, 0, 0, 0].item() == pytest.approx(own, rel=1e-6)
    assert output[0, 0].tolist() == pytest.approx([3 * own, 3 * (1 - own), 0, 0], rel=1e-5)


def test_weights_of_a_query_sum_to_one():
    _, weights = attention()(torch.randn(2, 5, 4))

    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 1, 5))


def test_each_group_of_query_heads_shares_one_key_head():
    states = torch.arange(2.0).view(1, 2, 1, 1)

    assert repeat_key_value(states, 3).flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_an_added_mask_hides_a_key():
    mask = torch.tensor([[0.0, torch.finfo(torch.float32).min], [0.0, 0.0]])[None, None]

    _, weights = attention()(torch.randn(1, 2, 4), mask)

    assert weights[0, 0, 0].tolist() == [1.0, 0.0]


def test_query_key_norm_makes_scores_blind_to_the_length_of_vectors():
    layer = attention(use_qk_norm=True, norm_eps=1e-12)
    hidden_states = torch.randn(1, 3, 4)

    _, weights = layer(hidden_states)
    _, longer = layer(hidden_states * 10)

    torch.testing.assert_close(weights, longer)


def test_query_key_norm_works_on_each_head_alone():
    layer = attention(hidden_size=8, num_attention_heads=2, num_key_value_heads=2, use_qk_norm=True)

    assert layer.q_norm.weight.shape == layer.k_norm.weight.shape == (4,)


def test_query_and_key_are_both_turned():
    # Turning by the same angle leaves every score as it was; turning only one would not.
    layer = attention()
    hidden_states = torch.randn(1, 3, 4)
    angle = torch.full((1, 3, 4), 0.7)

    _, plain = layer(hidden_states)
    _, turned = layer(hidden_states, position_embeddings=(angle.cos(), angle.sin()))

    torch.testing.assert_close(plain, turned)


def test_dropout_thins_the_weights_only_while_training():
    module = attention()
    query = torch.randn(1, 1, 8, 4)
    arguments = (query, query, query, None)

    module.train()
    _, thinned = eager_attention_forward(module, *arguments, scaling=0.5, dropout=0.5)
    module.eval()
    _, whole = eager_attention_forward(module, *arguments, scaling=0.5, dropout=0.5)

    assert (thinned == 0).any()
    assert (whole > 0).all()


def test_keyword_arguments_reach_the_attention_function():
    # Flash attention takes sequence lengths this way; a model that drops them is silently wrong.
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        seen.append(kwargs)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("spy", spy)
    model = tiny_model()
    model.config._attn_implementation = "spy"
    position_ids = torch.arange(6)[None]

    model(random_tokens(1, 6), position_ids=position_ids, cu_seq_lens_q=torch.tensor([0, 6]))

    assert len(seen) == 2
    for kwargs in seen:
        assert kwargs["cu_seq_lens_q"].tolist() == [0, 6]
        assert torch.equal(kwargs["position_ids"], position_ids)
        assert kwargs["scaling"] == 8**-0.5
        assert kwargs["is_causal"] is True
