"""The settings under `data:`: which text is read, how it is split, and how rows are cut from it."""

import re
from dataclasses import dataclass, field
from typing import Literal

from hf_tinyformer.data.text.sources import Source, WeightedSource, check_source
from hf_tinyformer.errors import ConfigError

Split = Literal["train", "validation"]

ONLY_SOURCE = "corpus"
"""Name of the source when the settings name just one."""

HELD_OUT = "validation"
"""Name of the source that `validation_files` make."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Source):
    """Which text is read, how it is split, and how rows are cut from it.

    Either one source is set here, or several under `sources`.
    """

    sources: dict[str, WeightedSource] = field(default_factory=dict)
    """Several sources by name, each with the settings above and a `weight`. Training rows are
    drawn from them by weight; changing a weight cuts no text anew."""

    on_error: Literal["raise", "skip"] = "raise"
    """`raise` stops at the first file or record that cannot be used; `skip` leaves it out, counts
    it and lists it with the tokens."""

    validation_files: list[str] = field(default_factory=list)
    """Files, globs and folders of a validation split of its own, read by the `text_field` or
    `template` here. Then `validation_fraction` is not used."""

    validation_fraction: float = 0.01
    """Share of each source kept for validation, between 0 and 1."""

    validation_split: Literal["hash", "tail"] = "hash"
    """`hash` keeps whole documents by the hash of their text; `tail` keeps the last part of each
    source, cut inside a document if need be (for a corpus that is one long text)."""

    sequence_length: int = 256
    """Tokens in a row: what the model sees at once in training."""

    mask_documents: bool = True
    """Keep documents that share a row apart in attention, and predict no token across the gap."""

    drop: str | None = None
    """File that lists documents to leave out, written by `tinyformer data audit --drop`."""

    prepared: str | None = None
    """Folder that `tinyformer data prepare` filled. Its tokenizer and tokens are used in place, and
    the corpus itself need not be there."""

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        self._check_sources()
        if not self.validation_files and not 0 < self.validation_fraction < 1:
            raise ConfigError(
                f"data.validation_fraction is {self.validation_fraction}, but it must lie between "
                "0 and 1. Take 0.01 for a large corpus, 0.1 for a small one."
            )
        if self.sequence_length < 2:
            raise ConfigError(
                f"data.sequence_length is {self.sequence_length}, but a row needs at least 2 "
                "tokens. Take 64 or more."
            )

    def _check_sources(self) -> None:
        alone = [bool(self.files), self.dataset is not None, self.builtin is not None]
        if self.prepared is not None and not self.is_named():
            return
        if sum(alone) + bool(self.sources) != 1:
            raise ConfigError(
                f"{sum(alone) + bool(self.sources)} of data.files, data.dataset, data.builtin and "
                "data.sources are set, but exactly 1 names the corpus. "
                "Set one, for example data.files=[my_texts/*.txt]."
            )
        if self.sources:
            self._check_nothing_beside_sources()
        for name, source in self.named_sources().items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name == HELD_OUT:
                raise ConfigError(
                    f"data.sources has {name!r}, but a name has letters, digits, '_' and '-' only, "
                    f"since it becomes a folder, and is not {HELD_OUT!r}. Change it."
                )
            check_source(source, self.key_of(name))
            if source.streaming and self.validation_split == "tail" and not self.validation_files:
                raise ConfigError(
                    f"data.validation_split is tail, but {self.key_of(name)}.streaming is true, "
                    "and finding the last part would take reading it twice. Set it to hash."
                )
        for name, weight in self.weights().items():
            if not 0 < weight < float("inf"):
                raise ConfigError(
                    f"data.sources.{name}.weight is {weight}, but it must be a number above 0. "
                    "Change it, or leave the source out."
                )

    def _check_nothing_beside_sources(self) -> None:
        for name, default in vars(Source()).items():
            value = getattr(self, name)
            if self.validation_files and name in ("text_field", "template"):
                continue
            if value != default:
                raise ConfigError(
                    f"data.{name} is {value!r}, but with data.sources each source has its own. "
                    f"Set data.sources.NAME.{name} instead."
                )

    def is_named(self) -> bool:
        """Tell whether the settings name a corpus; with `prepared` they need not."""
        return bool(self.files or self.dataset or self.builtin or self.sources)

    def named_sources(self) -> dict[str, Source]:
        """Return the sources by name, in their order; one set without a name is `corpus`."""
        return dict(self.sources) if self.sources else {ONLY_SOURCE: self}

    def key_of(self, name: str) -> str:
        """Return where the settings of a source stand, for messages."""
        return f"data.sources.{name}" if self.sources else "data"

    def weights(self) -> dict[str, float]:
        """Return each source's weight."""
        return {name: source.weight for name, source in self.sources.items()} or {ONLY_SOURCE: 1.0}
