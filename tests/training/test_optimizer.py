import copy

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from hf_tinyformer.training import muon
from hf_tinyformer.training import optimizer as optimizer_module
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.muon import Muon
from hf_tinyformer.training.optimizer import (
    build_optimizers,
    hidden_matrix_names,
    set_learning_rates,
    set_momentum,
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.proj = nn.Linear(4, 4)
        self.bias_table = nn.Embedding(8, 2)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def test_muon_takes_the_matrices_inside_blocks_only():
    assert hidden_matrix_names(Tiny()) == {"layers.0.proj.weight", "layers.1.proj.weight"}


def test_a_head_of_query_key_and_value_is_a_matrix_of_its_own():
    model = tiny_model(mlp_type="swiglu")

    muon_optimizer = build_optimizers(model, TrainConfig())[0]

    names = {p: name.split(".", 3)[-1] for name, p in model.named_parameters()}
    rows = {names[p]: g["block_rows"] for g in muon_optimizer.param_groups for p in g["params"]}
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert [rows[f"self_attn.{name}.weight"] for name in projections] == [8, 8, 8, None]
    assert {rows[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down")} == {None}


def test_every_parameter_has_one_optimizer_and_tied_ones_count_once():
    model = Tiny()
    optimizers = build_optimizers(model, TrainConfig())

    owned = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(owned) == len({id(p) for p in owned})
    assert {id(p) for p in owned} == {id(p) for p in model.parameters()}
    assert [type(o) for o in optimizers] == [Muon, torch.optim.AdamW]


@pytest.mark.parametrize(
    ("precision", "fast", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("bf16", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("fp32", True, torch.float32),
    ],
)
def test_muon_computes_in_bfloat16_where_it_is_fast_and_not_refused(
    monkeypatch, precision, fast, expected
):
    monkeypatch.setattr(optimizer_module, "supports_bf16_matmul", lambda device: fast)
    seen = []
    monkeypatch.setattr(
        muon, "orthogonalize", lambda matrices, *, dtype: (seen.append(dtype), matrices)[1]
    )
    model = Tiny()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    build_optimizers(model, TrainConfig(mixed_precision=precision))[0].step()

    assert seen == [expected]


def test_muon_computes_as_the_device_that_it_will_work_on_does(monkeypatch):
    # FSDP2 shards a model on its way to the GPU, after the optimizers were built.
    monkeypatch.setattr(optimizer_module, "supports_bf16_matmul", lambda device: device.index == 7)

    here, there = (
        build_optimizers(Tiny(), TrainConfig(), device=device)[0]
        for device in (None, torch.device("cuda", 7))
    )

    assert (here._dtype, there._dtype) == (torch.float32, torch.bfloat16)


def test_adamw_alone_takes_everything():
    (optimizer,) = build_optimizers(Tiny(), TrainConfig(optimizer="adamw"))

    assert isinstance(optimizer, torch.optim.AdamW)


def test_only_matrices_decay():
    model = Tiny()
    names = {id(p): name for name, p in model.named_parameters()}
    optimizers = build_optimizers(model, TrainConfig(weight_decay=0.3))

    decayed = {
        names[id(p)]
        for o in optimizers
        for group in o.param_groups
        for p in group["params"]
        if group["weight_decay"] == 0.3
    }
    assert decayed == {n for n, p in model.named_parameters() if p.ndim == 2}


def test_frozen_parameters_are_left_out():
    model = Tiny()
    model.embed.weight.requires_grad_(False)

    optimizers = build_optimizers(model, TrainConfig())

    owned = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    assert id(model.embed.weight) not in owned


def test_rates_follow_the_factor_from_their_own_peaks():
    optimizers = build_optimizers(Tiny(), TrainConfig(learning_rate=1e-3, muon_learning_rate=0.02))

    set_learning_rates(optimizers, 0.5)
    set_learning_rates(optimizers, 0.25)

    rates = [{group["lr"] for group in o.param_groups} for o in optimizers]
    assert rates == [{0.005}, {2.5e-4}]


def test_adamw_steps_follow_the_formula():
    # Loshchilov and Hutter 2019, algorithm 2, written out.
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    config = TrainConfig(learning_rate=0.1, weight_decay=0.2, optimizer="adamw")
    (optimizer,) = build_optimizers(model, config)
    weight = model.weight.detach().clone().double()
    mean = torch.zeros_like(weight)
    square = torch.zeros_like(weight)
    for step in range(1, 4):
        gradient = torch.randn(2, 3)
        model.weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        weight *= 1 - 0.1 * 0.2
        corrected = mean / (1 - 0.9**step), square / (1 - 0.95**step)
        weight -= 0.1 * corrected[0] / (corrected[1].sqrt() + 1e-8)

    torch.testing.assert_close(model.weight.detach().double(), weight, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_copied_model_moves_the_same_way(optimizer):
    torch.manual_seed(0)
    model = Tiny()
    twin = copy.deepcopy(model)
    for one in (model, twin):
        optimizers = build_optimizers(one, TrainConfig(optimizer=optimizer))
        torch.manual_seed(1)
        for parameter in one.parameters():
            parameter.grad = torch.randn_like(parameter)
        for each in optimizers:
            each.step()

    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_momentum_is_set_for_muon_alone():
    optimizers = build_optimizers(Tiny(), TrainConfig())

    set_momentum(optimizers, 0.8)

    assert [group["momentum"] for group in optimizers[0].param_groups] == [0.8]
    assert all("momentum" not in group for group in optimizers[1].param_groups)
