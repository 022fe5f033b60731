import copy
import math

import pytest
import torch

from hf_tinyformer.training.muon import Muon, orthogonalize


def slow_orthogonalize(matrix):
    """The iteration as Jordan's post writes it, on one matrix, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def slow_muon_step(weight, gradient, buffer, *, lr, momentum, weight_decay):
    buffer = momentum * buffer + (1 - momentum) * gradient
    direction = (1 - momentum) * gradient + momentum * buffer
    rows, columns = weight.shape
    wide = direction if rows <= columns else direction.T
    update = slow_orthogonalize(wide)
    update = update if rows <= columns else update.T
    scale = math.sqrt(max(1, rows / columns))
    return weight * (1 - lr * weight_decay) - lr * scale * update, buffer


def test_singular_values_end_near_one_whatever_they_were():
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(8, 8))
    right, _ = torch.linalg.qr(torch.randn(20, 8))
    stretched = left @ torch.diag(torch.logspace(0, -1.5, 8)) @ right.T

    values = torch.linalg.svdvals(orthogonalize(stretched[None])[0])

    # Jordan et al. 2024: all end in about [0.7, 1.2].
    assert values.min() > 0.65
    assert values.max() < 1.25


def test_the_directions_of_the_singular_vectors_stay():
    torch.manual_seed(0)
    matrix = torch.randn(4, 6)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)

    in_its_own_axes = left.T @ orthogonalize(matrix[None])[0] @ right.T

    off_diagonal = in_its_own_axes - torch.diag(in_its_own_axes.diag())
    assert off_diagonal.abs().max() < 1e-4
    assert (in_its_own_axes.diag() > 0.5).all()


def test_a_zero_gradient_gives_a_zero_update():
    assert (orthogonalize(torch.zeros(1, 3, 5)) == 0).all()


def test_steps_follow_the_slow_reference():
    torch.manual_seed(0)
    # Two of one shape, one tall that shares their batch, one of its own.
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in [(4, 6), (4, 6), (6, 4), (5, 5)]]
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    optimizer = Muon(weights, **settings)
    expected = [w.detach().clone().double() for w in weights]
    buffers = [torch.zeros_like(w) for w in expected]

    for _ in range(3):
        for index, weight in enumerate(weights):
            weight.grad = torch.randn_like(weight)
            expected[index], buffers[index] = slow_muon_step(
                expected[index], weight.grad.double(), buffers[index], **settings
            )
        optimizer.step()

    for weight, wanted in zip(weights, expected, strict=True):
        # float32 through five iterations whose slope at zero is 3.4 ** 5.
        torch.testing.assert_close(weight.detach().double(), wanted, atol=1e-4, rtol=1e-4)


def test_batched_equals_one_by_one():
    torch.manual_seed(0)
    together = [torch.nn.Parameter(torch.randn(4, 6)) for _ in range(3)]
    apart = copy.deepcopy(together)
    for one, other in zip(together, apart, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()

    Muon(together).step()
    for parameter in apart:
        Muon([parameter]).step()

    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("columns", [6, 2])  # a wide block, and a tall one
def test_blocks_of_rows_are_updated_as_matrices_of_their_own(columns):
    torch.manual_seed(0)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    # Two shapes with blocks alike, as query and key have when heads are grouped.
    weights = [torch.nn.Parameter(torch.randn(rows, columns)) for rows in (8, 4)]
    optimizer = Muon([{"params": weights, "block_rows": 4}], **settings)
    apart = [torch.nn.Parameter(b.clone()) for w in weights for b in w.detach().split(4)]
    reference = Muon(apart, **settings)

    for _ in range(2):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        gradients = [block for w in weights for block in w.grad.split(4)]
        for block, gradient in zip(apart, gradients, strict=True):
            block.grad = gradient.clone()
        optimizer.step()
        reference.step()

    # Batches of other sizes may be multiplied in another order.
    torch.testing.assert_close(torch.cat(weights), torch.cat(apart), atol=1e-6, rtol=1e-6)


def test_bfloat16_is_close_enough():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(8, 16))
    weight.grad = torch.randn_like(weight)

    Muon([weight], lr=1.0, momentum=0.0, dtype=torch.bfloat16).step()

    values = torch.linalg.svdvals(weight.detach())
    assert weight.dtype == torch.float32
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_parameter_without_gradient_does_not_move():
    moved, still = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    moved.grad = torch.eye(2)

    Muon([moved, still], weight_decay=0.1).step()

    assert (still == 1).all()
    assert (moved != 1).any()


def test_a_step_that_found_something_not_finite_changes_nothing():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, 6))
    optimizer = Muon([weight], weight_decay=0.1)
    for value in (1.0, math.nan, 2.0):
        before = weight.detach().clone(), optimizer.state[weight].get("momentum_buffer")
        before = tuple(None if tensor is None else tensor.clone() for tensor in before)
        weight.grad = torch.full_like(weight, value)
        optimizer.found_inf = torch.tensor(float(math.isnan(value)))
        optimizer.step()
        same = torch.equal(weight, before[0])
        assert same == math.isnan(value)
        if same:
            assert torch.equal(optimizer.state[weight]["momentum_buffer"], before[1])


def test_a_step_that_found_nothing_is_as_any_other():
    moved = []
    for found_inf in (None, torch.zeros(())):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 6))
        optimizer = Muon([weight], weight_decay=0.1)
        optimizer.found_inf = found_inf
        for _ in range(3):
            weight.grad = torch.randn(4, 6)
            optimizer.step()
        moved.append(weight)

    assert torch.equal(*moved)


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\).*matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's compiler
def test_compiled_steps_are_the_same():
    torch.manual_seed(0)
    weights = {compiled: torch.nn.Parameter(torch.ones(6, 4)) for compiled in (False, True)}
    gradient = torch.randn(6, 4)
    for compiled, weight in weights.items():
        optimizer = Muon([weight], compiled=compiled)
        for _ in range(2):
            weight.grad = gradient.clone()
            optimizer.step()

    # Fused float32 operations round at other places.
    torch.testing.assert_close(weights[True], weights[False], rtol=0, atol=1e-5)
