"""Write token after token through a TinyFormer, with as little work between two tokens as possible.

`generate` prepares inputs, builds masks and grows a cache anew for every token, which for a small
model costs several times what the model does. Here the cache has its full length from the start,
query, key and value come out of one product, and all that depends on positions is a table. On CUDA
a step is recorded once as a graph and replayed, so a token costs one launch instead of hundreds.
The numbers are those of the model's forward with a cache, up to the order in which float32 sums are
taken.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM

STEADY_ROPE = ("default", "linear", "yarn", "llama3")
"""Kinds of rotary positions whose angles do not depend on the length of the text."""

Choose = Callable[[Tensor], Tensor]
"""Takes the logits of each row, `(batch, vocab_size)`, and returns its next token, `(batch,)`."""


def can_decode(model: Any) -> bool:
    """Tell whether `decode` knows a model: a whole, plain TinyFormer.

    Args:
        model: Any causal language model. One that is sharded, quantized, adapted or moved about by
            hooks, or whose rotary angles change with the length of the text, is left to `generate`.
    """
    if type(model) is not TinyFormerForCausalLM:
        return False
    rope = model.config.rope_parameters
    is_plain = all(
        type(module) is nn.Linear
        for name, module in model.named_modules()
        if name.endswith(("_proj", "lm_head"))
    )
    is_elsewhere = any(isinstance(p, DTensor) or p.is_meta for p in model.parameters())
    has_hooks = any(hasattr(module, "_hf_hook") for module in model.modules())
    is_steady = rope is None or rope["rope_type"] in STEADY_ROPE
    return is_plain and is_steady and not is_elsewhere and not has_hooks


def build_chooser(temperature: float, top_k: int, top_p: float) -> Choose:
    """Say how a token is taken from logits.

    Args:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Sample among this many likeliest tokens; 0 among all.
        top_p: Sample among the likeliest tokens that together reach this probability.

    Returns:
        A function that draws from torch's global generator unless `temperature` is 0.
    """
    if temperature == 0:
        return lambda logits: logits.argmax(dim=-1)

    def sample_all(logits: Tensor) -> Tensor:
        chances = (logits.float() / temperature).softmax(dim=-1)
        return torch.multinomial(chances, 1)[:, 0]

    def sample(logits: Tensor) -> Tensor:
        kept = min(top_k, logits.shape[-1]) or logits.shape[-1]
        scores, tokens = (logits.float() / temperature).topk(kept)  # the likeliest first
        chances = scores.softmax(dim=-1)
        if top_p < 1:
            reached_before = chances.cumsum(dim=-1) - chances
            chances = chances.masked_fill(reached_before >= top_p, 0.0)
        return tokens.gather(-1, torch.multinomial(chances, 1))[:, 0]

    # Among all tokens nothing has to be put in order, which for a large vocabulary takes long.
    return sample_all if top_k == 0 and top_p == 1 else sample


Product = Callable[[Tensor], Tensor]
"""Takes `(batch, inputs)` and returns `(batch, outputs)`."""

NARROW = 512
"""Outputs up to which the product of one row is divided more finely than among the threads."""

FEW_ROWS = 32
"""Rows up to which reading the weights takes longer than computing with them."""


def _make_product(layers: Sequence[nn.Linear], batch: int) -> Product:
    """Make one product out of several with the same input.

    A few rows on a CPU are a matter of reading the weights. torch's own product of a row reads them
    with one core; divided into blocks of columns it takes all of them, and less than half the time.
    """
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    weight, bias = torch.cat(weights), torch.cat(biases) if biases else None
    if batch > FEW_ROWS or weight.device.type != "cpu":
        return lambda states: functional.linear(states, weight, bias)
    outputs = len(weight)
    most = torch.get_num_threads() * (4 if outputs <= NARROW or batch > 1 else 1)
    parts = next(count for count in range(min(most, outputs), 0, -1) if outputs % count == 0)
    blocks = weight.view(parts, outputs // parts, -1).transpose(1, 2).contiguous()

    def multiply(states: Tensor) -> Tensor:
        product = torch.bmm(states.expand(parts, batch, -1), blocks)  # (parts, batch, columns)
        product = product.transpose(0, 1).reshape(batch, outputs)
        return product if bias is None else product + bias

    return multiply


def _make_norm(module: Any) -> Callable[[Tensor], Tensor]:
    if isinstance(module, nn.Identity):
        return lambda hidden_states: hidden_states
    weight, eps = module.weight, module.eps
    if (bias := getattr(module, "bias", None)) is not None:
        return lambda states: functional.layer_norm(states, weight.shape, weight, bias, eps)
    return lambda states: functional.rms_norm(states, weight.shape, weight, eps)


Slot = int | Tensor
"""Place of the new tokens in the cache. As a tensor, `(1,)`, nothing's shape depends on it."""


