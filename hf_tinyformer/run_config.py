"""One run, as the rooms' own settings: a YAML file, then `key=value` words, checked as one.

Every key has one owner: `data.*` is DataConfig, `tokenizer.*` TokenizerConfig, `train.*`
TrainConfig, `card.*` CardConfig and `model.*` the fields of TinyFormerConfig. An unknown key is an
error that names the nearest one.
"""

import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedTokenizerBase

from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.sources import WeightedSource
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.errors import ConfigError
from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
from hf_tinyformer.publishing.card import CardConfig
from hf_tinyformer.training.config import TrainConfig

# These follow from the tokenizer or from the class, so a run that set them could contradict itself.
DERIVED_MODEL_KEYS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "is_causal")

# What another model's weights leave open.
FREE_MODEL_KEYS = ("attention_dropout", "hidden_dropout")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run. The same RunConfig gives the same weights."""

    name: str = "run"
    """Name of the run. Its folder is `<output_dir>/<name>`."""

    output_dir: str = "runs"
    """Where runs lie."""

    seed: int = 0
    """Seed of everything random: initialization, batch order, dropout, samples."""

    init_from: str | None = None
    """Folder or Hub id of a model of ours to go on from: its weights, shape and tokenizer stay.
    Unset: a new model with random weights."""

    data: DataConfig = field(default_factory=lambda: DataConfig(builtin="python-stdlib"))
    """Which text is read, and how rows are cut from it."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How text is cut into tokens."""

    model: dict[str, Any] = field(default_factory=dict)
    """Fields of TinyFormerConfig that differ from its defaults."""

    train: TrainConfig = field(default_factory=TrainConfig)
    """How weights move, and what is written on the way."""

    card: CardConfig = field(default_factory=CardConfig)
    """What only you know, for the model card."""

    def __post_init__(self) -> None:
        """Reject a name that would leave the output folder, and a model that cannot be built."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(
                f"name is {self.name!r}, but it becomes a folder and a model's name, so letters, "
                "digits, '.', '_' and '-' are all it may have. Change it."
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"seed is {self.seed}, but it must be at least 0 and below {2**32}. Change it."
            )
        _check_model_keys(self.model)
        if self.init_from is not None:
            self._keep_shape_and_tokenizer(self.init_from)
        build_model_config(self, vocab_size=512)

    def _keep_shape_and_tokenizer(self, source: str) -> None:
        for key, value in self.model.items():
            if key not in FREE_MODEL_KEYS:
                raise ConfigError(
                    f"model.{key} is {value}, but init_from is {source}, whose shape stays. Leave "
                    f"one of them out; only {' and '.join(FREE_MODEL_KEYS)} may change."
                )
        if self.tokenizer.path is None:
            tokenizer = replace(self.tokenizer, path=source)
            object.__setattr__(self, "tokenizer", tokenizer)

    @property
    def run_dir(self) -> Path:
        """The folder that holds everything of this run."""
        return Path(self.output_dir) / self.name


def _nearest(word: str, choices: Sequence[str]) -> str:
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"Did you mean {match[0]}?" if match else f"Known: {', '.join(sorted(choices))}."


def model_keys() -> list[str]:
    """Return the names that may stand under `model:`, in their order of declaration."""
    own = inspect.get_annotations(TinyFormerConfig)
    return [
        name
        for name in own
        if name in TinyFormerConfig.__dataclass_fields__ and name not in DERIVED_MODEL_KEYS
    ]


def _check_model_keys(model: dict[str, Any]) -> None:
    for key, value in model.items():
        if key in DERIVED_MODEL_KEYS:
            raise ConfigError(
                f"model.{key} is {value}, but it follows from the tokenizer and the task. "
                "Leave it out."
            )
        if key not in model_keys():
            raise ConfigError(
                f"model.{key} is {value}, but there is no such setting. "
                f"{_nearest(key, model_keys())}"
            )


def build_model_config(
    config: RunConfig, *, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> TinyFormerConfig:
    """Turn `model:` into the model's own configuration.

    The context length is the rows' length unless `model.max_position_embeddings` says otherwise.

    Args:
        config: The run.
        vocab_size: Tokens the tokenizer knows.
        tokenizer: Gives the ids of the special tokens; unset, they stay unset.

    Returns:
        The configuration of the model that the run trains.

    Raises:
        ConfigError: If the settings cannot make a model, or rows are longer than its context.
    """
    settings: dict[str, Any] = {
        "max_position_embeddings": config.data.sequence_length,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        **config.model,
    }
    if tokenizer is not None:
        settings["pad_token_id"] = tokenizer.pad_token_id
        settings["bos_token_id"] = tokenizer.bos_token_id
        settings["eos_token_id"] = tokenizer.eos_token_id
    try:
        model_config = TinyFormerConfig(vocab_size=vocab_size, **settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        # @strict wraps the sentence that says what is wrong in one that does not.
        cause = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(re.sub(r"^(Field '(\w+)')?", r"model.\2", cause, count=1)) from None
    if config.data.sequence_length > model_config.max_position_embeddings:
        raise ConfigError(
            f"data.sequence_length is {config.data.sequence_length}, but "
            f"model.max_position_embeddings is {model_config.max_position_embeddings}, and a row "
            "must fit into the model's context. Lower the first or raise the second."
        )
    return model_config


def _schema() -> DictConfig:
    schema = OmegaConf.structured(RunConfig)
    # Frozen dataclasses come out read-only, and a read-only schema cannot be merged into.
    for node in (schema, schema.data, schema.tokenizer, schema.train, schema.card):
        OmegaConf.set_readonly(node, False)
    # A default corpus would stand beside the one the user names, and only one may.
    schema.data = OmegaConf.structured(DataConfig)
    OmegaConf.set_readonly(schema.data, False)
    return schema


def _one_line(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0].rstrip(".")
    key = getattr(error, "full_key", None)
    if "not a ListConfig" in first:
        return f"{key} must be a list. Write it in brackets: {key}=[first,second]."
    section = re.search(r"Merge error: .* is not a subclass of (\w+)Config\. value: (.*)", first)
    if section:
        name, value = section[1].lower(), section[2]
        return f"{name} is {value}, but it holds settings of its own. Write {name}.KEY=VALUE."
    if "not a subclass of WeightedSource" in first or "incompatible container types" in first:
        return f"{key or 'data.sources'} holds settings by name. Write data.sources.NAME.KEY=VALUE."
    if not key or "not in" not in first:
        return f"{key}: {first}. Change the value." if key else f"{first}. Change the value."
    parent, _, name = str(key).rpartition(".")
    sections = {
        "data": DataConfig,
        "tokenizer": TokenizerConfig,
        "train": TrainConfig,
        "card": CardConfig,
    }
    owner: Any = sections.get(parent, RunConfig)
    if parent.startswith("data.sources."):
        owner = WeightedSource
    names = [part.name for part in fields(owner)]
    return f"{key} is set, but there is no such setting. {_nearest(name, names)}"


def _read_yaml(path: Path) -> DictConfig:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(other) for other in Path("configs").glob("*.yaml"))
        known = f" Configurations here: {', '.join(near)}." if near else ""
        raise ConfigError(f"{path} is not there. Name a YAML file.{known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}. Name a YAML file.") from None
    try:
        loaded = OmegaConf.create(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{place} is not valid YAML: {problem}. Mend that line.") from None
    if not isinstance(loaded, DictConfig) or not text.strip():
        raise ConfigError(f"{path} holds no settings. Write keys such as `name: my-run`.")
    return loaded


def load_run_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and put `key=value` words over it.

    Args:
        path: The YAML file; `None` starts from the defaults.
        overrides: Words such as `train.learning_rate=3e-4`; the value is read as YAML.

    Returns:
        The run, complete and checked.

    Raises:
        ConfigError: One line that names the key, its value and what to change.
    """
    for word in overrides:
        if "=" not in word:
            raise ConfigError(
                f"{word!r} is not a setting. Write key=value, such as train.max_steps=500."
            )
    try:
        merged = OmegaConf.merge(
            _schema(),
            _read_yaml(path) if path else {},
            OmegaConf.from_dotlist(list(overrides)),
        )
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(_one_line(error)) from None
    except TypeError as error:  # OmegaConf's own, when a list stands where settings belong
        raise ConfigError(
            f"{error}: a list stands where settings by name belong, or the reverse; data.sources, "
            "for one, has a name before each source. Look at `tinyformer train CONFIG --show`."
        ) from None
    except yaml.YAMLError:
        raise ConfigError(
            f"{' '.join(overrides)} cannot be read: a value is not valid YAML. "
            "Put quotes around values with special characters."
        ) from None
    assert isinstance(config, RunConfig)
    return config


