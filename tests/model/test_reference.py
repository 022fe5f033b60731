"""Every kind of model against the second implementation in tests/reference."""

import pytest
import torch
from reference import transformer as reference
from tiny_models import EVERY_KIND, EVERY_NAME, random_tokens, tiny_model


def scatter(model):
    """Give norms and biases, which start at 1 and 0, numbers that show when one is left out."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=EVERY_NAME)
def test_logits_are_those_of_the_papers_formulas(kind):
    model = tiny_model(**kind)
    scatter(model)
    tokens = random_tokens(1, 12)

    expected = reference.logits(model.state_dict(), model.config, tokens[0].tolist())

    with torch.no_grad():
        logits = model(tokens).logits[0]
    torch.testing.assert_close(logits.double(), torch.from_numpy(expected), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"use_qk_norm": False},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4, "head_dim": 16},
        {"tie_word_embeddings": False},
        {"rope_parameters": {"rope_theta": 500.0}},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_other_setting_changes_the_logits_as_the_formulas_say(settings):
    model = tiny_model(**settings)
    scatter(model)
    tokens = random_tokens(1, 8)

    expected = reference.logits(model.state_dict(), model.config, tokens[0].tolist())

    with torch.no_grad():
        logits = model(tokens).logits[0]
    torch.testing.assert_close(logits.double(), torch.from_numpy(expected), atol=1e-4, rtol=1e-5)
