from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.costs import (
    Activations,
    Counts,
    compare_sharing,
    count_parameters,
    measure_activations,
    step_costs,
)
from hf_tinyformer.training.loss import LossModel
from hf_tinyformer.training.optimizer import build_optimizers, hidden_matrix_names

LENGTH = 16


def config(**settings: object) -> TinyFormerConfig:
    return TinyFormerConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        **settings,
    )


# P = 1000, outside the blocks 200, a block 400; Muon moves 600, 240 of them of one shape.
COUNTS = Counts(
    parameters=1000,
    outside_blocks=200,
    largest_block=400,
    gathered_twice=1800,
    muon=600,
    muon_group=240,
)
KEPT = Activations(per_row=50, fixed=1600)


def costs(sharing: str, **settings: object):
    usual = {"processes": 4, "micro_batch_size": 2, "num_micro_batches": 1, "bf16": False}
    return step_costs(COUNTS, KEPT, sharing=sharing, **(usual | settings))


def test_ddp_worked_by_hand() -> None:
    found = costs("ddp")

    assert (found.weights, found.gradients) == (4000, 4000)
    assert found.optimizer == 8 * 1000 - 4 * 600
    assert found.activations == 100
    assert found.muon_update == 20 * 240
    assert found.all_reduce == 2 * 3 / 4 * 4000
    assert found.traffic == 6000
    # Muon's update is larger than what the forward pass keeps.
    assert found.memory == 4000 + 4000 + 5600 + 4800


def test_fsdp2_worked_by_hand() -> None:
    found = costs("fsdp2", bf16=True)

    assert (found.weights, found.gradients, found.optimizer) == (1000, 1000, 1400)
    assert found.compute_weights == 2 * (200 + 2 * 400)
    assert found.all_gather == 3 / 4 * (2 * 1800 + 4 * 600)
    assert found.reduce_scatter == 3 / 4 * 4 * 1000  # float32, whatever is computed with
    assert found.all_reduce == 0


def test_accumulating_gathers_again_and_keeps_whole_gradients_under_fsdp2_only() -> None:
    once, thrice = (costs("fsdp2", num_micro_batches=n, bf16=True) for n in (1, 3))

    assert thrice.all_gather - once.all_gather == 2 * 3 / 4 * 2 * 1800
    assert thrice.gradients - once.gradients == 4000
    assert costs("ddp", num_micro_batches=3) == costs("ddp")


@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
def test_one_process_sends_nothing(sharing: str) -> None:
    assert costs(sharing, processes=1).traffic == 0


@pytest.mark.parametrize("tied", [True, False])
def test_counts_are_those_of_the_model(tied: bool) -> None:
    shape = config(tie_word_embeddings=tied)
    model = TinyFormerForCausalLM(shape)
    names = hidden_matrix_names(model)
    block = sum(p.numel() for p in model.model.layers[0].parameters())

    found = count_parameters(shape, optimizer="muon")

    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.largest_block == block
    assert found.outside_blocks == found.parameters - 3 * block
    assert found.muon == sum(p.numel() for n, p in model.named_parameters() if n in names)
    # Kept from the forward to the backward pass: last norm and head, and what is tied to it.
    kept = 64 * 32 + 32
    assert found.gathered_twice == 2 * found.parameters - kept
    assert count_parameters(shape, optimizer="adamw").muon == 0


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_optimizer_state_is_what_the_optimizers_hold(optimizer: str) -> None:
    model = TinyFormerForCausalLM(config())
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer))
    ids = torch.zeros((1, LENGTH), dtype=torch.long)
    model(input_ids=ids, labels=ids).loss.backward()
    for one in optimizers:
        one.step()
    held = sum(
        tensor.nbytes
        for one in optimizers
        for state in one.state.values()
        for name, tensor in state.items()
        if name != "step"
    )

    found = step_costs(
        count_parameters(config(), optimizer=optimizer),
        KEPT,
        sharing="ddp",
        processes=1,
        micro_batch_size=1,
        num_micro_batches=1,
        bf16=False,
    )

    assert found.optimizer == held


def kept_by_a_real_forward_pass(
    shape: TinyFormerConfig, rows: int, *, bf16: bool, sharing: str
) -> int:
    model = TinyFormerForCausalLM(shape)
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = tensor
        return tensor

    ids = torch.randint(0, 64, (rows, LENGTH))
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext()
    with precision, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        if sharing == "ddp":
            LossModel(model)(input_ids=ids, shift_labels=ids, num_items_in_batch=torch.tensor(1.0))
        else:
            model(input_ids=ids, labels=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("sharing", ["ddp", "fsdp2"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("settings", [{}, {"mlp_type": "gelu", "norm_type": "layernorm"}])
def test_activations_are_those_of_a_real_forward_pass(
    settings: dict[str, str], bf16: bool, sharing: str
) -> None:
    shape = config(**settings)

    found = measure_activations(shape, length=LENGTH, bf16=bf16, sharing=sharing)

    real = [
        kept_by_a_real_forward_pass(shape, rows, bf16=bf16, sharing=sharing) for rows in (1, 2, 4)
    ]
    assert found.per_row == real[1] - real[0]
    assert found.fixed == real[0] - found.per_row
    # A few bytes hold the loss and its count, whatever the rows.
    assert real[2] == pytest.approx(real[0] + 3 * found.per_row, abs=64)


def test_ddp_keeps_no_logits() -> None:
    parts, whole = (
        measure_activations(config(), length=LENGTH, bf16=True, sharing=sharing).per_row
        for sharing in ("ddp", "fsdp2")
    )

    logits_in_float32 = 64 * LENGTH * 4
    assert whole - parts >= logits_in_float32


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"global_batch_size is 32.*multiple of the 5"):
        compare_sharing(config(), TrainConfig(), length=LENGTH, processes=5, bf16=True)


@pytest.mark.slow
def test_the_tables_of_the_document_are_what_the_formulas_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import scaling_costs

    table = scaling_costs.render(scaling_costs.HEAD, scaling_costs.compute_rows())

    assert table in (root / "docs" / "scaling.md").read_text(encoding="utf-8")
