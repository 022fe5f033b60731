"""What vLLM's transformers backend needs of a model it has never seen, without vLLM.

The backend builds the base model from its config, replaces the attention function by its own, which
keeps keys and values itself, and runs one row that holds all requests. Its requirements: every
keyword argument reaches the attention function, no cache and no mask of ours, and the shapes below.
"""

import inspect

import pytest
import torch
from tiny_models import random_tokens, tiny_config, tiny_model
from torch import nn
from transformers import AttentionInterface, AutoModel
from transformers.masking_utils import AttentionMaskInterface

from hf_tinyformer import TinyFormerForCausalLM, TinyFormerModel

LENGTHS = (5, 3, 6)


class PagedAttention(nn.Module):
    """Keeps keys and values of one layer, as vLLM's attention layer does."""

    def __init__(self, layer_idx, scaling):
        super().__init__()
        self.layer_idx = layer_idx
        self.scaling = scaling
        self.calls = 0

    def forward(self, query, key, value):
        """Attend causally within each request of the row."""
        self.calls += 1
        groups = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        parts = zip(*(each.split(LENGTHS, dim=2) for each in (query, key, value)), strict=True)
        return torch.cat(
            [
                nn.functional.scaled_dot_product_attention(
                    *part, is_causal=True, scale=self.scaling
                )
                for part in parts
            ],
            dim=2,
        )


def paged_attention_forward(
    module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs
):
    """What vLLM registers: find the layer's own attention by its number, ignore any mask."""
    layer = attention_instances[module.layer_idx]
    assert scaling == layer.scaling
    return layer(query, key, value).transpose(1, 2), None


@pytest.fixture
def paged():
    AttentionInterface.register("paged_probe", paged_attention_forward)
    AttentionMaskInterface.register("paged_probe", lambda *arguments, **settings: None)


@pytest.mark.parametrize("scheme", ["rope", "learned", "sinusoidal", "none"])
def test_a_base_model_serves_many_requests_through_an_attention_of_another(scheme, paged):
    model = tiny_model(TinyFormerModel, position_embedding_type=scheme)
    requests = [random_tokens(1, length) for length in LENGTHS]
    with torch.no_grad():
        alone = torch.cat([model(tokens).last_hidden_state for tokens in requests], dim=1)

    model.set_attn_implementation("paged_probe")
    layers = {
        number: PagedAttention(number, layer.self_attn.scaling)
        for number, layer in enumerate(model.layers)
    }
    with torch.no_grad():
        (states,) = model(
            input_ids=torch.cat(requests, dim=1),
            position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
            use_cache=False,
            attention_instances=layers,
            return_dict=False,
        )

    torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-5)
    assert [layer.calls for layer in layers.values()] == [1, 1]


@pytest.mark.parametrize("scheme", ["alibi", "relative"])
def test_a_score_bias_is_refused_by_name_rather_than_dropped(scheme, paged):
    model = tiny_model(TinyFormerModel, position_embedding_type=scheme)
    model.set_attn_implementation("paged_probe")

    with pytest.raises(ValueError, match=f"paged_probe.*{scheme}"):
        model(random_tokens(1, 4), use_cache=False, attention_instances={})


def test_the_base_model_is_built_without_memory_and_says_that_it_fits():
    config = tiny_config()
    with torch.device("meta"):
        model = AutoModel.from_config(config)

    assert type(model) is TinyFormerModel
    assert model.is_backend_compatible()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    # Where vLLM looks for what it shards and what it replaces.
    assert isinstance(model.layers, nn.ModuleList)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    assert TinyFormerForCausalLM.base_model_prefix == "model"
    assert config.is_causal
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ):
        assert isinstance(getattr(config, name), int), name


def test_every_forward_on_the_way_hands_keyword_arguments_down():
    model = tiny_model()

    for module in (model, model.model, model.model.layers[0], model.model.layers[0].self_attn):
        kinds = [each.kind for each in inspect.signature(module.forward).parameters.values()]
        assert inspect.Parameter.VAR_KEYWORD in kinds, type(module)


def test_the_plans_cover_every_weight_of_a_layer():
    model = tiny_model()
    planned = {pattern.split(".*.")[-1] for pattern in model.config.base_model_tp_plan}

    linear = {
        name
        for name, module in model.model.layers[0].named_modules()
        if isinstance(module, nn.Linear)
    }

    assert linear <= planned
    assert set(model.config.base_model_pp_plan) >= {"embed_tokens", "layers", "norm"}
