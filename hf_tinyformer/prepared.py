"""The tokenizer and the tokens that a run reads: made from its corpus, or prepared before.

`data.prepared` names a folder that `tinyformer data prepare` filled with `tokenizer/` and
`tokens/`. Any number of runs read it in place; a run without it makes both in its own folder.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from hf_tinyformer.artifacts import (
    MANIFEST_NAME,
    check_replaceable,
    fingerprint,
    hold_folder,
    read_manifest,
    write_text,
)
from hf_tinyformer.data.store.statistics import Group, add_tokens, describe_corpus, describe_store
from hf_tinyformer.data.store.store_job import StoreJob, run_job
from hf_tinyformer.data.store.tokens import STORE_LAYOUT, TokenStores, open_token_store
from hf_tinyformer.data.text.corpus import (
    describe_inputs,
    iterate_documents,
    pin_revisions,
    plan_parts,
)
from hf_tinyformer.data.tokenization.existing_tokenizer import adopt_tokenizer, describe_tokenizer
from hf_tinyformer.data.tokenization.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from hf_tinyformer.errors import ArtifactError, ConfigError, DataError
from hf_tinyformer.run_config import RunConfig, load_run_config

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int, int], None]
"""Told the parts done, all parts, and the bytes of text encoded."""

REVISIONS_NAME = "revisions.json"
"""The commits of Hub data sets that a folder's text comes from."""

_NOT_OF_THE_STORE = ("prepared", "sequence_length", "mask_documents", "sources")
"""Settings under `data` that runs on one store may set each for itself."""


def text_dir(config: RunConfig) -> Path:
    """Return the folder whose `tokenizer/` and `tokens/` a run reads."""
    return Path(config.data.prepared) if config.data.prepared else config.run_dir


def _check_ours(folder: Path, kind: str) -> None:
    """Refuse a place that is taken, unless by an older folder of the kind, whole or damaged."""
    try:
        found = json.loads((folder / MANIFEST_NAME).read_bytes()).get("kind")
    except (OSError, ValueError, AttributeError):
        found = None
    if found != kind:
        check_replaceable(folder, kind=kind)


def holds_inputs(folder: Path, *, kind: str, inputs: str) -> bool:
    """Tell whether a stage's folder was made whole from just these inputs.

    Raises:
        ArtifactError: If something is there that no stage of this kind has made.
    """
    if not folder.exists():
        return False
    _check_ours(folder, kind)
    try:
        return bool(read_manifest(folder, kind=kind).get("inputs") == inputs)
    except ArtifactError as error:
        logger.warning("%s It is made again.", error)
        return False


def check_named(config: RunConfig, purpose: str) -> None:
    """Refuse a configuration that names no corpus, which `data.prepared` alone allows.

    Args:
        config: The run.
        purpose: What the corpus is needed for.

    Raises:
        ConfigError: If it names none.
    """
    if not config.data.is_named():
        raise ConfigError(
            "data.files, data.dataset, data.builtin and data.sources are not set, but one of them "
            f"must name the corpus {purpose}. Set one, for example data.files=[my_texts/*.txt]."
        )


def pin_data(config: RunConfig, folder: Path) -> RunConfig:
    """Name the commits of a run's Hub data sets: those it began with, or the newest.

    Args:
        config: The run.
        folder: Where its tokenizer and tokens lie, or will. The commits are kept there, in
            `revisions.json`; who deletes that file starts anew with the newest.

    Returns:
        The run, with a commit as the revision of each Hub data set.

    Raises:
        DataError: If the Hub has to be asked and cannot.
    """
    path = folder / REVISIONS_NAME
    try:
        known = dict(json.loads(path.read_bytes())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path} is not as it was written ({error}). Delete it to begin with the newest data."
        ) from None
    data, pinned = pin_revisions(config.data, known)
    if pinned != known:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(pinned, indent=2) + "\n")
    return replace(config, data=data)


