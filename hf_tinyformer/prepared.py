"""The tokenizer and the tokens that a run reads: its own, or those of a corpus prepared before."""

from collections.abc import Callable, Sequence
from pathlib import Path

from hf_tinyformer.data.statistics import Group, add_tokens, describe_corpus, describe_store
from hf_tinyformer.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from hf_tinyformer.data.tokens import open_token_store
from hf_tinyformer.errors import ArtifactError
from hf_tinyformer.run_config import RunConfig, load_run_config


def text_dir(config: RunConfig) -> Path:
    """Return the folder whose `tokenizer/` and `tokens/` a run reads."""
    return config.run_dir


def _describe_folder(folder: Path) -> tuple[list[Group], Path]:
    if (folder / "tokens").is_dir():
        folder = folder / "tokens"
    stores = open_token_store(folder)
    beside = folder.parent / "tokenizer"
    tokenizer = load_tokenizer(beside) if beside.is_dir() else None
    if tokenizer is not None and tokenizer_fingerprint(tokenizer) != stores.facts["tokenizer"]:
        tokenizer = None
    return describe_store(stores, tokenizer), folder.parent


def describe_source(
    source: str, overrides: Sequence[str], *, on_progress: Callable[[int], None] | None = None
) -> tuple[list[Group], Path]:
    """Count a corpus, from its text or from its token store.

    Args:
        source: A YAML file, or a token store, or the folder that holds one as `tokens/`.
        overrides: Settings over the file's.
        on_progress: Told how many more bytes of text were read.

    Returns:
        The groups, and the folder that a picture of them belongs into. From text there are
        tokens too if the run's store is there and was made of the same text.

    Raises:
        ConfigError: If the file is no configuration.
        ArtifactError: If the folder holds no token store, or a damaged one.
        DataError: If the text cannot be read.
    """
    if Path(source).is_dir():
        return _describe_folder(Path(source))
    config = load_run_config(Path(source), overrides)
    groups = describe_corpus(config.data, on_progress)
    store = text_dir(config) / "tokens"
    try:
        stored = describe_store(open_token_store(store)) if store.is_dir() else []
    except ArtifactError:
        # Another version's, or damaged: the text is what was asked about.
        stored = []
    add_tokens(groups, stored)
    return groups, config.run_dir
