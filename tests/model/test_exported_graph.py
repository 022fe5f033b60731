"""The model as one graph that other programs run: `torch.export`, with free batch and length."""

import pytest
import torch
from tiny_models import SCHEMES, random_tokens, tiny_model
from torch._dynamo.testing import CompileCounter
from transformers import StaticCache

EXACT = {"atol": 1e-5, "rtol": 1e-5}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's compiler


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_graph_serves_every_batch_and_length(scheme):
    model = tiny_model(position_embedding_type=scheme)
    tokens, others = random_tokens(2, 7), random_tokens(3, 12)
    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2)
    free = {0: batch, 1: length}

    graph = torch.export.export(
        model,
        (),
        {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "use_cache": False},
        dynamic_shapes={"input_ids": free, "attention_mask": free, "use_cache": None},
        strict=False,
    ).module()

    mask = torch.ones_like(others)
    mask[0, :4] = 0
    with torch.no_grad():
        inputs = {"input_ids": others, "attention_mask": mask, "use_cache": False}
        ours, theirs = graph(**inputs).logits, model(**inputs).logits
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], **EXACT)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_compiled_step_serves_every_token_of_a_static_cache(scheme):
    # The graph is captured and run as it is; turning it into machine code is torch's affair.
    torch._dynamo.reset()
    model = tiny_model(position_embedding_type=scheme)
    tokens = random_tokens(2, 10)
    cache = StaticCache(model.config, max_cache_len=16)
    steps = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=steps)

    with torch.no_grad():
        parts = [model(tokens[:, :4], past_key_values=cache, use_cache=True).logits]
        for place in range(4, 10):
            token = tokens[:, place : place + 1]
            parts.append(compiled(token, past_key_values=cache, use_cache=True).logits)
        expected = model(tokens).logits

    torch.testing.assert_close(torch.cat(parts, dim=1), expected, **EXACT)
    assert steps.frame_count == 1
