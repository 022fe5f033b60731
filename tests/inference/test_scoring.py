import math

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from hf_tinyformer.errors import ConfigError, DataError
from hf_tinyformer.inference.scoring import (
    Row,
    batch_by_length,
    context_length,
    cut_windows,
    evaluate_texts,
    score_rows,
)

TEXTS = ["", "a", "To be, or not to be", "한국어 문장과 ünïcode", "x" * 150]


def slow_sum(model, ids, context, stride):
    """Sum of losses, one token at a time, each with what its window lets it see."""
    total = 0.0
    for position in range(1, len(ids)):
        if position <= context:
            start = 0
        else:
            steps = -(-(position - context) // stride)  # windows after the first
            stop = min(len(ids), context + 1 + steps * stride)
            start = stop - context - 1
        seen = torch.tensor([ids[start:position]])
        logits = model.eval()(input_ids=seen, use_cache=False).logits[0, -1].double()
        total -= logits.log_softmax(-1)[ids[position]].item()
    return total


@pytest.mark.parametrize("length", [0, 1, 2, 5, 6, 7, 20])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_windows_predict_each_token_but_the_first_exactly_once(length, stride):
    ids = list(range(100, 100 + length))

    rows = list(cut_windows(ids, context=5, stride=stride))

    predicted = [token for row in rows for token in row.ids[row.num_context :]]
    assert predicted == ids[1:]
    assert all(len(row.ids) - 1 <= 5 and row.num_context >= 1 for row in rows)
    # Every window but the first is full, and only its last `stride` tokens are new.
    assert all(len(row.ids) == 6 for row in rows[1:])


def test_windows_of_a_document_worked_by_hand():
    # Context 4, stride 2: read 0-3, predict 1-4; read 2-5, predict 5-6; read 3-6, predict 7.
    assert list(cut_windows(range(8), context=4, stride=2)) == [
        Row([0, 1, 2, 3, 4], 1),
        Row([2, 3, 4, 5, 6], 3),
        Row([3, 4, 5, 6, 7], 4),
    ]


def test_batches_hold_every_row_once_and_stay_small():
    rows = [Row(list(range(n)), 1) for n in (3, 9, 2, 5, 30, 4)]

    batches = list(batch_by_length(rows, tokens_at_once=12))

    assert sorted(number for batch in batches for number in batch) == list(range(6))
    for batch in batches:
        longest = max(len(rows[number].ids) for number in batch) - 1
        assert len(batch) == 1 or len(batch) * longest <= 12


@pytest.mark.parametrize("stride", [None, 1, 7, 32])
def test_figures_equal_a_slow_pass_token_by_token(tiny_llama, byte_tokenizer, stride):
    frames = [[1, *byte_tokenizer(text)["input_ids"][1:], 2] for text in TEXTS]
    total = sum(slow_sum(tiny_llama, ids, 32, stride or 16) for ids in frames)
    num_bytes = sum(len(text.encode()) for text in TEXTS)

    found = evaluate_texts(tiny_llama, byte_tokenizer, TEXTS, stride=stride)

    assert found.num_tokens == sum(len(ids) - 1 for ids in frames)
    assert found.num_bytes == num_bytes
    assert found.loss == pytest.approx(total / found.num_tokens, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / num_bytes, rel=1e-6)


@pytest.mark.parametrize("begins_with_bos", [True, False])
def test_counting_like_the_harness_predicts_no_end_and_always_reads_a_start(
    tiny_llama, byte_tokenizer, begins_with_bos
):
    # lm-evaluation-harness: <s> whatever the tokenizer does, windows side by side, no </s>.
    byte_tokenizer.init_kwargs["documents_begin_with_bos"] = begins_with_bos
    frames = [[1, *byte_tokenizer(text)["input_ids"][1:]] for text in TEXTS]
    total = sum(slow_sum(tiny_llama, ids, 32, 32) for ids in frames)

    found = evaluate_texts(tiny_llama, byte_tokenizer, TEXTS, like_lm_eval=True)

    del byte_tokenizer.init_kwargs["documents_begin_with_bos"]
    assert found.num_tokens == sum(len(text.encode()) for text in TEXTS)
    assert found.loss == pytest.approx(total / found.num_tokens, rel=1e-6)


def test_the_batch_size_changes_nothing(tiny_llama, byte_tokenizer):
    losses = [
        evaluate_texts(tiny_llama, byte_tokenizer, TEXTS, batch_size=size).loss
        for size in (1, 3, 1000)
    ]

    assert losses[1] == pytest.approx(losses[0], rel=1e-7)
    assert losses[2] == pytest.approx(losses[0], rel=1e-7)


def test_a_large_vocabulary_gets_smaller_batches(tiny_llama, monkeypatch):
    sizes = []
    tiny_llama.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    monkeypatch.setattr("hf_tinyformer.inference.scoring.LOGITS_IN_BATCH", 259 * 20)

    score_rows(tiny_llama, [Row(list(range(3, 13)), 1)] * 6)

    assert sizes == [18, 18, 18]


def test_greedy_rows_are_told_from_others(tiny_llama):
    likeliest = int(tiny_llama.eval()(input_ids=torch.tensor([[1, 5]])).logits[0, -1].argmax())
    other = (likeliest + 1) % 259

    scores = score_rows(tiny_llama, [Row([1, 5, other], 2), Row([1, 5, likeliest], 2)])

    assert [score.is_greedy for score in scores] == [False, True]
    assert [score.num_tokens for score in scores] == [1, 1]


def test_progress_adds_up_to_the_number_of_tokens(tiny_llama, byte_tokenizer, monkeypatch):
    monkeypatch.setattr("hf_tinyformer.inference.scoring.ROWS_AT_ONCE", 2)
    steps = []

    found = evaluate_texts(tiny_llama, byte_tokenizer, TEXTS, on_progress=steps.append)

    assert len(steps) > 2
    assert sum(steps) == found.num_tokens


@pytest.mark.parametrize("stride", [0, 33])
def test_a_stride_that_would_leave_out_tokens_is_refused(tiny_llama, byte_tokenizer, stride):
    with pytest.raises(ConfigError, match=rf"stride is {stride}.*max_position_embeddings \(32\)"):
        evaluate_texts(tiny_llama, byte_tokenizer, ["a"], stride=stride)


def test_a_model_without_a_last_position_is_judged_at_the_length_it_was_trained_on(byte_tokenizer):
    config = BloomConfig(vocab_size=259, hidden_size=32, n_layer=1, n_head=2, seq_length=16)
    model = BloomForCausalLM(config)

    assert context_length(model) == 16
    assert evaluate_texts(model, byte_tokenizer, TEXTS).num_tokens > 0


def test_a_model_that_does_not_say_its_context_is_refused(byte_tokenizer):
    model = BloomForCausalLM(BloomConfig(vocab_size=259, hidden_size=32, n_layer=1, n_head=2))

    with pytest.raises(ConfigError, match=r"max_position_embeddings is unset.*of this bloom model"):
        evaluate_texts(model, byte_tokenizer, TEXTS)


def test_no_documents_are_refused(tiny_llama, byte_tokenizer):
    with pytest.raises(DataError, match="0 tokens to predict and 0 bytes"):
        evaluate_texts(tiny_llama, byte_tokenizer, [])
