import pytest
import torch

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.training import loss as loss_module
from hf_tinyformer.training.loss import LossModel, rows_at_once


def build(**settings) -> TinyFormerForCausalLM:
    torch.manual_seed(0)
    config = TinyFormerConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        **settings,
    )
    return TinyFormerForCausalLM(config)


def batch():
    rows = torch.randint(0, 97, (3, 20))
    labels = rows.roll(-1, dims=1)
    labels[:, -1] = -100
    labels[1, 5:9] = -100
    return {"input_ids": rows, "shift_labels": labels, "num_items_in_batch": torch.tensor(53)}


def loss_and_gradients(called, model, inputs, *, bf16=False, scale=1.0):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = called(**inputs, use_cache=False).loss
    (scale * loss).backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_loss_and_gradients_are_those_of_the_model(monkeypatch, tied, rows_at_once):
    monkeypatch.setitem(loss_module.LOGITS_AT_ONCE, "cpu", 97 * rows_at_once)
    model, inputs = build(tie_word_embeddings=tied), batch()
    expected, wanted = loss_and_gradients(model, model, inputs, scale=3.0)

    found, gradients = loss_and_gradients(LossModel(model), model, inputs, scale=3.0)

    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        # Sums of float32 in another order.
        limit = 2e-6 * wanted[name].abs().max().item()
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=limit, msg=name)


def test_in_bf16_it_is_as_exact_as_the_models_own():
    model, inputs = build(), batch()
    _, exact = loss_and_gradients(model, model, inputs)
    _, usual = loss_and_gradients(model, model, inputs, bf16=True)

    loss, found = loss_and_gradients(LossModel(model), model, inputs, bf16=True)

    assert loss.dtype == torch.float32
    error, usual_error = (
        torch.cat([(each[name] - exact[name]).flatten() for name in exact]).norm()
        for each in (found, usual)
    )
    assert error < 1.25 * usual_error  # both round to 8 bits, in different places


def test_a_batch_that_predicts_nothing_has_no_loss():
    model, inputs = build(), batch()
    inputs["shift_labels"] = torch.full_like(inputs["shift_labels"], -100)

    loss, gradients = loss_and_gradients(LossModel(model), model, inputs)

    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients.values())


@pytest.mark.parametrize(("device", "parts"), [("cpu", 395), ("cuda", 13), ("meta", 395)])
def test_a_gpu_takes_the_logits_in_few_parts(device, parts):
    # GPT-2's vocabulary, and 32 rows of 1,024 tokens: 4 Mi logits are 83 tokens, 128 Mi are 2,668.
    rows = rows_at_once(50_257, torch.device(device))

    assert -(-32 * 1024 // rows) == parts


def test_no_tensor_of_all_logits_exists(monkeypatch):
    monkeypatch.setitem(loss_module.LOGITS_AT_ONCE, "cpu", 97 * 4)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (97,):
                largest = max(largest, result.numel() // 97)
            return result

    model, inputs = build(), batch()
    with Watch():
        loss_and_gradients(LossModel(model), model, inputs)

    assert largest == 32  # the head's own transpose; of the 60 rows there were never more than 4
