import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_tinyformer.errors import DataError
from hf_tinyformer.inference import evaluation
from hf_tinyformer.inference.evaluation import (
    evaluate_batches,
    sum_losses,
    summarize_losses,
    token_losses,
)


class FixedModel(nn.Module):
    """Says for every token: the next one is token 1 with odds 3 to 1 to 0 among three tokens."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, input_ids, use_cache, position_ids=None):
        self.calls.append({"use_cache": use_cache, "position_ids": position_ids})
        logits = torch.tensor([0.0, math.log(3.0), -math.inf])
        return SimpleNamespace(logits=logits.expand(*input_ids.shape, 3))


def test_figures_match_the_formulas_worked_by_hand():
    # Probabilities 1/4 and 3/4: the labels 1, 1, 0 cost 2 ln(4/3) + ln 4.
    batch = {"input_ids": torch.zeros(1, 4, dtype=torch.long)}
    batch["shift_labels"] = torch.tensor([[1, -100, 1, 0]])
    total = 2 * math.log(4 / 3) + math.log(4)

    found = evaluate_batches(FixedModel(), [batch], num_bytes=5, device="cpu")

    assert found.num_tokens == 3
    assert found.num_bytes == 5
    assert found.loss == pytest.approx(total / 3, rel=1e-7)
    assert found.perplexity == pytest.approx(math.exp(total / 3), rel=1e-7)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / 5, rel=1e-7)


def test_no_cache_is_made_and_position_ids_reach_the_model():
    model = FixedModel()
    ids = torch.zeros(1, 2, dtype=torch.long)

    sum_losses(model, [{"input_ids": ids, "shift_labels": ids, "position_ids": ids}], "cpu")

    assert model.calls[0]["use_cache"] is False
    assert model.calls[0]["position_ids"] is not None


def test_the_sum_is_the_same_however_the_rows_are_batched(tiny_llama):
    ids = torch.randint(3, 259, (6, 17), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": row[None, :-1], "shift_labels": row[None, 1:]} for row in ids]
    together = [{"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:]}]

    one_by_one = sum_losses(tiny_llama, rows, "cpu")
    at_once = sum_losses(tiny_llama, together, "cpu")

    assert one_by_one[1] == at_once[1] == 96
    assert one_by_one[0] == pytest.approx(at_once[0], rel=1e-7)


def test_the_loss_equals_the_one_transformers_computes(tiny_llama):
    ids = torch.randint(3, 259, (2, 17), generator=torch.Generator().manual_seed(1))
    expected = tiny_llama(input_ids=ids, labels=ids).loss.item()

    batch = {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:]}
    found = evaluate_batches(tiny_llama, [batch], num_bytes=1, device="cpu")

    assert found.loss == pytest.approx(expected, rel=1e-6)


def test_losses_in_pieces_equal_losses_at_once(monkeypatch):
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100, 4, 5], [6, 0, 1, 2, 3]])
    at_once = token_losses(logits, labels)

    monkeypatch.setattr(evaluation, "LOGITS_AT_ONCE", 14)  # two tokens a piece

    assert torch.equal(token_losses(logits, labels), at_once)
    assert at_once[0, 2] == 0


def test_losses_of_half_precision_logits_are_taken_in_float32():
    logits = torch.randn(1, 4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[1, 2, 3, 4]])
    expected = -logits.double().log_softmax(-1)[0, torch.arange(4), labels[0]]

    found = token_losses(logits, labels)

    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_models_own_mode_is_put_back_even_after_a_failure(training):
    model = FixedModel().train(training)

    with pytest.raises(KeyError, match="shift_labels"):
        sum_losses(model, [{"input_ids": torch.zeros(1, 1)}], "cpu")

    assert model.training is training


def test_progress_counts_the_batches():
    ids = torch.zeros(1, 2, dtype=torch.long)
    seen = []

    batch = {"input_ids": ids, "shift_labels": ids}
    sum_losses(FixedModel(), [batch] * 3, "cpu", on_progress=seen.append)

    assert seen == [1, 1, 1]


def test_a_text_without_a_token_to_predict_is_refused():
    with pytest.raises(DataError, match="0 tokens to predict and 9 bytes"):
        summarize_losses(0.0, 0, 9)


def test_a_hopeless_loss_has_infinite_perplexity_instead_of_an_overflow():
    assert summarize_losses(1000.0, 1, 1).perplexity == math.inf
