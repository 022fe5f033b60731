import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tinyformer.data.store.batches import TrainingBatches, validation_batches
from hf_tinyformer.data.store.preparation import write_token_store
from hf_tinyformer.data.store.tokens import open_token_store
from hf_tinyformer.data.text.documents import Document
from hf_tinyformer.errors import ConfigError, DataError


class ListStore:
    """A token store in a list: documents whose tokens are all different numbers."""

    def __init__(self, lengths: list[int]) -> None:
        self.num_tokens = sum(lengths)
        self.starts = np.cumsum([0, *lengths])[:-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.num_tokens
        return np.arange(start, stop) + 1000

    def read_rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        rows = [self.read(start, start + length) for start in starts]
        return np.stack(rows) if rows else np.empty((0, length), dtype=np.int64)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.num_tokens
        return self.starts[(self.starts >= start) & (self.starts < stop)]


def make(lengths: list[int], **options) -> TrainingBatches:
    defaults = {"sequence_length": 4, "global_batch_size": 3, "seed": 0, "mask_documents": True}
    return TrainingBatches(ListStore(lengths), **{**defaults, **options})


document_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def expected_row(store: ListStore, start: int, length: int, mask: bool):
    """One row, token by token: the obvious second implementation."""
    inputs, labels, positions = [], [], []
    place = 0
    for step, position in enumerate(range(start, start + length)):
        if mask and step and position in store.starts:
            place = 0
        begins_another = mask and position + 1 in store.starts
        inputs.append(1000 + position)
        labels.append(-100 if begins_another else 1000 + position + 1)
        positions.append(place)
        place += 1
    return inputs, labels, positions


# Rows


@settings(max_examples=60)
@given(
    num_tokens=st.integers(8, 200),
    sequence_length=st.integers(2, 9),
    batch_size=st.integers(1, 9),
    seed=st.integers(-(2**63), 2**64),
)
def test_an_epoch_takes_every_window_exactly_once(num_tokens, sequence_length, batch_size, seed):
    num_tokens = max(num_tokens, 2 * sequence_length)
    batches = make(
        [num_tokens], sequence_length=sequence_length, global_batch_size=batch_size, seed=seed
    )
    num_windows = num_tokens // sequence_length - 1
    steps = -(-3 * num_windows // batch_size)
    taken = np.concatenate([batches.rows(step) for step in range(steps)])

    for epoch in range(3):
        starts = np.sort(taken[epoch * num_windows : (epoch + 1) * num_windows])
        offset = starts[0]
        assert 0 <= offset < sequence_length
        assert starts.tolist() == [offset + k * sequence_length for k in range(num_windows)]
        assert starts[-1] + sequence_length < num_tokens  # the last target exists


def test_the_order_and_the_offset_change_with_the_epoch_and_the_seed():
    def epochs(seed: int) -> list[tuple[int, ...]]:
        batches = make([4000], global_batch_size=999, seed=seed)  # 4000 / 4 - 1 windows: one epoch
        return [tuple(batches.rows(step)) for step in range(8)]

    orders = epochs(0) + epochs(1)
    assert len(set(orders)) == 16
    assert {min(order) for order in orders} == {0, 1, 2, 3}


def test_the_first_rows_of_seed_zero_are_these_for_ever():
    # Written down once: another numpy, another machine must give the same batches.
    batches = make([1000], sequence_length=10, global_batch_size=5)

    assert batches.rows(0).tolist() == [659, 539, 429, 689, 379]
    assert batches.rows(100).tolist() == [205, 655, 625, 335, 405]


def test_a_step_is_found_without_the_steps_before_it():
    walked = make([300])
    rows = [walked.rows(step).tolist() for step in range(120)]

    for step in (119, 0, 57, 24, 25, 57):
        assert make([300]).rows(step).tolist() == rows[step]
        assert walked.rows(step).tolist() == rows[step]


def test_a_batch_larger_than_an_epoch_goes_on_with_the_next_epochs():
    batches = make([12], global_batch_size=7)  # two windows an epoch

    starts = np.concatenate([batches.rows(step) for step in range(2)]).tolist()

    for first in range(0, 14, 2):
        low, high = sorted(starts[first : first + 2])
        assert high - low == 4


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 6])
def test_the_number_of_processes_changes_nothing(num_processes):
    batches = make([5, 9, 30, 2, 40], global_batch_size=12)
    whole = batches.batch(batches.rows(3))

    parts = [batches.batch(rows) for rows in np.split(batches.rows(3), num_processes)]

    for key in ("input_ids", "shift_labels"):
        assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])
    targets = sum(int((part["shift_labels"] != -100).sum()) for part in parts)
    assert targets == batches.num_targets(3)


