"""What must not change a token's logits: padding, company, packing, the cache, the kernel.

Float32 and 1e-5 throughout; logits here are of the order of 1.
"""

import pytest
import torch
import transformers
from tiny_models import SCHEMES, random_tokens, tiny_model
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import DynamicCache, StaticCache

from hf_tinyformer import TinyFormerForMaskedLM, TinyFormerModel

EXACT = {"atol": 1e-5, "rtol": 1e-5}

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
every_kernel = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def logits(model, tokens, **inputs):
    with torch.no_grad():
        return model(tokens, **inputs).logits


def packed_positions(*lengths):
    """Positions of documents that stand one after another in a row."""
    return torch.cat([torch.arange(length) for length in lengths])[None]


@every_scheme
@every_kernel
def test_future_tokens_change_nothing(scheme, implementation):
    model = tiny_model(position_embedding_type=scheme, attn_implementation=implementation)
    tokens = random_tokens(1, 12)
    other = tokens.clone()
    other[:, 7:] = random_tokens(1, 5)

    ours, theirs = logits(model, tokens), logits(model, other)

    assert torch.equal(ours[:, :7], theirs[:, :7])
    assert not torch.allclose(ours[:, 7:], theirs[:, 7:], atol=0.1)


@every_scheme
@every_kernel
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(scheme, implementation, side):
    model = tiny_model(position_embedding_type=scheme, attn_implementation=implementation)
    tokens, longer = random_tokens(1, 9), random_tokens(1, 14)
    pad, is_pad = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)
    parts = [(pad, is_pad), (tokens, torch.ones_like(tokens))]
    if side == "right":
        parts.reverse()
    padded = torch.cat([part for part, _ in parts], dim=1)
    mask = torch.cat([part for _, part in parts], dim=1)

    batch = logits(
        model,
        torch.cat([padded, longer]),
        attention_mask=torch.cat([mask, torch.ones_like(longer)]),
    )

    torch.testing.assert_close(batch[0][mask[0].bool()], logits(model, tokens)[0], **EXACT)
    torch.testing.assert_close(batch[1], logits(model, longer)[0], **EXACT)


@every_scheme
def test_left_padding_with_a_cache_changes_nothing(scheme):
    model = tiny_model(position_embedding_type=scheme)
    tokens = random_tokens(1, 9)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], dim=1)
    mask = (padded != 0).long()

    for cache in (DynamicCache(config=model.config), StaticCache(model.config, max_cache_len=20)):
        parts = [
            logits(
                model,
                padded[:, start:stop],
                attention_mask=mask[:, :stop],
                past_key_values=cache,
                use_cache=True,
            )
            for start, stop in [(0, 8), (8, 9), (9, 13)]
        ]
        torch.testing.assert_close(torch.cat(parts, dim=1)[:, 4:], logits(model, tokens), **EXACT)


@every_scheme
def test_a_rows_company_changes_nothing(scheme):
    model = tiny_model(position_embedding_type=scheme)
    tokens = random_tokens(5, 11)

    alone = torch.cat([logits(model, row[None]) for row in tokens])

    torch.testing.assert_close(logits(model, tokens), alone, **EXACT)


@every_scheme
@every_kernel
@pytest.mark.parametrize("use_cache", [False, True])
def test_packed_documents_are_as_if_alone(scheme, implementation, use_cache):
    model = tiny_model(position_embedding_type=scheme, attn_implementation=implementation)
    documents = [random_tokens(1, length) for length in (5, 1, 8)]

    packed = logits(
        model,
        torch.cat(documents, dim=1),
        position_ids=packed_positions(5, 1, 8),
        use_cache=use_cache,
    )

    alone = torch.cat([logits(model, document) for document in documents], dim=1)
    torch.testing.assert_close(packed, alone, **EXACT)


def test_a_mask_of_ones_does_not_join_packed_documents():
    model = tiny_model()
    documents = [random_tokens(1, length) for length in (5, 8)]

    packed = logits(
        model,
        torch.cat(documents, dim=1),
        attention_mask=torch.ones(1, 13, dtype=torch.long),
        position_ids=packed_positions(5, 8),
    )

    alone = torch.cat([logits(model, document) for document in documents], dim=1)
    torch.testing.assert_close(packed, alone, **EXACT)


