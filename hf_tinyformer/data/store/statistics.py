"""What a corpus is made of: documents, bytes, tokens, lengths, scripts, by split and by source.

Of the lengths only a histogram is kept, sixteen bins to each doubling, so memory does not grow with
the corpus, and a quantile is right to about 2 %. Counts, sums, least and greatest are exact.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_tinyformer.artifacts import write_bytes
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import plan_parts, read_part
from hf_tinyformer.data.text.scripts import NAMES, count_scripts, name_shares

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from hf_tinyformer.data.store.tokens import TokenStore, TokenStores

BINS_PER_DOUBLING = 16
_NUM_BINS = 48 * BINS_PER_DOUBLING
_BINS_DRAWN_TOGETHER = 4
INK = "#333333"
_CHARACTERS_AT_ONCE = 1 << 20
_POSITIONS_AT_ONCE = 1 << 24
_SAMPLED_DOCUMENTS = 2_000
_SAMPLED_TOKENS = 4_096
"""Tokens decoded of one document at most, to learn its scripts."""


@dataclass
class Lengths:
    """How long the documents of a group are."""

    unit: str
    """`characters` or `tokens`."""

    least: int = 0
    greatest: int = 0
    total: int = 0
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_NUM_BINS, dtype=np.int64))
    """Documents of lengths from 2**(i / 16) to below 2**((i + 1) / 16)."""

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Count some documents, none of them empty."""
        if not len(lengths):
            return
        self.least = min(self.least or int(lengths.min()), int(lengths.min()))
        self.greatest = max(self.greatest, int(lengths.max()))
        self.total += int(lengths.sum())
        # Rounded down after a push of 1e-9, so that a power of two opens its own bin.
        places = np.floor(np.log2(lengths) * BINS_PER_DOUBLING + 1e-9).astype(np.int64)
        self.bins += np.bincount(places, minlength=_NUM_BINS)

    def quantile(self, share: float) -> int:
        """Return the length that this share of the documents does not exceed, to about 2 %."""
        documents = int(self.bins.sum())
        if not documents:
            return 0
        place = int(np.searchsorted(np.cumsum(self.bins), share * documents))
        middle = 2 ** ((place + 0.5) / BINS_PER_DOUBLING)
        return min(max(round(middle), self.least), self.greatest)

    def by_doubling(self) -> list[tuple[int, int, int]]:
        """List `(from, to, documents)` for lengths that double, without empty ends."""
        counts = self.bins.reshape(-1, BINS_PER_DOUBLING).sum(axis=1)
        filled = np.flatnonzero(counts)
        if not len(filled):
            return []
        return [
            (2 ** int(power), 2 ** int(power + 1), int(counts[power]))
            for power in range(filled[0], filled[-1] + 1)
        ]

    def summary(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "unit": self.unit,
            "least": self.least,
            "mean": round(self.total / max(1, int(self.bins.sum())), 1),
            "median": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "greatest": self.greatest,
            "histogram": self.by_doubling(),
        }


@dataclass
class Group:
    """Figures of one source in one split."""

    split: str
    source: str
    documents: int = 0
    empty_documents: int = 0
    bytes: int = 0
    characters: int | None = None
    tokens: int | None = None
    lengths: Lengths | None = None
    """In tokens where they are known, else in characters."""

    scripts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(NAMES), np.int64))
    """Characters of each script in `scripts.NAMES`."""

    def summary(self) -> dict[str, Any]:
        """Return JSON values; what is not known is left out."""
        known = {"characters": self.characters, "tokens": self.tokens}
        figures: dict[str, Any] = {
            "split": self.split,
            "source": self.source,
            "documents": self.documents,
            "empty_documents": self.empty_documents,
            "bytes": self.bytes,
            **{name: count for name, count in known.items() if count is not None},
        }
        if self.tokens:
            figures["bytes_per_token"] = round(self.bytes / self.tokens, 4)
        if self.scripts.any():
            figures["scripts"] = {k: round(v, 6) for k, v in name_shares(self.scripts).items()}
        if self.lengths is not None:
            figures["lengths"] = self.lengths.summary()
        return figures


class _TextGroup:
    """Collects one group's texts and counts them some megabytes at a time."""

    def __init__(self, split: str, source: str) -> None:
        self.lengths = Lengths("characters")
        self.group = Group(split, source, characters=0, lengths=self.lengths)
        self._texts: list[str] = []
        self._waiting = 0

    def add(self, text: str) -> None:
        if not text:
            self.group.empty_documents += 1
            return
        self._texts.append(text)
        self._waiting += len(text)
        if self._waiting >= _CHARACTERS_AT_ONCE:
            self.count()

    def count(self) -> None:
        group, texts = self.group, self._texts
        group.documents += len(texts)
        group.bytes += len("".join(texts).encode("utf-8"))
        group.characters = (group.characters or 0) + self._waiting
        group.scripts += count_scripts(texts)
        self.lengths.add(np.array([len(text) for text in texts], dtype=np.int64))
        self._texts, self._waiting = [], 0