def test_epochs_are_counted_in_windows():
    batches = make([44], global_batch_size=5)  # 44 / 4 - 1 = 10 windows

    found = [batches.epochs(step)["corpus"] for step in (0, 1, 2, 3)]
    assert found == [0.0, 0.5, 1.0, 1.5]


def test_a_split_shorter_than_two_rows_is_an_error():
    make([8])
    with pytest.raises(DataError, match=r"sequence_length is 4, but .* only 7 tokens"):
        make([7])


# Sources


SPANS = {"wiki": (0, 400), "code": (400, 520), "books": (520, 1300)}
WEIGHTS = {"wiki": 0.5, "code": 0.2, "books": 0.3}


def mix(weights=WEIGHTS, spans=SPANS, **options) -> TrainingBatches:
    return make([1300], sources=spans, weights=weights, **options)


def sources_of(starts: np.ndarray) -> list[str]:
    names = list(SPANS)
    return [names[np.searchsorted([400, 520], start, side="right")] for start in starts.tolist()]


def test_one_source_of_any_weight_is_drawn_as_without_sources():
    plain = make([1300])
    named = make([1300], sources={"wiki": (0, 1300)}, weights={"wiki": 0.3})

    for step in (0, 7, 200):
        assert named.rows(step).tolist() == plain.rows(step).tolist()
    assert named.epochs(4) == {"wiki": plain.epochs(4)["corpus"]}


def test_every_block_of_rows_holds_the_exact_quotas():
    # Of 4096 rows: 2048, 819.2 and 1228.8, so the row that is left over goes to books.
    batches = mix(global_batch_size=4096)

    for step in range(3):
        assert Counter(sources_of(batches.rows(step))) == {"wiki": 2048, "code": 819, "books": 1229}


