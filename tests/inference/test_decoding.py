import itertools

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.inference.choosing import build_chooser
from hf_tinyformer.inference.decoding import TokenDecoder, can_decode, decode

SCHEMES = ["rope", "learned", "sinusoidal", "alibi", "relative", "none"]
PROMPTS = [[5, 6, 7, 8], [9, 3], [4, 4, 4, 8, 1, 2, 11]]


def build(**settings) -> TinyFormerForCausalLM:
    torch.manual_seed(0)
    config = TinyFormerConfig(
        **{
            "vocab_size": 61,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            **settings,
        }
    )
    model = TinyFormerForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, which begin as ones and zeros
                parameter.add_(0.2 * torch.randn_like(parameter))
            assert parameter.abs().sum() > 0, name
    return model


def by_generate(model, prompts, count):
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    output = model.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        generation_config=GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0),
    )
    return output[:, longest:].tolist()


KINDS = [
    {"position_embedding_type": scheme, "norm_placement": placement, "use_qk_norm": qk_norm}
    for scheme, placement, qk_norm in itertools.product(SCHEMES, ["pre", "post"], [True, False])
] + [
    {"norm_type": "layernorm", "attention_bias": True, "mlp_bias": True, "mlp_type": "gelu"},
    {"norm_type": "layernorm", "norm_placement": "post", "position_embedding_type": "learned"},
    {"mlp_type": "relu2", "tie_word_embeddings": False},
    {"num_key_value_heads": 2, "head_dim": 16},
    {"num_key_value_heads": 1, "attention_bias": True, "position_embedding_type": "alibi"},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_greedy_text_is_that_of_generate(settings):
    model = build(**settings)
    greedy = build_chooser(0, 0, 1.0)

    together = decode(model, PROMPTS, max_new_tokens=20, choose=greedy)
    alone = [decode(model, [prompt], max_new_tokens=20, choose=greedy)[0] for prompt in PROMPTS]

    assert together == by_generate(model, PROMPTS, 20)
    assert alone == [by_generate(model, [prompt], 20)[0] for prompt in PROMPTS]


class InFixedShapes(TokenDecoder):
    """Takes steps as a CUDA graph does, in which no shape depends on the slot."""

    def step(self, tokens):
        logits = self.compute(tokens, torch.tensor([self.slot]))
        self.slot += 1
        return logits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("lengths", [(6, 6), (6, 3)])
@pytest.mark.parametrize("decoder_class", [TokenDecoder, InFixedShapes])
def test_logits_are_those_of_the_forward(scheme, lengths, decoder_class):
    model = build(position_embedding_type=scheme, num_key_value_heads=2)
    ids = torch.randint(0, 61, (2, 16))
    padding = [6 - length for length in lengths]
    mask = torch.ones_like(ids)
    mask[1, : padding[1]] = 0
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        decoder = decoder_class(model, ids, 16)
        found = [decoder.read(ids[:, :6], mask[:, :6] if any(padding) else None)]
        found += [decoder.step(ids[:, place]) for place in range(6, 16)]

    # Sums of float32 in another order.
    torch.testing.assert_close(
        torch.stack(found[:-1], dim=1), expected[:, 5:-1], rtol=0, atol=2e-5 * expected.abs().max()
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_recorded_step_writes_what_the_cpu_writes(scheme):
    model = build(position_embedding_type=scheme)
    greedy = build_chooser(0, 0, 1.0)
    expected = decode(model, PROMPTS, max_new_tokens=20, choose=greedy)

    assert decode(model.cuda(), PROMPTS, max_new_tokens=20, choose=greedy) == expected


def test_a_text_ends_at_a_stop_token_and_the_others_go_on():
    model = build()
    whole = decode(model, PROMPTS, max_new_tokens=12, choose=build_chooser(0, 0, 1.0))
    stop = whole[0][3]
    assert any(stop not in row for row in whole)

    found = decode(
        model, PROMPTS, max_new_tokens=12, choose=build_chooser(0, 0, 1.0), stop_ids=[stop]
    )

    expected = [row[: row.index(stop) + 1] if stop in row else row for row in whole]
    assert found == expected


def test_each_new_token_is_told():
    heard = []

    written = decode(
        build(),
        PROMPTS,
        max_new_tokens=5,
        choose=build_chooser(0, 0, 1.0),
        on_tokens=lambda tokens: heard.append(tokens.tolist()),
    )

    assert [list(row) for row in zip(*heard, strict=True)] == written


def test_nothing_is_computed_for_the_last_token():
    model = build(position_embedding_type="learned", max_position_embeddings=10)

    [written] = decode(model, [[1] * 8], max_new_tokens=3, choose=build_chooser(0, 0, 1.0))

    assert len(written) == 3  # 8 + 3 tokens, of which 10 were read


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.6), (0.9, 8, 0.8)]
)
def test_samples_follow_the_distribution_of_transformers_warpers(temperature, top_k, top_p):
    torch.manual_seed(1)
    logits = 2 * torch.randn(1, 12)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits).softmax(dim=-1)[0]
    draws = 40_000

    found = build_chooser(temperature, top_k, top_p)(logits.expand(draws, -1))

    shares = torch.bincount(found, minlength=12) / draws
    assert torch.equal(shares > 0, expected > 1e-4)
    # Five standard deviations of a share.
    torch.testing.assert_close(shares, expected, rtol=0, atol=5 * (0.25 / draws) ** 0.5)


class _Wrapped(nn.Linear):
    """What an adapter or a quantizer puts in a layer's place."""


def test_what_it_does_not_know_is_left_to_generate():
    assert can_decode(build())
    assert not can_decode(GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=9)))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert not can_decode(build(rope_parameters=dynamic))
    adapted = build()
    adapted.model.layers[1].mlp.down_proj = _Wrapped(96, 32, bias=False)
    assert not can_decode(adapted)


def test_weights_that_moved_are_used():
    model = build()
    greedy = build_chooser(0, 0, 1.0)
    before = decode(model, PROMPTS, max_new_tokens=8, choose=greedy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))

    assert decode(model, PROMPTS, max_new_tokens=8, choose=greedy) != before
    assert decode(model, PROMPTS, max_new_tokens=8, choose=greedy) == by_generate(model, PROMPTS, 8)


def test_autocast_around_it_changes_nothing():
    model = build()
    greedy = build_chooser(0, 0, 1.0)
    expected = decode(model, PROMPTS, max_new_tokens=8, choose=greedy)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decode(model, PROMPTS, max_new_tokens=8, choose=greedy)

    assert found == expected
