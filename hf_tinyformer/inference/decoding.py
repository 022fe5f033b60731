"""Write token after token through a TinyFormer, with as little work between two tokens as possible.

`generate` prepares inputs, builds masks and grows a cache anew for every token, which for a small
model costs several times what the model does. Here the cache has its full length from the start,
query, key and value come out of one product, and all that depends on positions is a table. On CUDA
a step is recorded once as a graph and replayed, so a token costs one launch instead of hundreds. On
a CPU a single text that repeats itself is read some tokens at a time (`prompt_lookup.py`).
The numbers are those of the model's forward with a cache, up to the order in which float32 sums are
taken.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_tinyformer.inference.choosing import Choose, refuse_no_token
from hf_tinyformer.inference.decoder_kernel import DecoderKernel, can_run
from hf_tinyformer.inference.decoder_layer import DecoderLayer, Slot, make_norm
from hf_tinyformer.inference.prompt_lookup import PromptLookup
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM

STEADY_ROPE = ("default", "linear", "yarn", "llama3")
"""Kinds of rotary positions whose angles do not depend on the length of the text."""

OURS = "hf_tinyformer.model."
"""Where a TinyFormer's own modules come from."""

TORCHS = (nn.Linear, nn.Embedding, nn.Dropout, nn.Identity, nn.ModuleList)
"""What it has of torch's. An adapter or a quantizer puts a module of another kind in the place."""

CAPTURING = "transformers.utils.output_capturing"
"""Whose hooks only collect, and stay on a model that once gave its attention weights."""


def _is_plain(module: nn.Module) -> bool:
    is_known = type(module) in TORCHS or type(module).__module__.startswith(OURS)
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    is_hooked = any(getattr(hook, "__module__", None) != CAPTURING for hook in hooks)
    return is_known and not is_hooked and not hasattr(module, "_hf_hook")


def can_decode(model: Any) -> bool:
    """Tell whether `decode` knows a model: a whole, plain TinyFormer.

    Args:
        model: Any causal language model. One that is sharded, quantized, adapted, moved about or
            changed by hooks, or whose rotary angles change with the length of the text, is left to
            `generate`.
    """
    if type(model) is not TinyFormerForCausalLM or not all(map(_is_plain, model.modules())):
        return False
    rope = model.config.rope_parameters
    is_steady = rope is None or rope["rope_type"] in STEADY_ROPE
    is_linear = all(
        type(module) is nn.Linear
        for name, module in model.named_modules()
        if name.endswith(("_proj", "lm_head"))
    )
    # A sharded or quantized weight is a tensor of another class.
    is_here = all(type(p) is nn.Parameter and not p.is_meta for p in model.parameters())
    return is_steady and is_linear and is_here


@dataclass
class _Tables:
    """All that depends on the position, for every slot there is room for."""

    positions: Tensor | None
    """Vectors added to the embeddings, `(room, hidden_size)`."""

    angles: tuple[Tensor, Tensor] | None
    """Cosines and signed sines, `(room, head_dim)` each."""

    bias: Tensor | None
    """Score bias of a query in the last slot, `(1, heads, 1, room)`: the last `n` entries are those
    of a query that sees `n` keys."""