def to_yaml(config: RunConfig) -> str:
    """Return the whole run as YAML that `load_run_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _field_docs(owner: type) -> dict[str, str]:
    """Return the text below each field of a dataclass; Python keeps it in the source only."""
    docs: dict[str, str] = {}
    for parent in reversed(owner.__mro__):
        if is_dataclass(parent):
            docs |= _own_field_docs(parent)
    return docs


def _own_field_docs(owner: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def _plain(content: Any) -> Any:
    """Turn settings in a dictionary, such as sources by name, into what YAML can say."""
    if isinstance(content, dict):
        return {
            key: asdict(value) if isinstance(value, WeightedSource) else value
            for key, value in content.items()
        }
    return content


def _explain(value: Any, owner: type, indent: str) -> list[str]:
    lines = []
    docs = _field_docs(owner)
    for part in fields(owner):
        content = getattr(value, part.name)
        lines += textwrap.wrap(
            docs[part.name], 96, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        if is_dataclass(content):
            lines += [f"{indent}{part.name}:", *_explain(content, type(content), f"{indent}  ")]
        else:
            plain = _plain(content)
            text = yaml.safe_dump({part.name: plain}, sort_keys=False, allow_unicode=True)
            lines += textwrap.indent(text.rstrip(), indent).splitlines()
    return lines


def explain(config: RunConfig) -> str:
    """Return the whole run as YAML with each setting's meaning above it."""
    return "\n".join(_explain(config, RunConfig, "")) + "\n"