@every_scheme
def test_packed_documents_are_as_if_alone_in_a_bidirectional_model(scheme):
    model = tiny_model(TinyFormerForMaskedLM, position_embedding_type=scheme)
    documents = [random_tokens(2, length) for length in (5, 8)]

    packed = logits(model, torch.cat(documents, dim=1), position_ids=packed_positions(5, 8))

    alone = torch.cat([logits(model, document) for document in documents], dim=1)
    torch.testing.assert_close(packed, alone, **EXACT)


@every_scheme
def test_another_documents_tokens_change_not_one_bit(scheme):
    model = tiny_model(position_embedding_type=scheme)
    first, second, other = random_tokens(1, 6), random_tokens(1, 8), random_tokens(1, 6)
    position_ids = packed_positions(6, 8)

    ours = logits(model, torch.cat([first, second], dim=1), position_ids=position_ids)
    theirs = logits(model, torch.cat([other, second], dim=1), position_ids=position_ids)

    assert torch.equal(ours[:, 6:], theirs[:, 6:])
    assert not torch.equal(ours[:, :6], theirs[:, :6])


def test_packing_onto_a_cache_that_holds_tokens_is_refused():
    model = tiny_model()
    tokens = random_tokens(1, 6)
    cache = model(tokens, use_cache=True).past_key_values

    with pytest.raises(ValueError, match="position_ids start again within a row"):
        model(tokens, position_ids=packed_positions(3, 3) + 6, past_key_values=cache)
    with pytest.raises(ValueError, match="position_ids start again within a row"):
        model(
            tokens,
            position_ids=packed_positions(3, 3),
            past_key_values=StaticCache(model.config, max_cache_len=20),
        )


@every_scheme
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_changes_nothing(scheme, implementation, kind):
    model = tiny_model(position_embedding_type=scheme, attn_implementation=implementation)
    tokens = random_tokens(2, 12)
    cache = (
        DynamicCache(config=model.config)
        if kind == "dynamic"
        else StaticCache(model.config, max_cache_len=20)
    )

    parts = [
        logits(model, tokens[:, start:stop], past_key_values=cache, use_cache=True)
        for start, stop in [(0, 5), (5, 6), (6, 9), (9, 10), (10, 12)]
    ]

    torch.testing.assert_close(torch.cat(parts, dim=1), logits(model, tokens), **EXACT)


@every_scheme
def test_sdpa_and_eager_agree(scheme):
    model = tiny_model(position_embedding_type=scheme)
    tokens = random_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0

    results = {}
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        results[implementation] = logits(model, tokens, attention_mask=mask)[:, 4:]

    torch.testing.assert_close(results["eager"], results["sdpa"], **EXACT)