class TokenDecoder:
    """Holds a model's weights and its cache between two tokens of a batch of texts."""

    def __init__(self, model: TinyFormerForCausalLM, input_ids: Tensor, room: int) -> None:
        """Make room for a batch.

        Args:
            model: One that `can_decode`, in evaluation mode.
            input_ids: Gives the device and the number of rows.
            room: Tokens of the longest text, prompt included.
        """
        config: Any = model.config
        base = model.model
        weight = base.embed_tokens.weight
        shape = (len(input_ids), config.num_key_value_heads, room, config.head_dim)
        self.model = model
        self.cache = weight.new_zeros(config.num_hidden_layers, 2, *shape)
        self.tables = self._make_tables(room)
        self.slot = 0
        self.is_real: Tensor | None = None
        self.padding: Tensor | None = None
        self.recording: _Recording | None = None
        self.kernel: DecoderKernel | None = None
        self.lookup: PromptLookup | None = None
        if can_run(model, len(input_ids)):
            self.kernel = self._make_kernel()
            if len(input_ids) == 1:
                several = self._make_kernel(is_one_text=True)
                self.lookup = PromptLookup(self.kernel, several, room)
        else:
            self.layers = [
                DecoderLayer(block, part)
                for block, part in zip(base.layers, self.cache, strict=True)
            ]
            self.norm = make_norm(base.norm)

    def _make_kernel(self, *, is_one_text: bool = False) -> DecoderKernel:
        return DecoderKernel(
            self.model,
            self.cache,
            positions=self.tables.positions,
            angles=self.tables.angles,
            bias=self.tables.bias,
            is_one_text=is_one_text,
        )

    def _make_tables(self, room: int) -> _Tables:
        base = self.model.model
        weight = base.embed_tokens.weight
        slots = torch.arange(room, device=weight.device)
        positions = angles = bias = None
        if base.embeddings.positions is not None:
            positions = base.embeddings.positions(slots).to(weight.dtype)
        if base.rotary_emb is not None:
            cos, sin = (table[0] for table in base.rotary_emb(weight, slots[None]))
            half = sin.shape[-1] // 2
            angles = cos, torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
        if base.score_bias is not None:
            distance = (room - 1 - slots)[None, None]
            bias = base.score_bias(distance, bidirectional=False).to(weight.dtype)
        return _Tables(positions, angles, bias)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Read the prompts by the model's own forward.

        Args:
            input_ids: Shape `(batch, sequence)`, padded on the left.
            attention_mask: 1 marks a real token, same shape; `None` without padding.

        Returns:
            Logits of the tokens that follow, `(batch, vocab_size)`.
        """
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=True, logits_to_keep=1
        )
        self.slot = input_ids.shape[1]
        if self.lookup is not None:
            self.lookup.add(input_ids[0].tolist())
        for cache, filled in zip(self.cache, outputs.past_key_values.layers, strict=True):
            for kept, states in zip(cache, (filled.keys, filled.values), strict=True):
                kept[:, :, : self.slot] = states
        if attention_mask is not None:
            rows, room = len(input_ids), self.cache.shape[4]
            self.is_real = attention_mask.new_ones((rows, 1, 1, room), dtype=torch.bool)
            self.is_real[:, 0, 0, : self.slot] = attention_mask.bool()
            self.padding = self.slot - attention_mask.sum(dim=1)
        return outputs.logits[:, -1]

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of each row.

        Args:
            tokens: Shape `(batch,)`.

        Returns:
            Logits of the tokens that follow, `(batch, vocab_size)`, good until the next step.
        """
        if tokens.is_cuda:
            self.recording = self.recording or _Recording(self, tokens)
            logits = self.recording.replay(tokens, self.slot)
        elif self.lookup is not None:
            logits = self.lookup.compute(int(tokens), self.slot, self.padding)
        elif self.kernel is not None:
            logits = self.kernel.compute(tokens, self.slot, self.padding)
        else:
            logits = self.compute(tokens, self.slot)
        self.slot += 1
        return logits

    def compute(self, tokens: Tensor, slot: Slot) -> Tensor:
        """Compute a step's logits.

        Args:
            tokens: Shape `(batch,)`.
            slot: Where they stand. With a tensor all the cache is looked at, through a mask.
        """
        tables = self.tables
        place = slot if self.padding is None else slot - self.padding
        hidden_states = self.model.model.embed_tokens(tokens)
        if tables.positions is not None:
            hidden_states = hidden_states + tables.positions[place]
        angles = None
        if tables.angles is not None:
            cos, sin = (table[place] for table in tables.angles)
            angles = (cos, sin) if isinstance(place, int) else (cos[:, None], sin[:, None])
        mask = self._mask(slot)
        for layer in self.layers:
            hidden_states = layer(hidden_states, slot, angles, mask)
        return self.model.lm_head(self.norm(hidden_states))

    def _mask(self, slot: Slot) -> Tensor | None:
        is_real, bias = self.is_real, self.tables.bias
        if isinstance(slot, int):
            is_real = None if is_real is None else is_real[..., : slot + 1]
            bias = None if bias is None else bias[..., -slot - 1 :]
        else:
            slots = torch.arange(self.cache.shape[4], device=slot.device)
            is_past = (slots <= slot)[None, None, None]
            is_real = is_past if is_real is None else is_real & is_past
            if bias is not None:
                bias = bias[..., (slots - slot - 1) % len(slots)]
        if bias is None or is_real is None:
            return is_real if bias is None else bias
        return bias.masked_fill(~is_real, float("-inf"))


