"""Use a tokenizer that is there already, from a folder or from the Hub, instead of training one."""

import hashlib
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tinyformer.data.tokenization.chat_template import check_chat_template, read_chat_template
from hf_tinyformer.data.tokenization.tokenizer import read_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.data.tokenization.tokenizer_training import PAD_TOKEN
from hf_tinyformer.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

_PAD_NAMES = (PAD_TOKEN, "<|pad|>", "<|padding|>", "[PAD]", "<|finetune_right_pad_id|>")
"""What tokenizers that set no pad token may call one all the same."""

_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"),
)
"""All that transformers makes a tokenizer from."""


def describe_tokenizer(config: TokenizerConfig) -> dict[str, Any]:
    """Describe what a tokenizer is made from, as JSON values that change when the result would.

    Args:
        config: Settings; the files that they name are read.
    """
    described = asdict(config)
    if config.chat_template is not None:
        described["chat_template"] = read_chat_template(
            config.chat_template, begins_with_bos=config.add_bos_token
        )
    if config.path is not None and (folder := Path(config.path)).is_dir():
        files = [folder / name for name in _FILES if (folder / name).is_file()]
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        described["path"] = hashes
    return described


def _read(path: str) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    folder = Path(path)
    try:
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = read_tokenizer(folder)
        else:
            # False, not unset: unset asks on the terminal whether to run code from elsewhere.
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # tokenizers raises no narrower one
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ConfigError(
            f"tokenizer.path is {path}, but no tokenizer can be loaded from there: {reason}. "
            "Give a folder with a tokenizer.json, or USER/NAME on the Hub."
        ) from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ConfigError(
            f"tokenizer.path is {path}, but its {type(tokenizer).__name__} has no tokenizer.json, "
            "which everything here needs. Choose a tokenizer that has one."
        )
    return tokenizer


def _name_pad_token(tokenizer: "PreTrainedTokenizerFast", path: str) -> None:
    if tokenizer.pad_token is not None:
        return
    vocabulary = tokenizer.get_vocab()
    name = next((name for name in _PAD_NAMES if name in vocabulary), PAD_TOKEN)
    tokenizer.add_special_tokens({"pad_token": name})
    logger.info("%s has no pad token; %s is it, id %d", path, name, tokenizer.pad_token_id)


def adopt_tokenizer(config: TokenizerConfig, *, sequence_length: int) -> "PreTrainedTokenizerFast":
    """Make an existing tokenizer fit for training a model from scratch.

    Its ids stay as they are. It gets a pad token if it has none (named where one lies unused, made
    as the last id otherwise), the special tokens and the chat template of the settings, padding on
    the left, and the model's length. Documents begin with its first token if its prompts do.

    Args:
        config: `path`, and what to add.
        sequence_length: Tokens the model reads at once, stored as `model_max_length`.

    Raises:
        ConfigError: If there is no such tokenizer, or none that has a tokenizer.json, or documents
            would begin otherwise than prompts.
    """
    path = str(config.path)
    tokenizer = _read(path)
    _name_pad_token(tokenizer, path)
    more = [token for token in config.list_extra_tokens() if token not in tokenizer.get_vocab()]
    if more:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": more}, replace_extra_special_tokens=False
        )
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = sequence_length
    bos = tokenizer.bos_token_id
    begins = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    if begins and not config.add_bos_token:
        raise ConfigError(
            f"tokenizer.add_bos_token is false, but tokenizer.path is {path}, whose prompts begin "
            f"with {tokenizer.bos_token}, and documents must begin alike. Leave add_bos_token out, "
            "or take the token out of the post_processor in tokenizer.json."
        )
    tokenizer.init_kwargs["documents_begin_with_bos"] = begins
    tokenizer.init_kwargs["documents_end_with_eos"] = config.add_eos_token
    if config.add_eos_token and tokenizer.eos_token_id is None:
        logger.warning(
            "%s has no end-of-text token, so the model will not know where a text ends.", path
        )
    if config.chat_template is not None:
        tokenizer.chat_template = read_chat_template(config.chat_template, begins_with_bos=begins)
        check_chat_template(tokenizer)
    return tokenizer