def describe_corpus(
    config: DataConfig, on_progress: Callable[[int], None] | None = None
) -> list[Group]:
    """Read a corpus once and count it.

    Args:
        config: The corpus.
        on_progress: Told after each part how many more bytes of text were read.

    Returns:
        Groups with characters and scripts, `train` before `validation`; lengths in characters.

    Raises:
        DataError: If something cannot be read.
    """
    groups: dict[tuple[str, str], _TextGroup] = {}
    done = 0
    for part in plan_parts(config):
        for split, document in read_part(config, part):
            key = (split, part.source)
            if key not in groups:
                groups[key] = _TextGroup(*key)
            groups[key].add(document.text)
        for found in groups.values():
            found.count()
        total = sum(found.group.bytes for found in groups.values())
        if on_progress is not None:
            on_progress(total - done)
        done = total
    # Stable: within a split, sources stay in the order of the settings.
    return [
        found.group for (split, _), found in sorted(groups.items(), key=lambda item: item[0][0])
    ]


def _token_lengths(store: "TokenStore", start: int, stop: int) -> Lengths:
    lengths = Lengths("tokens")
    last = np.empty(0, dtype=np.int64)
    for low in range(start, stop, _POSITIONS_AT_ONCE):
        starts = store.document_starts(low, min(low + _POSITIONS_AT_ONCE, stop))
        begins = np.concatenate((last, starts))
        lengths.add(np.diff(begins))
        last = begins[-1:]
    lengths.add(np.diff(np.concatenate((last, [stop]))))
    return lengths


def _sample_scripts(
    store: "TokenStore", start: int, stop: int, tokenizer: "PreTrainedTokenizerFast"
) -> NDArray[np.int64]:
    """Count the scripts of documents spread evenly over some positions."""
    counts = np.zeros(len(NAMES), dtype=np.int64)
    for position in np.linspace(start, stop, _SAMPLED_DOCUMENTS, endpoint=False).astype(np.int64):
        end = min(int(position) + _SAMPLED_TOKENS, stop)
        starts = store.document_starts(int(position), end)
        if len(starts):
            end = int(starts[1]) if len(starts) > 1 else end
            ids = store.read(int(starts[0]), end).tolist()
            text = tokenizer.decode(ids, skip_special_tokens=True)
            # What is left of a character that the sample's end cut in two is none.
            counts += count_scripts([text.replace("\ufffd", "")])
    return counts


def describe_store(
    stores: "TokenStores", tokenizer: "PreTrainedTokenizerFast | None" = None
) -> list[Group]:
    """Count a prepared corpus from its store, without its text.

    Args:
        stores: The store.
        tokenizer: The one that it was made with. With it, scripts are those of a sample: 2,000
            documents of each group, spread evenly.

    Returns:
        Groups with tokens, `train` before `validation`; lengths in tokens, with the tokens that
        stand around a document.
    """
    groups = []
    for split, store in (("train", stores.train), ("validation", stores.validation)):
        for source, spans in stores.facts["sources"].items():
            facts = spans.get(split)
            if not facts or not facts["documents"]:
                continue
            start, stop = facts["start"], facts["stop"]
            group = Group(
                split,
                source,
                documents=facts["documents"],
                empty_documents=facts.get("empty_documents", 0),  # not in older stores
                bytes=facts["bytes"],
                tokens=facts["tokens"],
                lengths=_token_lengths(store, start, stop),
            )
            if tokenizer is not None:
                group.scripts = _sample_scripts(store, start, stop, tokenizer)
            groups.append(group)
    return groups


def add_tokens(groups: Sequence[Group], stored: Sequence[Group]) -> bool:
    """Take over the tokens of a corpus's store, if it was made of the same documents.

    Args:
        groups: From `describe_corpus`. Their lengths become tokens.
        stored: From `describe_store`.

    Returns:
        Whether it was; if not, the groups stay as they are.
    """
    by_key = {(group.split, group.source): group for group in stored}
    same = all(
        (found := by_key.get((group.split, group.source))) is not None
        and (found.documents, found.bytes) == (group.documents, group.bytes)
        for group in groups
    )
    if same:
        for group in groups:
            found = by_key[group.split, group.source]
            group.tokens, group.lengths = found.tokens, found.lengths
    return same


def draw_lengths(groups: Sequence[Group], image_path: Path) -> None:
    """Draw how long the documents of each group are, replacing the image in one step.

    Args:
        groups: Groups with lengths of one unit.
        image_path: The PNG to write. Its folder must exist.
    """
    # The object interface: no global figure, no window, whatever backend the user has set.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    unit = "characters"
    for group in groups:
        if group.lengths is None or not group.lengths.total:
            continue
        unit = group.lengths.unit
        counts = group.lengths.bins.reshape(-1, _BINS_DRAWN_TOGETHER).sum(axis=1)
        filled = np.flatnonzero(counts)
        places = np.arange(filled[0], filled[-1] + 2)
        edges = 2.0 ** (places * _BINS_DRAWN_TOGETHER / BINS_PER_DOUBLING)
        shares = counts[places[:-1]] / counts.sum()
        label = f"{group.split}, {group.source}: {group.documents:,} documents"
        axes.stairs(100 * shares, edges, label=label, linewidth=1.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title("Lengths of the documents", loc="left", color=INK)
    axes.set_xlabel(unit)
    axes.set_ylabel("share of the documents (%)")
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(image_path, buffer.getvalue())
