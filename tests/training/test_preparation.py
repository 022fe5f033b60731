import json
from types import SimpleNamespace

import pytest
import torch

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.training import preparation
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.cpu_attention import IN_FLOAT32, choose_attention
from hf_tinyformer.training.preparation import KEPT_ON_CPU, compiles, prepare_model


def build(**settings) -> TinyFormerForCausalLM:
    torch.manual_seed(0)
    config = TinyFormerConfig(
        vocab_size=61, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, **settings
    )
    return TinyFormerForCausalLM(config)


def an_accelerator(device: str = "cpu", processes: int = 1, precision: str = "bf16"):
    return SimpleNamespace(
        device=torch.device(device),
        num_processes=processes,
        mixed_precision=precision,
        distributed_type="NO",
        prepare=lambda model: model,
    )


@pytest.mark.parametrize("setting", [True, False])
def test_a_word_of_the_user_decides(setting):
    config = TrainConfig(compile=setting)

    assert compiles(build(), config, an_accelerator(), sequence_length=64) is setting


@pytest.mark.parametrize(
    ("steps", "device", "processes", "compiler", "expected"),
    [
        (10**9, "cpu", 1, "g++", True),
        (100, "cpu", 1, "g++", False),  # over before the compiler is done
        (10**9, "cpu", 2, "g++", False),
        (10**9, "cpu", 1, None, False),
        (10**9, "mps", 1, "g++", False),
        (10**9, "cuda", 1, "g++", True),
    ],
)
def test_unset_it_compiles_where_that_pays_off(
    monkeypatch, steps, device, processes, compiler, expected
):
    monkeypatch.setattr(preparation.shutil, "which", lambda name: compiler)
    config = TrainConfig(max_steps=steps)

    found = compiles(build(), config, an_accelerator(device, processes), sequence_length=64)

    assert found is expected


@pytest.mark.parametrize(("setting", "expected"), [(None, KEPT_ON_CPU), (1.0, 1.0), (0.0, 0.0)])
def test_a_compiled_run_keeps_the_share_of_activations_that_is_set(monkeypatch, setting, expected):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    config = TrainConfig(compile=True, activation_memory_budget=setting)

    with torch._functorch.config.patch(activation_memory_budget=0.5):
        prepare_model(build(), config, an_accelerator(), sequence_length=64)
        found = torch._functorch.config.activation_memory_budget

    assert found == expected


@pytest.mark.parametrize(
    ("current", "has_score_bias", "sequence_length", "chosen"),
    [
        ("sdpa", False, 64, IN_FLOAT32),
        ("sdpa", False, 256, "eager"),
        ("sdpa", False, 1024, "sdpa"),
        ("sdpa", True, 64, "eager"),
        ("flex_attention", False, 64, "flex_attention"),
    ],
)
def test_attention_is_chosen_by_the_length_of_a_row(
    current, has_score_bias, sequence_length, chosen
):
    found = choose_attention(
        current, has_score_bias=has_score_bias, sequence_length=sequence_length
    )

    assert found == chosen


def gradients(model, rows, *, positions=None, precision):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(
            input_ids=rows, position_ids=positions, shift_labels=rows, use_cache=False
        ).loss
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("scheme", ["rope", "learned", "alibi", "relative"])
@pytest.mark.parametrize("sequence_length", [64, 192])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_in_bf16_are_as_good_as_those_of_torchs_own_attention(
    scheme, sequence_length, packed
):
    model = build(position_embedding_type=scheme, initializer_range=0.1)
    rows = torch.randint(0, 61, (3, sequence_length))
    positions = None
    if packed:
        half = torch.arange(sequence_length // 2)
        positions = torch.cat([half, half]).expand(3, -1)
    exact = gradients(model, rows, positions=positions, precision="fp32")
    usual = gradients(model, rows, positions=positions, precision="bf16")

    prepare_model(model, TrainConfig(), an_accelerator(), sequence_length=sequence_length)
    found = gradients(model, rows, positions=positions, precision="bf16")

    assert model.config._attn_implementation != "sdpa"
    error, usual_error = ((each - exact).norm() for each in (found, usual))
    # bf16 has 8 bits of precision: either is off by some thousandths, none systematically.
    assert error < 1.25 * usual_error
    assert usual_error < 0.05 * exact.norm()


def test_attention_in_float32_gives_what_weights_in_bf16_take():
    model = build().to(torch.bfloat16)  # as FSDP2 gathers them, without autocast
    model.set_attn_implementation(IN_FLOAT32)

    logits = model(input_ids=torch.zeros((1, 8), dtype=torch.long)).logits

    assert logits.dtype == torch.bfloat16


def test_nothing_of_it_is_saved(tmp_path):
    model = build()
    prepare_model(model, TrainConfig(), an_accelerator(), sequence_length=64)
    assert model.config._attn_implementation == IN_FLOAT32

    model.save_pretrained(tmp_path)

    assert IN_FLOAT32 not in (tmp_path / "config.json").read_text()
    assert "attn_implementation" not in json.loads((tmp_path / "config.json").read_text())


def test_in_float32_the_models_own_attention_stays():
    model = build()

    prepare_model(model, TrainConfig(), an_accelerator(precision="no"), sequence_length=64)

    assert model.config._attn_implementation == "sdpa"
