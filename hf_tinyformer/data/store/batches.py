"""Batches as a pure function of (seed, step), whatever the number of processes.

An epoch cuts the token stream into windows of `sequence_length`, beginning at a random offset, and
takes each window once, in a random order. Both come from a Philox generator (Salmon et al. 2011)
keyed by seed and epoch, so any step is found without walking to it, and resuming needs no state.
Rows are packed: a row may hold the end of one document and the beginning of the next.

Of several sources each has epochs of its own. Every block of 4096 rows holds each source's share
by weight exactly (to the nearest row, by largest remainder), in an order drawn by seed and block.

Targets are shifted here, not in the model: a row's last target is the first token after the row,
which the model does not see. They are called `shift_labels`, transformers' name for such labels.
"""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_tinyformer.data.store.tokens import TokenStore
from hf_tinyformer.errors import ConfigError, DataError

IGNORED = -100
"""The target that counts in no loss."""

MIXTURE_BLOCK = 4096
"""Rows in which every source has its exact share."""


def _boundaries(store: TokenStore, starts: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    """Mark the documents' first tokens, shape `(len(starts), length)`."""
    marks = np.zeros((len(starts), length), dtype=np.bool_)
    for row, start in zip(marks, starts.tolist(), strict=True):
        row[store.document_starts(start, start + length) - start] = True
    return marks


def _separate_documents(batch: dict[str, Tensor], begins: NDArray[np.bool_]) -> dict[str, Tensor]:
    """Keep documents apart: no target across a gap, positions from 0 in each document.

    Args:
        batch: `input_ids` and `shift_labels`, each of shape `(rows, length)`.
        begins: Shape `(rows, length + 1)`: where a document begins, the last target included.
    """
    batch["shift_labels"][torch.from_numpy(begins[:, 1:])] = IGNORED
    if begins[:, 1:-1].any():
        place = np.arange(begins.shape[1] - 1)
        last_begin = np.maximum.accumulate(np.where(begins[:, :-1], place, 0), axis=1)
        batch["position_ids"] = torch.from_numpy(place - last_begin)
    return batch


class _Windows:
    """The windows of one source, in the order each epoch takes them."""

    def __init__(self, what: str, span: tuple[int, int], sequence_length: int, seed: int) -> None:
        start, stop = span
        # One window less than fits, so that every offset leaves each window whole and with its
        # last target, and every epoch has the same length.
        self.count = (stop - start) // sequence_length - 1
        if self.count < 1:
            raise DataError(
                f"data.sequence_length is {sequence_length}, but {what} has only {stop - start} "
                "tokens and two rows are the least. Shorten it or add text."
            )
        self._start = start
        self._sequence_length = sequence_length
        self._seed = seed
        self._starts_of_epoch: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Where the epoch's windows start, in the order they are taken; kept for one epoch."""
        if self._starts_of_epoch[0] != epoch:
            key = np.array([self._seed, epoch], dtype=np.uint64)
            # Raw words and a stable sort: unlike numpy's `permutation`, these can never change
            # with numpy's version (NEP 19).
            words = np.random.Philox(key=key).random_raw(self.count + 1)
            offset = self._start + int(words[0] % np.uint64(self._sequence_length))
            order = np.argsort(words[1:], kind="stable")
            self._starts_of_epoch = (epoch, offset + order * self._sequence_length)
        return self._starts_of_epoch[1]

    def starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the windows start that are taken first, second, ..., counted from 0 for ever."""
        starts = np.empty(len(numbers), dtype=np.int64)
        epochs = numbers // self.count
        for epoch in np.unique(epochs).tolist():
            wanted = epochs == epoch
            starts[wanted] = self._order(epoch)[numbers[wanted] - epoch * self.count]
        return starts


class _Mixture:
    """Which source each row of a run is drawn from: exact shares in every block of rows."""

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        shares = np.array(list(weights.values())) / sum(weights.values()) * MIXTURE_BLOCK
        self.quotas = np.floor(shares).astype(np.int64)
        # The rows that rounding left over go to the largest remainders.
        left = MIXTURE_BLOCK - int(self.quotas.sum())
        self.quotas[np.argsort(self.quotas - shares, kind="stable")[:left]] += 1
        for (name, weight), quota in zip(weights.items(), self.quotas.tolist(), strict=True):
            if not quota:
                raise ConfigError(
                    f"data.sources.{name}.weight is {weight}, less than 1 row in {MIXTURE_BLOCK} "
                    "of all, so the source would never be read. Raise it or leave the source out."
                )
        self._seed = seed
        self._block: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def _draw(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return source, and number of rows drawn from it before, of each row of a block."""
        if self._block is None or self._block[0] != block:
            key = np.array([self._seed, block], dtype=np.uint64)
            order = np.argsort(np.random.Philox(key=key).random_raw(MIXTURE_BLOCK), kind="stable")
            sources = np.repeat(np.arange(len(self.quotas)), self.quotas)[order]
            numbers = np.empty(MIXTURE_BLOCK, dtype=np.int64)
            for source, quota in enumerate(self.quotas.tolist()):
                numbers[sources == source] = block * quota + np.arange(quota)
            self._block = (block, sources, numbers)
        return self._block[1:]

    def rows(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return source and number in the source of rows `first` to `first + count - 1`."""
        parts = []
        taken = 0
        while taken < count:
            block, place = divmod(first + taken, MIXTURE_BLOCK)
            sources, numbers = self._draw(block)
            until = place + count - taken
            parts.append((sources[place:until], numbers[place:until]))
            taken += len(parts[-1][0])
        sources, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
        return sources, numbers

    def drawn(self, count: int) -> NDArray[np.int64]:
        """Return how many of the first `count` rows each source gave."""
        block, place = divmod(count, MIXTURE_BLOCK)
        inside = np.bincount(self._draw(block)[0][:place], minlength=len(self.quotas))
        return block * self.quotas + inside


def _derive_seed(seed: int, name: str) -> int:
    """Make another seed for another purpose."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big")


class TrainingBatches:
    """Which tokens each step trains on. Opens nothing and remembers nothing that matters.

    Args:
        store: The training split.
        sequence_length: Tokens in a row.
        global_batch_size: Rows in a step, over all processes.
        seed: Of the order. Any integer.
        mask_documents: Keep documents that share a row apart.
        sources: First position of each source and the one after its last, by name; unset, the
            whole split is one source.
        weights: The sources' shares of the rows, relative to one another. Unset or of only one
            source, rows are drawn from the split as a whole.

    Raises:
        DataError: If a source is shorter than two rows.
        ConfigError: If a weight is too small to give any row.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        sequence_length: int,
        global_batch_size: int,
        seed: int,
        mask_documents: bool,
        sources: Mapping[str, tuple[int, int]] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._store = store
        self._sequence_length = sequence_length
        self._global_batch_size = global_batch_size
        self._mask_documents = mask_documents
        seed %= 1 << 64
        self._mixture: _Mixture | None = None
        self._windows = {}
        if weights is None or len(weights) < 2:
            name = next(iter(weights or sources or {"corpus": 1}))
            whole = (0, store.num_tokens)
            self._windows[name] = _Windows("the training split", whole, sequence_length, seed)
        else:
            self._mixture = _Mixture(weights, _derive_seed(seed, ""))
            for name in weights:
                span = (sources or {}).get(name, (0, 0))
                # By name, so that another source more or less leaves each one's order alone.
                own_seed = _derive_seed(seed, name)
                what = f"the training split of data.sources.{name}"
                self._windows[name] = _Windows(what, span, sequence_length, own_seed)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return where the step's rows start, shape `(global_batch_size,)`.

        Args:
            step: From 0. Process r of n takes the r-th of n equal parts, or any other share.
        """
        first, count = step * self._global_batch_size, self._global_batch_size
        if self._mixture is None:
            (windows,) = self._windows.values()
            return windows.starts(np.arange(first, first + count))
        starts = np.empty(count, dtype=np.int64)
        sources, numbers = self._mixture.rows(first, count)
        for source, windows in enumerate(self._windows.values()):
            drawn = sources == source
            starts[drawn] = windows.starts(numbers[drawn])
        return starts

    def num_targets(self, step: int) -> int:
        """Count the step's targets that are not ignored, over all processes, reading no token."""
        starts = self.rows(step)
        length = self._sequence_length
        if not self._mask_documents:
            return len(starts) * length
        gaps = sum(len(self._store.document_starts(s + 1, s + 1 + length)) for s in starts.tolist())
        return len(starts) * length - gaps

    def batch(self, starts: NDArray[np.int64]) -> dict[str, Tensor]:
        """Read rows.

        Args:
            starts: Some or all of `rows(step)`, shape `(rows,)`.

        Returns:
            `input_ids` and `shift_labels` (the next token, or -100 where it begins another
            document), int64 of shape `(rows, sequence_length)`. With `mask_documents`, and only if
            a document begins inside one of the rows, also `position_ids`, from 0 in each document;
            without them the model needs no mask but the causal one.
        """
        tokens = torch.from_numpy(self._store.read_rows(starts, self._sequence_length + 1))
        # Copies, not views: of a single row `contiguous` would give two views of the same tokens,
        # and ignored targets would be written into the inputs.
        batch = {"input_ids": tokens[:, :-1].clone(), "shift_labels": tokens[:, 1:].clone()}
        if not self._mask_documents:
            return batch
        begins = _boundaries(self._store, starts, self._sequence_length + 1)
        return _separate_documents(batch, begins)

    def epochs(self, step: int) -> dict[str, float]:
        """How many times each source has been read when `step` steps are done."""
        rows = step * self._global_batch_size
        drawn = [rows] if self._mixture is None else self._mixture.drawn(rows).tolist()
        return {
            name: number / windows.count
            for (name, windows), number in zip(self._windows.items(), drawn, strict=True)
        }


def _validation_batch(
    store: TokenStore, starts: NDArray[np.int64], sequence_length: int, mask_documents: bool
) -> dict[str, Tensor]:
    length = sequence_length + 1
    tokens = np.zeros((len(starts), length), dtype=np.int64)
    exists = np.zeros((len(starts), length), dtype=np.bool_)
    begins = np.zeros((len(starts), length), dtype=np.bool_)
    for row, start in enumerate(starts.tolist()):
        stop = min(start + length, store.num_tokens)
        tokens[row, : stop - start] = store.read(start, stop)
        exists[row, : stop - start] = True
        if mask_documents:
            begins[row, store.document_starts(start, stop) - start] = True
    labels = np.where(exists[:, 1:], tokens[:, 1:], IGNORED)
    batch = {
        "input_ids": torch.from_numpy(tokens[:, :-1].copy()),
        "shift_labels": torch.from_numpy(labels),
    }
    return _separate_documents(batch, begins) if mask_documents else batch


def validation_batches(
    store: TokenStore,
    *,
    sequence_length: int,
    batch_size: int,
    mask_documents: bool,
    rank: int = 0,
    num_ranks: int = 1,
) -> Iterator[dict[str, Tensor]]:
    """Read a whole split in order, each token a target exactly once.

    Never a target are the split's first token and, with `mask_documents`, every document's first.
    The last row is filled on the right with zeros whose targets are ignored.

    Args:
        store: The validation split.
        sequence_length: Tokens in a row.
        batch_size: Rows in a batch, on each process.
        mask_documents: Keep documents that share a row apart.
        rank: This process.
        num_ranks: How many processes share the split. All of them get equally many batches, or
            sharded models would wait for one another forever; a process that runs out of rows gets
            a row without targets.

    Yields:
        What `TrainingBatches.batch` returns.

    Raises:
        DataError: If the split has fewer than two tokens.
    """
    if store.num_tokens < 2:
        raise DataError(
            f"The validation split has {store.num_tokens} tokens, but predicting one needs 2. "
            "Raise data.validation_fraction or name data.validation_files."
        )
    all_starts = np.arange(0, store.num_tokens - 1, sequence_length, dtype=np.int64)
    for first in range(0, len(all_starts), batch_size * num_ranks):
        starts = all_starts[first : first + batch_size * num_ranks]
        mine = np.array_split(starts, num_ranks)[rank]
        if len(mine):
            yield _validation_batch(store, mine, sequence_length, mask_documents)
        else:
            nothing = torch.zeros((1, sequence_length), dtype=torch.int64)
            yield {"input_ids": nothing, "shift_labels": torch.full_like(nothing, IGNORED)}
