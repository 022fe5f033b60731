import numpy as np
import pytest

from hf_tinyformer.errors import ExportError
from hf_tinyformer.publishing.extras import require_libraries
from hf_tinyformer.publishing.parity import (
    SAMPLE_TEXTS,
    Parity,
    allow_fraction,
    generate_greedily,
    probe_rows,
)

from .conftest import make_model


def test_the_largest_difference_is_kept_and_every_position_counted():
    parity = Parity(tolerance=0.1)
    parity.compare(np.zeros((2, 3)), np.full((2, 3), 0.05), "it")
    parity.compare(np.zeros((4, 3)), np.full((4, 3), 0.02), "it")

    assert (parity.largest_difference, parity.positions) == (0.05, 6)


@pytest.mark.parametrize("wrong", [0.11, np.nan, np.inf])
def test_one_logit_outside_the_tolerance_is_refused(wrong):
    theirs = np.zeros((2, 3))
    theirs[1, 2] = wrong

    with pytest.raises(ExportError, match=f"it gives logits that differ by {wrong:.3g}.*0.1"):
        Parity(tolerance=0.1).compare(np.zeros((2, 3)), theirs, "it")


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ExportError, match=r"logits of shape \(2, 4\), but the checkpoint \(2, 3\)"):
        Parity(tolerance=0.1).compare(np.zeros((2, 3)), np.zeros((2, 4)), "it")


def test_the_tolerance_follows_the_largest_logit_but_not_below_one():
    assert allow_fraction([np.array([3.0, -20.0])], 1e-5) == pytest.approx(2e-4)
    assert allow_fraction([np.array([0.1])], 1e-5) == 1e-5


def test_texts_and_random_tokens_are_compared_within_the_context(tokenizer):
    rows = probe_rows(make_model(tokenizer), tokenizer)

    assert len(rows) == len(SAMPLE_TEXTS) + 1
    assert rows == probe_rows(make_model(tokenizer), tokenizer)
    assert {len(row) for row in rows[:2]} == {32}
    assert len(rows[-1]) == 32
    assert len(set(rows[-1])) > 20


def test_greedy_text_is_the_models_own_whatever_its_settings_are(tokenizer):
    model = make_model(tokenizer)
    expected = generate_greedily(model, [3, 4], 12)
    own = model.generation_config
    own.repetition_penalty, own.suppress_tokens = 9.0, expected

    assert generate_greedily(model, [3, 4], 12) == expected
    assert model.generation_config is own


def test_greedy_text_ends_at_the_models_end_token(tokenizer):
    model = make_model(tokenizer)
    text = generate_greedily(model, [3, 4], 12)
    model.generation_config.eos_token_id = text[2]

    assert generate_greedily(model, [3, 4], 12) == text[: text.index(text[2]) + 1]


def test_a_missing_library_is_named_with_the_command_that_installs_it():
    with pytest.raises(
        ExportError,
        match=r"--to x needs json, no_such_thing, but no_such_thing is not installed. "
        r"Run: pip install 'hf-tinyformer\[x\]'",
    ):
        require_libraries(("json", "no_such_thing"), extra="x", purpose="--to x")
