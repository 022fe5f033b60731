"""Where text comes from: files, saved data sets, the Hub, or the running Python's own library."""

from dataclasses import dataclass, field
from typing import Literal

from hf_tinyformer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text is read, how it is split, and how rows are cut from it.

    Exactly one of `files`, `dataset` and `builtin` names the corpus.
    """

    files: list[str] = field(default_factory=list)
    """Globs of .txt, .md, .py (one document a file), .jsonl and .parquet (one document a record),
    each also .gz or .xz. `**` enters folders."""

    dataset: str | None = None
    """A folder saved by `datasets`, or the id of a data set on the Hub."""

    dataset_config: str | None = None
    """Configuration of the Hub data set, such as a language."""

    dataset_split: str = "train"
    """Split of the data set to read."""

    builtin: Literal["python-stdlib"] | None = None
    """A corpus that is always there, offline: the source files of the running Python."""

    text_field: str = "text"
    """Field (jsonl) or column (parquet, data sets) that holds the text."""

    validation_files: list[str] = field(default_factory=list)
    """Globs of a validation split of its own. Then `validation_fraction` is not used."""

    validation_fraction: float = 0.01
    """Share of the corpus kept for validation, between 0 and 1."""

    validation_split: Literal["hash", "tail"] = "hash"
    """`hash` keeps whole documents by the hash of their text; `tail` keeps the last part of the
    corpus, cut inside a document if need be (for a corpus that is one long text)."""

    sequence_length: int = 256
    """Tokens in a row: what the model sees at once in training."""

    mask_documents: bool = True
    """Keep documents that share a row apart in attention, and predict no token across the gap."""

    def __post_init__(self) -> None:
        """Reject settings that contradict each other."""
        sources = [bool(self.files), self.dataset is not None, self.builtin is not None]
        if sum(sources) != 1:
            raise ConfigError(
                f"{sum(sources)} of data.files, data.dataset and data.builtin are set, but exactly "
                "1 names the corpus. Set one, for example data.files=[my_texts/*.txt]."
            )
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


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus."""

    text: str
    source: str
    """Where it stands, as `path:line`, with the path as the globs gave it."""