def prepare_tokenizer(config: RunConfig, folder: Path) -> PreTrainedTokenizerFast:
    """Train the run's tokenizer, or take the one that it names, unless `folder` holds it already.

    Args:
        config: The run.
        folder: The tokenizer's folder, usually `<run_dir>/tokenizer`.

    Returns:
        The tokenizer, as read back from `folder`.

    Raises:
        ArtifactError: If something else stands at `folder`.
        ConfigError: If there is nothing to make it from.
        DataError: If the corpus cannot be read.
    """
    if config.tokenizer.path is None:
        check_named(config, "to learn a tokenizer from")
    made_from = [describe_tokenizer(config.tokenizer), config.data.sequence_length]
    if config.tokenizer.path is None:
        made_from.append(describe_inputs(config.data))
    inputs = fingerprint(made_from)
    if not holds_inputs(folder, kind="tokenizer", inputs=inputs):
        if config.tokenizer.path is None:
            logger.info("training the tokenizer")
            texts = (document.text for document in iterate_documents(config.data, "train"))
            tokenizer = train_tokenizer(
                config.tokenizer, texts, sequence_length=config.data.sequence_length
            )
        else:
            tokenizer = adopt_tokenizer(
                config.tokenizer, sequence_length=config.data.sequence_length
            )
        save_tokenizer(tokenizer, folder, facts={"inputs": inputs})
    return load_tokenizer(folder)


def _settings(config: RunConfig) -> dict[str, Any]:
    """List the settings that decide what is in a store, by key, as JSON values."""
    data = {k: v for k, v in asdict(config.data).items() if k not in _NOT_OF_THE_STORE}
    tokenizer = asdict(config.tokenizer)
    # Files have other names elsewhere; what is in them is compared by content where they are.
    paths = ("files", "dataset", "validation_files", "drop", "path", "chat_template")
    return {
        f"{section}.{key}": value
        for section, values in (("data", data), ("tokenizer", tokenizer))
        for key, value in values.items()
        if key not in paths
    }


