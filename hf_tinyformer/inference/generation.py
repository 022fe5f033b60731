"""Let a model go on with a text.

Text may grow past the model's context. The model then looks through a window: when the window is
full, the older half is dropped and the rest is read again from position 0. So no position beyond
`max_position_embeddings` is ever asked for, whatever the position scheme, and the cost of reading
again is paid once per half window rather than once per token.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from hf_tinyformer.errors import ConfigError, DataError
from hf_tinyformer.inference.choosing import COLDEST, build_chooser
from hf_tinyformer.inference.decoding import can_decode, decode
from hf_tinyformer.inference.evaluation import evaluation_mode
from hf_tinyformer.model.tokenization_tinyformer import TinyFormerTokenizer, compose_syllables

TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 1.0
"""How text is sampled unless told otherwise; a model's generation_config.json says the same."""


class _WindowStreamer:
    """Joins the streams of several `generate` calls, each of which repeats its prompt, into one."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer
        self.at_prompt = True

    def put(self, value: Tensor) -> None:
        if self.at_prompt:
            self.at_prompt = False
        else:
            self.streamer.put(value)

    def end(self) -> None:
        self.at_prompt = True


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    # generate draws from the global generators; a sample in the middle of a training run must not
    # move them, or the run would no longer be the same run.
    # The CPU's generator is always forked; Apple's cannot be, and no training draws from it.
    devices = [] if device.type in ("cpu", "mps") else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        # torch.manual_seed would move those of all other devices too.
        seed = torch.default_generator.seed() if seed is None else seed
        torch.default_generator.manual_seed(seed)
        if device.type == "mps":
            torch.mps.manual_seed(seed)
        elif devices:
            torch.get_device_module(device).default_generators[device.index].manual_seed(seed)
        yield


@contextmanager
def without_defaults(model: Any) -> Iterator[None]:
    """Let `generate` follow what it is given and nothing else.

    transformers fills each setting that a call leaves open from the model's generation_config. A
    penalty or a list of suppressed tokens there would change even what the likeliest token is.

    Args:
        model: Any with `generate`; its generation_config is the same afterwards.
    """
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _check_settings(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    if max_new_tokens < 1:
        raise ConfigError(
            f"max_new_tokens is {max_new_tokens}, but it must be at least 1. Raise it."
        )
    if not 0 <= temperature < float("inf"):
        raise ConfigError(
            f"temperature is {temperature}, but it must be 0 or more. Take 0 for the likeliest "
            "token each time, 1 for the model's own distribution."
        )
    if top_k < 0:
        raise ConfigError(f"top_k is {top_k}, but it must be 0 (off) or more. Raise it.")
    if not 0 < top_p <= 1:
        raise ConfigError(
            f"top_p is {top_p}, but it must be above 0 and at most 1 (off). Change it."
        )


def _first_token(tokenizer: Any) -> int:
    """Choose what an empty prompt begins with, for a tokenizer that puts no `<s>` there itself."""
    end, begin = tokenizer.eos_token_id, tokenizer.bos_token_id
    if end is not None and tokenizer.init_kwargs.get("documents_end_with_eos", True):
        return int(end)
    # Trained on bare text, the model has seen neither <s> nor </s>; it has seen lines begin.
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    if len(line_end) == 1 and line_end[0] != tokenizer.unk_token_id:
        return int(line_end[0])
    for token_id in (begin, end):
        if token_id is not None:
            return int(token_id)
    raise DataError(
        "the prompt is empty, but the tokenizer has no <s>, </s> or line end to begin with. "
        "Give a prompt."
    )


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Turn a prompt into token ids; what looks like a special token stays plain text.

    Args:
        tokenizer: The model's tokenizer, which begins a prompt with `<s>` if trained so.
        prompt: Any text. An empty one becomes `<s>` alone; for a tokenizer that was told to add
            none, the `</s>` that stands between documents; with neither, a line end.

    Returns:
        At least one token id.

    Raises:
        DataError: If the prompt is empty and the tokenizer has no token to begin with.
    """
    # Not verbose: a text longer than the context is cut into windows, so its warning is wrong here.
    ids = list(tokenizer(prompt, split_special_tokens=True, verbose=False)["input_ids"])
    return ids or [_first_token(tokenizer)]