def _remember(cache: Tensor, new: Tensor, slot: Slot) -> Tensor:
    """Write the new tokens' keys or values, and return those to look at."""
    if isinstance(slot, int):
        cache[:, :, slot] = new
        return cache[:, :, : slot + 1]
    return cache.index_copy_(2, slot, new[:, :, None])


class _Layer:
    """One block for one new token in each row."""

    def __init__(self, block: Any, cache: Tensor) -> None:
        """Take the weights.

        Args:
            block: A TinyFormerBlock.
            cache: Keys and values, shape `(2, batch, num_key_value_heads, room, head_dim)`.
        """
        attention, mlp = block.self_attn, block.mlp
        config = attention.config
        self.is_pre_norm = block.is_pre_norm
        self.attention_norm = _make_norm(block.attention_norm)
        self.mlp_norm = _make_norm(block.mlp_norm)
        batch = cache.shape[1]
        self.project = _make_product([attention.q_proj, attention.k_proj, attention.v_proj], batch)
        self.heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.norm_weight: Tensor | None = None
        if config.use_qk_norm:
            queries, keys = self.heads
            rows = [attention.q_norm.weight] * queries + [attention.k_norm.weight] * keys
            self.norm_weight, self.norm_eps = torch.stack(rows), attention.q_norm.eps
        self.mix = _make_product([attention.o_proj], batch)
        inputs = [mlp.gate_proj, mlp.up_proj] if hasattr(mlp, "gate_proj") else [mlp.up_proj]
        self.widen = _make_product(inputs, batch)
        self.activation = getattr(mlp, "activation", None)
        self.narrow = _make_product([mlp.down_proj], batch)
        self.keys, self.values = cache

    def __call__(
        self,
        hidden_states: Tensor,
        slot: Slot,
        angles: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        """Transform the new tokens' vectors, `(batch, hidden_size)`, and remember their keys."""
        normed = self.attention_norm(hidden_states) if self.is_pre_norm else hidden_states
        hidden_states = hidden_states + self.mix(self._attend(normed, slot, angles, mask))
        if not self.is_pre_norm:
            hidden_states = self.attention_norm(hidden_states)
        normed = self.mlp_norm(hidden_states) if self.is_pre_norm else hidden_states
        hidden_states = hidden_states + self.narrow(self._activate(self.widen(normed)))
        return hidden_states if self.is_pre_norm else self.mlp_norm(hidden_states)

    def _attend(
        self,
        states: Tensor,
        slot: Slot,
        angles: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        queries, keys = self.heads
        projected = self.project(states).view(len(states), queries + 2 * keys, self.head_dim)
        turning, value = projected.split([queries + keys, keys], dim=1)
        if self.norm_weight is not None:
            turning = functional.rms_norm(turning, (self.head_dim,), eps=self.norm_eps)
            turning = turning * self.norm_weight
        if angles is not None:
            cos, sin = angles  # the first half of the sines is negative, as `rotate_half` makes it
            turned = torch.roll(turning, self.head_dim // 2, dims=-1)
            turning = torch.addcmul(turning * cos, turned, sin)
        query, key = turning.split([queries, keys], dim=1)
        attended = functional.scaled_dot_product_attention(
            query[:, :, None],
            _remember(self.keys, key, slot),
            _remember(self.values, value, slot),
            attn_mask=mask,
            scale=self.scaling,
            enable_gqa=queries != keys,
        )
        return attended.reshape(len(states), -1)

    def _activate(self, widened: Tensor) -> Tensor:
        if self.activation is not None:
            activated: Tensor = self.activation(widened)
            return activated
        gate, up = widened.chunk(2, dim=-1)
        return functional.silu(gate) * up


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
        self.layers = [
            _Layer(block, cache) for block, cache in zip(base.layers, self.cache, strict=True)
        ]
        self.norm = _make_norm(base.norm)
        self.tables = self._make_tables(room)
        self.slot = 0
        self.is_real: Tensor | None = None
        self.padding: Tensor | None = None
        self.recording: _Recording | None = None

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
        for layer, filled in zip(self.layers, outputs.past_key_values.layers, strict=True):
            layer.keys[:, :, : self.slot] = filled.keys
            layer.values[:, :, : self.slot] = filled.values
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
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            # Libraries set themselves up in the first runs, which a graph may not hold. Each writes
            # to the slot that the first replay writes to as well.
            for _ in range(3):
                decoder.compute(self.tokens, self.slot)
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
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