class _Recording:
    """A step of a decoder as a CUDA graph."""

    def __init__(self, decoder: TokenDecoder, tokens: Tensor) -> None:
        """Record it.

        Args:
            decoder: Stands before a step.
            tokens: Any of the step's shape.
        """
        self.tokens = tokens.clone()
        self.slot = torch.tensor([decoder.slot], device=tokens.device)
        # A graph records what the current device does, which need not be the model's.
        with torch.cuda.device(tokens.device):
            beside = torch.cuda.Stream(tokens.device)
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                # Libraries set themselves up in the first runs, which a graph may not hold. Each
                # writes to the slot that the first replay writes to as well.
                for _ in range(3):
                    decoder.compute(self.tokens, self.slot)
            torch.cuda.current_stream().wait_stream(beside)
            self.graph = torch.cuda.CUDAGraph()
            # Nothing that another thread does meanwhile may break it off: the demo has several.
            with torch.cuda.graph(self.graph, stream=beside, capture_error_mode="thread_local"):
                self.logits = decoder.compute(self.tokens, self.slot)

    def replay(self, tokens: Tensor, slot: int) -> Tensor:
        """Compute a step's logits, into the same memory each time."""
        self.tokens.copy_(tokens)
        self.slot.fill_(slot)
        self.graph.replay()
        return self.logits


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Any]:
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    input_ids = torch.tensor(rows, device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return input_ids, None
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return input_ids, (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()


@torch.inference_mode()
def decode(
    model: TinyFormerForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    choose: Choose,
    stop_ids: Collection[int] = (),
    on_tokens: Callable[[Tensor], None] | None = None,
) -> list[list[int]]:
    """Continue texts, all at once.

    Args:
        model: One that `can_decode`, in evaluation mode.
        prompts: Token ids of each text, at least one each; lengths may differ.
        max_new_tokens: Most tokens to write to each.
        choose: From `build_chooser`.
        stop_ids: Tokens that end a text.
        on_tokens: Told of each row's new token, `(batch,)` on the CPU; what a row that has ended
            gets means nothing.

    Returns:
        The new tokens of each text, the one that ended it included.

    Raises:
        ArtifactError: If the model's logits are not numbers to choose by.
    """
    input_ids, attention_mask = _pad_left(prompts, model.device)
    written: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    # Casting weights again for each token would cost more than it saves.
    with torch.autocast(model.device.type, enabled=False):
        # The last token is never read.
        decoder = TokenDecoder(model, input_ids, input_ids.shape[1] + max_new_tokens - 1)
        logits = decoder.read(input_ids, attention_mask)
        for left in reversed(range(max_new_tokens)):
            tokens = choose(logits)
            new = tokens.tolist()
            refuse_no_token(new)
            if on_tokens is not None:
                on_tokens(tokens.cpu())
            for row in list(running):
                written[row].append(new[row])
                if new[row] in stop_ids:
                    running.remove(row)
            if not running or not left:
                break
            logits = decoder.step(tokens)
    return written