@pytest.mark.parametrize("batch_size", [1, 7, 4096, 5000])
def test_the_rows_of_a_mixture_do_not_depend_on_the_batch_size(batch_size):
    whole = mix(global_batch_size=10_000).rows(0)

    batches = mix(global_batch_size=batch_size)
    steps = -(-10_000 // batch_size)
    found = np.concatenate([batches.rows(step) for step in range(steps)])[:10_000]

    assert found.tolist() == whole.tolist()


def test_each_source_takes_its_windows_exactly_once_in_each_of_its_epochs():
    rows = mix(global_batch_size=20_000).rows(0)
    names = np.array(sources_of(rows))
    for name, (start, stop) in SPANS.items():
        num_windows = (stop - start) // 4 - 1
        own = rows[names == name]
        for epoch in range(len(own) // num_windows):
            taken = np.sort(own[epoch * num_windows : (epoch + 1) * num_windows])
            assert (np.diff(taken) == 4).all()
            assert start <= taken[0] < start + 4
            assert taken[-1] + 4 < stop  # the last target is of the same source


def test_epochs_are_counted_for_each_source():
    batches = mix(global_batch_size=50)
    rows = np.concatenate([batches.rows(step) for step in range(100)])
    drawn = Counter(sources_of(rows))

    expected = {name: drawn[name] / ((b - a) // 4 - 1) for name, (a, b) in SPANS.items()}
    assert batches.epochs(100) == pytest.approx(expected)
    assert batches.epochs(0) == {"wiki": 0.0, "code": 0.0, "books": 0.0}


def test_a_mixed_step_is_found_without_the_steps_before_it():
    walked = mix(global_batch_size=100)
    rows = [walked.rows(step).tolist() for step in range(90)]

    for step in (89, 0, 40, 41, 3):
        assert mix(global_batch_size=100).rows(step).tolist() == rows[step]
        assert walked.rows(step).tolist() == rows[step]


def test_the_order_of_a_source_does_not_depend_on_the_other_sources():
    two = {"wiki": (0, 400), "books": (520, 1300)}
    both = mix({"books": 1.0, "wiki": 1.0}, two, global_batch_size=2000).rows(0)
    all_three = mix(global_batch_size=8000).rows(0)

    in_both = [start for start in both.tolist() if start < 400]
    among_all = [start for start in all_three.tolist() if start < 400]
    assert in_both == among_all[: len(in_both)]


def test_the_first_rows_of_a_mixture_are_these_for_ever():
    # Written down once: another numpy, another machine must give the same batches.
    batches = mix(global_batch_size=6)

    assert batches.rows(0).tolist() == [528, 43, 492, 15, 203, 323]
    assert batches.rows(5000).tolist() == [59, 311, 215, 187, 347, 1118]


def test_weights_are_relative():
    tripled = {name: 3 * weight for name, weight in WEIGHTS.items()}

    assert mix(tripled).rows(11).tolist() == mix().rows(11).tolist()


def test_a_weight_that_would_give_no_row_and_a_short_source_are_errors():
    with pytest.raises(ConfigError, match=r"data\.sources\.code\.weight is 1e-05, less than 1 row"):
        mix({"wiki": 1.0, "code": 1e-5})
    with pytest.raises(DataError, match=r"training split of data\.sources\.code has only 7 tokens"):
        mix({"wiki": 1.0, "code": 1.0}, {"wiki": (0, 1293), "code": (1293, 1300)})
    with pytest.raises(DataError, match=r"data\.sources\.code has only 0 tokens"):
        mix({"wiki": 1.0, "code": 1.0}, {"wiki": (0, 1300)})


# Batches


def test_a_row_across_documents_worked_by_hand():
    # Documents of 3, 2 and 20 tokens; the row at 1 holds the last two of the first document.
    batch = make([3, 2, 20], sequence_length=6).batch(np.array([1]))

    assert batch["input_ids"].tolist() == [[1001, 1002, 1003, 1004, 1005, 1006]]
    assert batch["shift_labels"].tolist() == [[1002, -100, 1004, -100, 1006, 1007]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 0, 1]]


def test_a_document_that_begins_with_the_last_target_needs_no_positions():
    batch = make([5, 20]).batch(np.array([1, 5]))

    assert batch["shift_labels"].tolist() == [[1002, 1003, 1004, -100], [1006, 1007, 1008, 1009]]
    assert "position_ids" not in batch


def test_without_masking_the_stream_is_one_text():
    batch = make([3, 2, 20], mask_documents=False).batch(np.array([1, 4]))

    assert sorted(batch) == ["input_ids", "shift_labels"]
    assert torch.equal(batch["shift_labels"], batch["input_ids"] + 1)


@settings(max_examples=80)
@given(lengths=document_lengths, sequence_length=st.integers(2, 8), mask=st.booleans())
def test_every_batch_equals_the_obvious_one(lengths, sequence_length, mask):
    lengths = [*lengths, 2 * sequence_length]
    batches = make(lengths, sequence_length=sequence_length, mask_documents=mask)
    store = ListStore(lengths)
    for step in range(4):
        rows = batches.rows(step)
        batch = batches.batch(rows)

        inputs, labels, positions = zip(
            *(expected_row(store, start, sequence_length, mask) for start in rows.tolist()),
            strict=True,
        )
        assert batch["input_ids"].tolist() == list(inputs)
        assert batch["shift_labels"].tolist() == list(labels)
        assert batches.num_targets(step) == sum(np.array(labels).ravel() != -100)
        plain = list(range(sequence_length))
        if any(row != plain for row in positions):
            assert batch["position_ids"].tolist() == list(positions)
        else:
            assert "position_ids" not in batch
        for tensor in batch.values():
            assert tensor.dtype == torch.int64
            assert tensor.is_contiguous()


def test_batches_come_from_a_real_store_too(tmp_path, bpe, texts):
    documents = {split: [Document(text, "") for text in texts] for split in ("train", "validation")}
    write_token_store(tmp_path / "t", tokenizer=bpe, documents=documents, facts={})
    store = open_token_store(tmp_path / "t").train
    batches = TrainingBatches(
        store, sequence_length=32, global_batch_size=8, seed=1, mask_documents=True
    )

    for step in range(10):
        batch = batches.batch(batches.rows(step))
        # <s> is 1 and begins a document, </s> is 2 and ends one; neither stands elsewhere.
        inside = batch["input_ids"][:, 1:] == 1
        assert (batch["position_ids"][:, 1:][inside] == 0).all()
        assert ((batch["position_ids"][:, 1:] == 0) == inside).all()
        assert ((batch["shift_labels"] == -100) == (batch["input_ids"] == 2)).all()
        assert batches.num_targets(step) == int((batch["shift_labels"] != -100).sum())


# Validation


def targets(batches) -> Counter:
    found: Counter = Counter()
    for batch in batches:
        known = batch["shift_labels"] != -100
        assert (batch["shift_labels"][known] == batch["input_ids"][known] + 1).all()
        found.update(batch["shift_labels"][known].tolist())
    return found


@settings(max_examples=80)
@given(
    lengths=document_lengths.filter(lambda lengths: sum(lengths) > 1),
    sequence_length=st.integers(2, 9),
    batch_size=st.integers(1, 4),
    num_ranks=st.integers(1, 4),
    mask=st.booleans(),
)
def test_validation_predicts_every_token_once_on_any_number_of_ranks(
    lengths, sequence_length, batch_size, num_ranks, mask
):
    store = ListStore(lengths)
    options = {
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "mask_documents": mask,
        "num_ranks": num_ranks,
    }
    ranks = [list(validation_batches(store, rank=rank, **options)) for rank in range(num_ranks)]

    predicted = sum((targets(batches) for batches in ranks), Counter())

    never = set(store.starts.tolist()) if mask else {0}
    assert predicted == Counter(1000 + p for p in range(store.num_tokens) if p not in never)
    assert len({len(batches) for batches in ranks}) == 1
    for batch in itertools.chain(*ranks):
        assert batch["input_ids"].shape[1] == sequence_length
        assert 1 <= batch["input_ids"].shape[0] <= batch_size


def test_the_last_validation_row_is_filled_up_on_the_right():
    batches = list(
        validation_batches(ListStore([6]), sequence_length=4, batch_size=8, mask_documents=True)
    )

    assert len(batches) == 1
    assert batches[0]["input_ids"].tolist() == [[1000, 1001, 1002, 1003], [1004, 1005, 0, 0]]
    assert batches[0]["shift_labels"].tolist() == [[1001, 1002, 1003, 1004], [1005, *[-100] * 3]]


def test_validation_positions_restart_with_each_document():
    batches = validation_batches(
        ListStore([2, 3]), sequence_length=4, batch_size=1, mask_documents=True
    )

    (batch,) = batches
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1]]
    assert batch["shift_labels"].tolist() == [[1001, -100, 1003, 1004]]


def test_a_validation_split_of_one_token_is_an_error():
    with pytest.raises(DataError, match=r"validation split has 1 tokens, but"):
        next(
            validation_batches(ListStore([1]), sequence_length=4, batch_size=1, mask_documents=True)
        )