def _fit_into_context(ids: list[int], context: int | None, wanted: int) -> tuple[list[int], int]:
    """Choose what the model reads and how far it may write before the window is full.

    The last new token of a window is never read back, hence the + 1.
    """
    if context is None:
        return ids, wanted
    if len(ids) > context:
        kept = max(context // 2, context + 1 - wanted, 1)
        ids = ids[-kept:]
    return ids, min(wanted, context + 1 - len(ids))


def _sampling_settings(
    tokenizer: Any, stop_ids: list[int], temperature: float, top_k: int, top_p: float
) -> dict[str, Any]:
    # Greedy search gets the neutral values, or transformers warns of settings that have no effect.
    sampling = temperature > 0
    return {
        "do_sample": sampling,
        "temperature": max(float(temperature), COLDEST) if sampling else 1.0,
        "top_k": top_k if sampling else 50,
        "top_p": float(top_p) if sampling else 1.0,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop_ids or None,
        "pad_token_id": tokenizer.pad_token_id,
    }


def join_texts(tokenizer: Any, prompt: str, text: str) -> str:
    """Put a prompt and its continuation together.

    Where tokens are letters of Korean syllables, a continuation may begin with the end of the
    prompt's last syllable: 가 and a final ㄴ are 간.

    Args:
        tokenizer: The one that decoded the continuation.
        prompt: The text before.
        text: What `generate_text` returned for it.
    """
    joined = prompt + text
    return compose_syllables(joined) if isinstance(tokenizer, TinyFormerTokenizer) else joined


def generate_text(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = 128,
    temperature: float = TEMPERATURE,
    top_k: int = TOP_K,
    top_p: float = TOP_P,
    seed: int | None = None,
    streamer: Any = None,
    stop_token_ids: Collection[int] = (),
) -> str:
    """Continue a prompt until `</s>` or until enough tokens are written.

    The model reads at most `max_position_embeddings` tokens: of a longer prompt its end, and when
    prompt and new text fill the window, the newer half of it (see the module's docstring).

    Args:
        model: A causal language model with `generate`; its training mode is the same afterwards.
        tokenizer: Its tokenizer.
        prompt: Text to continue, which may be empty, or its token ids, of which there is one.
        max_new_tokens: Most tokens to write.
        temperature: Divides the logits: 0 takes the likeliest token each time, 1 samples from the
            model's own distribution.
        top_k: Sample among this many likeliest tokens. 0: among all.
        top_p: Sample among the likeliest tokens that together reach this probability (Holtzman et
            al. 2020, section 3.1). 1: among all.
        seed: The same seed on the same machine gives the same text. None: another each time. The
            global random state is untouched either way.
        streamer: A transformers streamer, fed with the prompt's tokens and then with each new one.
        stop_token_ids: Tokens that end the text as `</s>` does, such as the end of a turn.

    Returns:
        The new text, without the prompt and without special tokens.

    Raises:
        ConfigError: If a sampling setting is out of its range.
        DataError: If the prompt is empty and the tokenizer has no token to begin with.
        ArtifactError: If the model's logits are not numbers to choose by.
    """
    _check_settings(max_new_tokens, temperature, top_k, top_p)
    ids = encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    num_prompt_tokens = len(ids)
    context = getattr(model.config, "max_position_embeddings", None)
    stop_ids = sorted({tokenizer.eos_token_id, *stop_token_ids} - {None})
    settings = _sampling_settings(tokenizer, stop_ids, temperature, top_k, top_p)
    if streamer is not None:
        streamer.put(torch.tensor([ids]))
    relay = None if streamer is None else _WindowStreamer(streamer)
    is_plain, choose = can_decode(model), build_chooser(temperature, top_k, top_p)
    with evaluation_mode(model), without_defaults(model), _seeded(seed, model.device):
        while (wanted := num_prompt_tokens + max_new_tokens - len(ids)) > 0:
            window, room = _fit_into_context(ids, context, wanted)
            if is_plain:
                [new] = decode(
                    model,
                    [window],
                    max_new_tokens=room,
                    choose=choose,
                    stop_ids=stop_ids,
                    on_tokens=None if streamer is None else streamer.put,
                )
            else:
                inputs = torch.tensor([window], device=model.device)
                output = model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    generation_config=GenerationConfig(max_new_tokens=room, **settings),
                    streamer=relay,
                )
                new = output[0, len(window) :].tolist()
            ids = ids + new
            if ids[-1] in stop_ids:
                break
    if streamer is not None:
        streamer.end()
    return str(tokenizer.decode(ids[num_prompt_tokens:], skip_special_tokens=True))