def _store_inputs(described: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> str:
    return fingerprint([STORE_LAYOUT, described, tokenizer_fingerprint(tokenizer)])


def plan_store(config: RunConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> StoreJob:
    """Plan the token store of a corpus.

    Args:
        config: The run.
        tokenizer: What cuts, as it lies in `<folder>/tokenizer`.
        folder: Gets the store as `tokens/`.

    Raises:
        DataError: If the corpus cannot be read.
    """
    described = describe_inputs(config.data)
    return StoreJob(
        folder=folder.absolute() / "tokens",
        tokenizer_dir=folder.absolute() / "tokenizer",
        config=config.data,
        parts=plan_parts(config.data),
        rules={key: value for key, value in described.items() if key not in ("corpus", "sources")},
        facts={"inputs": _store_inputs(described, tokenizer), "settings": _settings(config)},
    )


def prepare_tokens(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    make: Callable[[StoreJob], None] = run_job,
) -> TokenStores | None:
    """Cut the run's text into tokens, unless `<folder>/tokens` holds them already.

    Args:
        config: The run.
        tokenizer: What cuts, as it lies in `<folder>/tokenizer`.
        folder: Gets the store as `tokens/`.
        make: Does the work.

    Returns:
        Both splits, open for reading; `None` if `make` left the work to a queue.
    """
    inputs = _store_inputs(describe_inputs(config.data), tokenizer)
    tokens = folder / "tokens"
    if not holds_inputs(tokens, kind="tokens", inputs=inputs):
        logger.info("cutting the text into tokens")
        make(plan_store(config, tokenizer, folder))
        if not holds_inputs(tokens, kind="tokens", inputs=inputs):
            return None
    return open_token_store(tokens)


def prepare_corpus(
    config: RunConfig,
    folder: Path,
    *,
    make: Callable[[StoreJob], None] = run_job,
) -> TokenStores | None:
    """Make a corpus's tokenizer and tokens, for any number of runs. A killed call goes on.

    Args:
        config: The corpus and the tokenizer.
        folder: Gets `tokenizer/` and `tokens/`.
        make: Does the work of cutting, see `run_job`.

    Returns:
        The store; `None` if `make` left the work to a queue.

    Raises:
        ArtifactError: If another process is preparing in this folder, or something else stands
            where the tokenizer or the tokens belong.
        ConfigError: If the settings name no corpus.
        DataError: If the corpus cannot be read.
    """
    check_named(config, "to prepare")
    for kind in ("tokenizer", "tokens"):
        _check_ours(folder / kind, kind)
    with hold_folder(folder):
        config = pin_data(config, folder)
        return prepare_tokens(
            config, prepare_tokenizer(config, folder / "tokenizer"), folder, make=make
        )


def _check_settings(config: RunConfig, folder: Path, stored: dict[str, Any]) -> None:
    for key, value in _settings(config).items():
        if key in stored and stored[key] != value:
            raise ConfigError(
                f"{key} is {value}, but {folder} was prepared with {stored[key]}. Set it back, "
                "choose another data.prepared, or run `tinyformer data prepare` again."
            )


def check_prepared(config: RunConfig) -> None:
    """Check that a run fits the folder that `data.prepared` names.

    The tokens must be of the tokenizer beside them, the run's settings those that the folder was
    prepared with, and the corpus the same, as far as it is named and its files are here.

    Raises:
        ArtifactError: If the folder is not there, not whole, or its two halves do not fit.
        ConfigError: If a setting differs.
    """
    folder = text_dir(config)
    try:
        tokenizer = load_tokenizer(folder / "tokenizer")
        facts = open_token_store(folder / "tokens").facts
    except ArtifactError as error:
        reason = str(error).split(". ")[0]
        raise ArtifactError(
            f"data.prepared is {folder}, but it cannot be used: {reason}. Run `tinyformer data "
            "prepare` with this configuration."
        ) from None
    found = tokenizer_fingerprint(tokenizer)
    if facts["tokenizer"] != found:
        raise ArtifactError(
            f"{folder / 'tokens'} was cut by tokenizer {facts['tokenizer']}, but the one beside it "
            f"is {found}. Run `tinyformer data prepare` again."
        )
    if not config.data.is_named():
        return
    _check_settings(config, folder, facts.get("settings", {}))
    try:
        inputs = _store_inputs(describe_inputs(config.data), tokenizer)
    except DataError:
        logger.info("the corpus is not here; %s is taken as it is", folder)
        return
    if facts["inputs"] != inputs:
        raise ConfigError(
            f"data.prepared is {folder}, but the files of the corpus, their times or what is left "
            "out have changed since it was prepared. Run `tinyformer data prepare` again."
        )


def prepare_text(config: RunConfig) -> None:
    """Make a run's tokenizer and tokens, or check those that `data.prepared` names."""
    if config.data.prepared:
        check_prepared(config)
        return
    tokenizer = prepare_tokenizer(config, config.run_dir / "tokenizer")
    prepare_tokens(config, tokenizer, config.run_dir)


def open_text(config: RunConfig) -> tuple[PreTrainedTokenizerFast, TokenStores]:
    """Open a run's tokenizer and tokens, after `prepare_text`."""
    folder = text_dir(config)
    tokenizer = load_tokenizer(folder / "tokenizer")
    # A prepared tokenizer serves runs with rows of any length.
    tokenizer.model_max_length = config.data.sequence_length
    return tokenizer, open_token_store(folder / "tokens")


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
        ConfigError: If the file is no configuration, or names no corpus.
        ArtifactError: If the folder holds no token store, or a damaged one.
        DataError: If the text cannot be read.
    """
    if Path(source).is_dir():
        return _describe_folder(Path(source))
    config = load_run_config(Path(source), overrides)
    check_named(config, "to count; for a store's own figures give its folder instead of the file")
    config = pin_data(config, text_dir(config))
    groups = describe_corpus(config.data, on_progress)
    store = text_dir(config) / "tokens"
    try:
        stored = describe_store(open_token_store(store)) if store.is_dir() else []
    except ArtifactError as error:
        logger.warning("%s", error)
        stored = []
    add_tokens(groups, stored)
    return groups, config.run_dir
