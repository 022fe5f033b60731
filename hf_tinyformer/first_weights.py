"""The model that a run begins with: drawn from its seed, or another model's weights (`init_from`).

A model that was trained here, or brought in by `tinyformer import`, is gone on from: its shape, its
weights and its tokenizer stay, and the run's text moves the weights on.
"""

import logging
from typing import Any

from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from hf_tinyformer.data.tokenization.tokenizer import count_ids
from hf_tinyformer.errors import ConfigError
from hf_tinyformer.inference.loading import load_checkpoint
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.run_config import RunConfig, build_model_config

logger = logging.getLogger(__name__)


def build_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> TinyFormerForCausalLM:
    """Make the run's model with its first weights, the same for the same seed on every device.

    Args:
        config: The run.
        tokenizer: Gives the vocabulary's size and the special tokens' ids.

    Returns:
        The model, float32, on the CPU.

    Raises:
        ConfigError: If `init_from` names a model that the run cannot go on from.
        ArtifactError: If `init_from` cannot be loaded.
    """
    set_seed(config.seed)
    if config.init_from is not None:
        return _go_on_from(config.init_from, config, tokenizer)
    return TinyFormerForCausalLM(
        build_model_config(config, vocab_size=count_ids(tokenizer), tokenizer=tokenizer)
    )


def _go_on_from(source: str, config: RunConfig, tokenizer: Any) -> TinyFormerForCausalLM:
    found, its_tokenizer = load_checkpoint(source)
    if not isinstance(found, TinyFormerForCausalLM):
        raise ConfigError(
            f"init_from is {source}, a {found.config.model_type}, but a run trains TinyFormers. "
            f"Bring it in first: tinyformer import {source} FOLDER"
        )
    context = found.config.max_position_embeddings
    if config.data.sequence_length > context:
        raise ConfigError(
            f"data.sequence_length is {config.data.sequence_length}, but the context of init_from "
            f"({source}) is {context}, and a row must fit into it. Lower data.sequence_length."
        )
    if not its_tokenizer.get_vocab().items() <= tokenizer.get_vocab().items():
        raise ConfigError(
            f"the tokens of the run are not those of init_from ({source}), but its weights mean "
            "its own tokens. Leave tokenizer.path and data.prepared out."
        )
    settings = found.config
    settings.update(config.model)  # dropout; RunConfig lets nothing else through
    settings.name_or_path = ""
    model = TinyFormerForCausalLM(settings)
    model.load_state_dict(found.state_dict())
    if count_ids(tokenizer) > settings.vocab_size:
        logger.info(
            "%d new tokens get weights of their own", count_ids(tokenizer) - settings.vocab_size
        )
        model.resize_token_embeddings(count_ids(tokenizer), mean_resizing=False)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
    return model