@pytest.fixture
def plain_flex(monkeypatch):
    """Flex attention without its compiler, which takes half a minute per kind of mask on a CPU."""
    monkeypatch.setattr(
        transformers.integrations.flex_attention,
        "compile_friendly_flex_attention",
        lambda *arguments, training, **others: flex_attention(*arguments, **others),
    )
    monkeypatch.setattr(
        transformers.masking_utils,
        "create_block_mask",
        lambda _compile, **others: create_block_mask(**others),
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@every_scheme
def test_flex_and_sdpa_agree(scheme, plain_flex):
    model = tiny_model(position_embedding_type=scheme)
    tokens = random_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0

    for inputs in ({}, {"attention_mask": mask}, {"position_ids": packed_positions(5, 7)}):
        model.set_attn_implementation("sdpa")
        expected = logits(model, tokens, **inputs)[:, 4:]
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(logits(model, tokens, **inputs)[:, 4:], expected, **EXACT)


@every_scheme
def test_a_bidirectional_model_sees_what_comes_later(scheme):
    model = tiny_model(TinyFormerForMaskedLM, position_embedding_type=scheme)
    tokens = random_tokens(1, 8)
    other = tokens.clone()
    other[:, -1] = 3 + (tokens[:, -1] - 2) % 37

    assert not torch.allclose(logits(model, tokens)[:, 0], logits(model, other)[:, 0], atol=1e-3)


@every_scheme
def test_padding_changes_nothing_in_a_bidirectional_model(scheme):
    model = tiny_model(TinyFormerForMaskedLM, position_embedding_type=scheme)
    tokens = random_tokens(1, 9)
    for padding in ((3, 0), (0, 3)):
        padded = torch.nn.functional.pad(tokens, padding)
        result = logits(model, padded, attention_mask=(padded != 0).long())
        torch.testing.assert_close(result[padded != 0], logits(model, tokens)[0], **EXACT)


@every_scheme
def test_without_positions_order_would_not_matter_and_with_them_it_does(scheme):
    # A bidirectional model without positions cannot tell one order from another.
    model = tiny_model(TinyFormerForMaskedLM, position_embedding_type=scheme)
    tokens = random_tokens(1, 9)
    order = torch.randperm(9)

    same = torch.allclose(
        logits(model, tokens)[:, order], logits(model, tokens[:, order]), atol=1e-4
    )

    assert same is (scheme == "none")


@every_scheme
def test_embeddings_given_directly_are_the_tokens_own(scheme):
    model = tiny_model(position_embedding_type=scheme)
    tokens = random_tokens(2, 7)

    given = logits(model, None, inputs_embeds=model.get_input_embeddings()(tokens))

    assert torch.equal(given, logits(model, tokens))


@every_scheme
def test_hidden_queries_stay_finite_in_half_precision(scheme):
    # Rows of padding see no key at all; a minus infinity there would spread as NaN.
    for dtype in (torch.float16, torch.bfloat16):
        for implementation in ("eager", "sdpa"):
            model = tiny_model(position_embedding_type=scheme, attn_implementation=implementation)
            mask = torch.tensor([[0, 0, 0, 1, 1, 1]])
            result = logits(model.to(dtype), random_tokens(1, 6), attention_mask=mask)
            assert result.dtype == dtype
            assert torch.isfinite(result).all()


@every_scheme
def test_autocast_runs_and_stays_near_full_precision(scheme):
    model = tiny_model(position_embedding_type=scheme, initializer_range=0.02)
    tokens = random_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0

    with torch.autocast("cpu", torch.bfloat16):
        low = logits(model, tokens, attention_mask=mask)[:, 4:]

    assert torch.isfinite(low).all()
    torch.testing.assert_close(
        low.float(), logits(model, tokens, attention_mask=mask)[:, 4:], atol=0.05, rtol=0.05
    )  # bfloat16 keeps 8 bits


@every_scheme
def test_no_mask_is_built_where_causality_is_enough(scheme, monkeypatch):
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments, attn_mask=None, is_causal=False, **others):
        seen.append((attn_mask is None, is_causal))
        return attention(*arguments, attn_mask=attn_mask, is_causal=is_causal, **others)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model = tiny_model(position_embedding_type=scheme).train()

    model(random_tokens(2, 12), shift_labels=random_tokens(2, 12))

    has_bias = scheme in ("alibi", "relative")
    assert seen == [(not has_bias, not has_bias)] * 2


@every_scheme
@pytest.mark.parametrize("use_cache", [False, True])
def test_a_four_dimensional_mask_is_used_as_it_is(scheme, use_cache):
    # Two continuations of one beginning in one row: the second must not see the first.
    model = tiny_model(position_embedding_type=scheme)
    start, first, second = random_tokens(1, 4), random_tokens(1, 2), random_tokens(1, 2)
    row = torch.cat([start, first, second], dim=1)
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    mask[6:, 4:6] = False

    shared = logits(
        model,
        row,
        attention_mask=mask[None, None],
        position_ids=torch.tensor([[0, 1, 2, 3, 4, 5, 4, 5]]),
        use_cache=use_cache,
    )

    alone = logits(model, torch.cat([start, second], dim=1))
    torch.testing.assert_close(shared[:, 6:], alone[:, 4:], **EXACT)


@pytest.mark.parametrize("scheme", ["alibi", "relative"])
def test_a_score_bias_is_refused_where_it_would_be_dropped(scheme):
    model = tiny_model(position_embedding_type=scheme)
    tokens = random_tokens(1, 4)

    for implementation in ("flash_attention_2", "kernels-community/flash-attn3", "sdpa_paged"):
        model.config._attn_implementation = implementation
        with pytest.raises(ValueError, match=f"{implementation}.*{scheme}.*eager, sdpa, flex"):
            model(tokens)

    model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=f"{scheme}.*paged cache"):
        model(tokens, cache=object())


def test_the_base_model_needs_exactly_one_kind_of_input():
    model = tiny_model(TinyFormerModel)
    tokens = random_tokens(1, 4)

    with pytest.raises(ValueError, match="both given or both None"):
        model()
    with pytest.raises(ValueError, match="both given or both None"):
        model(tokens, inputs_embeds=model.embed_tokens(tokens))
