"""Faults that transformers' common tests let pass, planted here: a test of ours fails on each.

Each entry of `FAULTS` breaks the model in one place and names the test that notices. The first four
are known to slip through the common tests.
"""

import pytest
import torch
from model import test_attention, test_invariants, test_modeling, test_reference
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss

from hf_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.model import attention, block, feed_forward, modeling_tinyformer, positions
from hf_tinyformer.model.attention import TinyFormerAttention

ROPE = {
    "position_embedding_type": "rope",
    "norm_placement": "pre",
    "norm_type": "layernorm",
    "mlp_type": "gelu",
}


def declare_no_tie(monkeypatch):
    monkeypatch.setattr(TinyFormerForCausalLM, "_tied_weights_keys", None)


def keep_keyword_arguments_from_attention(monkeypatch):
    forward = TinyFormerAttention.forward

    def forget(self, hidden_states, attention_mask=None, position_bias=None, **kwargs):
        known = {name: kwargs.get(name) for name in ("position_embeddings", "past_key_values")}
        return forward(self, hidden_states, attention_mask, position_bias, **known)

    monkeypatch.setattr(TinyFormerAttention, "forward", forget)


def turn_keys_only(monkeypatch):
    turn = attention.apply_rotary
    monkeypatch.setattr(
        attention, "apply_rotary", lambda query, key, *angles: (query, turn(query, key, *angles)[1])
    )


def leave_scores_undivided(monkeypatch):
    build = TinyFormerAttention.__init__

    def build_undivided(self, *arguments, **settings):
        build(self, *arguments, **settings)
        self.scaling = 1.0

    monkeypatch.setattr(TinyFormerAttention, "__init__", build_undivided)


def turn_the_other_way(monkeypatch):
    rotate = positions.rotate_half
    monkeypatch.setattr(positions, "rotate_half", lambda states: -rotate(states))


def count_positions_through_padding(monkeypatch):
    counted = modeling_tinyformer.positions_of
    monkeypatch.setattr(
        modeling_tinyformer,
        "positions_of",
        lambda inputs_embeds, attention_mask, cache: counted(inputs_embeds, None, cache),
    )


def join_documents(monkeypatch):
    build = modeling_tinyformer.build_attention_mask
    monkeypatch.setattr(
        modeling_tinyformer,
        "build_attention_mask",
        lambda config, inputs_embeds, mask, cache, position_ids: build(
            config, inputs_embeds, mask, cache, None
        ),
    )


def see_one_token_ahead(monkeypatch):
    merge = modeling_tinyformer.merge_score_bias

    def merge_ahead(score_bias, mask, distance, *, is_causal):
        return merge(score_bias, distance >= -1, distance, is_causal=is_causal)

    monkeypatch.setattr(modeling_tinyformer, "merge_score_bias", merge_ahead)


def scale_embeddings(monkeypatch):
    forward = modeling_tinyformer.TinyFormerEmbeddings.forward
    monkeypatch.setattr(
        modeling_tinyformer.TinyFormerEmbeddings,
        "forward",
        lambda self, embeds, position_ids: forward(self, embeds * 32**0.5, position_ids),
    )


def use_the_exact_gelu(monkeypatch):
    monkeypatch.setitem(feed_forward.ACTIVATIONS, "gelu", nn.functional.gelu)


def share_key_heads_the_other_way(monkeypatch):
    monkeypatch.setattr(
        attention, "repeat_key_value", lambda states, groups: states.repeat(1, groups, 1, 1)
    )


def normalize_without_weights(monkeypatch):
    monkeypatch.setattr(
        block.NORMS["layernorm"],
        "forward",
        lambda self, states: nn.functional.layer_norm(states, self.weight.shape, eps=self.eps),
    )


def shift_labels_twice(monkeypatch):
    forward = TinyFormerForCausalLM.forward

    def forward_shifted(self, input_ids=None, labels=None, **kwargs):
        if labels is not None:
            labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        return forward(self, input_ids, labels=labels, **kwargs)

    monkeypatch.setattr(TinyFormerForCausalLM, "forward", forward_shifted)


def drop_the_number_of_items(monkeypatch):
    def loss(self, *, num_items_in_batch=None, **settings):
        return ForCausalLMLoss(**settings)

    monkeypatch.setattr(TinyFormerForCausalLM, "loss_function", loss)


def tie(tmp_path):
    test_modeling.test_tied_weights_are_one_tensor_before_and_after_loading(
        TinyFormerForCausalLM, tmp_path
    )


def formulas(kind=ROPE):
    test_reference.test_logits_are_those_of_the_papers_formulas(kind)


def padding(scheme):
    test_invariants.test_padding_changes_nothing(scheme, "eager", "left")


FAULTS = {
    # What transformers' own tests are known to miss.
    "no tie declared": (declare_no_tie, tie),
    "keyword arguments lost": (
        keep_keyword_arguments_from_attention,
        lambda _: test_attention.test_keyword_arguments_reach_the_attention_function(),
    ),
    "only keys turned, by hand": (
        turn_keys_only,
        lambda _: test_attention.test_query_and_key_are_both_turned(),
    ),
    "only keys turned, by formula": (turn_keys_only, lambda _: formulas()),
    "scores not divided, by hand": (
        leave_scores_undivided,
        lambda _: test_attention.test_scores_are_divided_by_the_root_of_the_head_width(),
    ),
    "scores not divided, by formula": (leave_scores_undivided, lambda _: formulas()),
    # Others that are easily made.
    "turned the other way": (turn_the_other_way, lambda _: formulas()),
    "positions counted through padding": (
        count_positions_through_padding,
        lambda _: padding("learned"),
    ),
    "documents joined": (
        join_documents,
        lambda _: test_invariants.test_packed_documents_are_as_if_alone("rope", "eager", False),
    ),
    "one token ahead seen": (
        see_one_token_ahead,
        lambda _: test_invariants.test_future_tokens_change_nothing("alibi", "eager"),
    ),
    "embeddings scaled": (scale_embeddings, lambda _: formulas()),
    "the exact GELU": (use_the_exact_gelu, lambda _: formulas()),
    "key heads shared the other way": (
        share_key_heads_the_other_way,
        lambda _: test_invariants.test_sdpa_and_eager_agree("rope"),
    ),
    "norms without weights": (normalize_without_weights, lambda _: formulas()),
    "labels shifted twice": (
        shift_labels_twice,
        lambda _: test_modeling.test_labels_are_shifted_by_the_model(),
    ),
    "number of items dropped": (
        drop_the_number_of_items,
        lambda _: test_modeling.test_the_loss_is_a_sum_over_the_given_number_of_tokens(),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_noticed(name, monkeypatch, tmp_path):
    plant, check = FAULTS[name]
    check(tmp_path / "before")  # it passes as things are
    torch.manual_seed(0)

    plant(monkeypatch)

    with pytest.raises((AssertionError, KeyError, RuntimeError)):
        check(tmp_path / "after")
