"""How large a model is, before a weight exists: parameters, arithmetic, memory.

Arithmetic counts what matrix products cost, a multiplication and an addition each (Kaplan et al.
2020, section 2.1; Chowdhery et al. 2022, PaLM, appendix B):

    forward pass, one token = 2 N + 4 L H D T
    training, one token     = 6 N + 12 L H D T     (the backward pass costs twice the forward)

N: weights in matrix products, the output head included even if it is tied, the token table's lookup
not. L: layers. H D: width of all query heads. T: the context. The second term is the product of
queries with keys and of attention weights with values, counted as if no key were masked; a kernel
that passes over masked keys does half of it. Norms, softmax and activations are left out.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_tinyformer.errors import ArtifactError, ConfigError
from hf_tinyformer.inference.loading import UNREADABLE, describe

PARTS = ("token embeddings", "positions", "attention", "feed-forward", "norms", "head")
"""Where a parameter can stand, in the order in which a token meets them."""

BYTES_PER_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of one architecture."""

    parameters: dict[str, int]
    """Weights in each of `PARTS`. A tied head has none of its own."""

    matrix_weights: int
    """N above."""

    matrix_weights_in_blocks: int
    """Those that Muon takes."""

    attention_flops: int
    """4 L H D T above."""

    context: int
    """T above: `max_position_embeddings`."""

    cache_values_per_token: int
    """Numbers that each token leaves in the key/value cache: 2 L, times the key/value width."""

    is_tied: bool
    """Whether the head is the token table."""

    @property
    def num_parameters(self) -> int:
        """All weights, tied ones once."""
        return sum(self.parameters.values())

    @property
    def forward_flops_per_token(self) -> int:
        """Floating point operations of reading one token at full context."""
        return 2 * self.matrix_weights + self.attention_flops

    @property
    def training_flops_per_token(self) -> int:
        """Floating point operations of learning from one token at full context."""
        return 3 * self.forward_flops_per_token

    def optimizer_bytes(self, optimizer: str) -> int:
        """Bytes of an optimizer's state in float32.

        Args:
            optimizer: `adamw` keeps two numbers a weight; `muon` one for each matrix weight in the
                blocks, and AdamW's two for the rest.
        """
        saved = self.matrix_weights_in_blocks if optimizer == "muon" else 0
        return BYTES_PER_FLOAT32 * (2 * self.num_parameters - saved)

    def rows(self) -> list[tuple[str, str]]:
        """Lay the figures out for a table: what, and how much with its unit."""
        weights = BYTES_PER_FLOAT32 * self.num_parameters
        counts = [
            (f"{part} (tied to the token embeddings)" if part == "head" and self.is_tied else part)
            for part in self.parameters
        ]
        cache = self.cache_values_per_token
        return [
            *zip(counts, (f"{count:,}" for count in self.parameters.values()), strict=True),
            ("parameters", f"{self.num_parameters:,}"),
            ("context", f"{self.context:,} tokens"),
            ("FLOPs per token, forward", f"{self.forward_flops_per_token:,}"),
            ("FLOPs per token, training", f"{self.training_flops_per_token:,}"),
            ("weights, float32", format_bytes(weights)),
            ("gradients, float32", format_bytes(weights)),
            ("optimizer state, AdamW", format_bytes(self.optimizer_bytes("adamw"))),
            ("optimizer state, Muon", format_bytes(self.optimizer_bytes("muon"))),
            ("key/value cache per token, float32", format_bytes(BYTES_PER_FLOAT32 * cache)),
            ("key/value cache at full context", format_bytes(4 * cache * self.context)),
        ]


def format_bytes(count: int) -> str:
    """Write a number of bytes with the unit that keeps it short: `1536` is `1.5 KiB`."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _part_of(name: str, module: nn.Module, head: nn.Module | None) -> str:
    if module is head:
        return "head"
    if isinstance(module, nn.Embedding):
        return "token embeddings" if re.search(r"embed_tokens|wte", name) else "positions"
    if re.search(r"norm|ln_", name.rpartition(".")[2]):
        return "norms"
    if re.search(r"attn|attention", name):
        return "attention"
    if re.search(r"mlp|feed_forward", name):
        return "feed-forward"
    return "positions"


def read_size(config: Any, *names: str) -> int:
    """Read a size that some configurations lack or call by another name.

    Args:
        config: That of any model that transformers knows.
        *names: What it is called, ours first.

    Raises:
        ConfigError: If it is called by none of them.
    """
    for name in names:
        if (size := getattr(config, name, None)) is not None:
            return int(size)
    raise ConfigError(
        f"{names[0]} is unset in the config.json of this {config.model_type} model, but has to be "
        "known here. Set it in a copy of the model's folder, or take another model."
    )


def context_of(config: Any) -> int:
    """Return how many tokens a model reads at once, as its configuration says.

    Args:
        config: That of any decoder that transformers knows.

    Raises:
        ConfigError: If it does not say so, as that of a recurrent model.
    """
    # As most call it; MPT; Bloom, whose positions have no end, but which was trained on so many.
    return read_size(config, "max_position_embeddings", "max_seq_len", "seq_length")


def _build_on_meta(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    # On the meta device a tensor has a shape and no memory.
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def measure_sizes(config: Any) -> Sizes:
    """Measure an architecture without allocating its weights.

    Args:
        config: A TinyFormerConfig, or that of any decoder that transformers knows.

    Raises:
        ConfigError: If it has no attention heads or no context.
    """
    num_heads = read_size(config, "num_attention_heads")
    context = context_of(config)
    model = _build_on_meta(config)
    head = model.get_output_embeddings()
    parts = dict.fromkeys(PARTS, 0)
    seen: set[nn.Parameter] = set()
    in_blocks = 0
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                parts[_part_of(name, module, head)] += parameter.numel()
                if (
                    parameter.ndim == 2
                    and module is not head
                    and not isinstance(module, nn.Embedding)
                ):
                    in_blocks += parameter.numel()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_key_value_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return Sizes(
        parameters=parts,
        matrix_weights=in_blocks + head.weight.numel(),
        matrix_weights_in_blocks=in_blocks,
        attention_flops=4 * config.num_hidden_layers * num_heads * head_dim * context,
        context=context,
        cache_values_per_token=2 * config.num_hidden_layers * num_key_value_heads * head_dim,
        is_tied=head.weight is model.get_input_embeddings().weight,
    )


def read_model_config(checkpoint: str) -> Any:
    """Read the configuration of a model, from a folder or from the Hub, without its weights.

    Raises:
        ArtifactError: If there is none, or only code that came with the checkpoint could read it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except UNREADABLE as error:
        raise ArtifactError(
            f"{checkpoint} has no configuration to read: {describe(error)}. "
            "Point to a folder such as runs/demo/final."
        ) from None
