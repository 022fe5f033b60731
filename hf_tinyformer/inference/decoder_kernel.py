"""A decoding step in C++, for models in float32 on a CPU.

A token of a small model is some two hundred small operations, and Python and torch take longer to
begin most of them than the processor to do them. `decoder_step.cpp` does the whole step in one
call. It is compiled for this processor when it is first needed, which takes a second, and kept in
the user's cache folder. Where there is no C++ compiler, `DecoderLayer` does the same in torch.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("decoder_step.cpp")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-std=c++17")
# Apple's compiler comes without OpenMP; one of its cores is fast enough at reading memory.
THREADS = () if sys.platform == "darwin" else ("-fopenmp",)

MOST_ROWS = 32
"""Texts up to which reading the weights takes longer than computing with them; as in the source."""

ACTIVATIONS = {"swiglu": 0, "gelu": 1, "relu2": 2}
"""By `mlp_type`, as numbered in the source."""


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hf_tinyformer"


def _find_compiler() -> list[str] | None:
    # CXX may be several words, such as `ccache g++`, or set and empty.
    words = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    program = shutil.which(words[0])
    return None if program is None else [program, *words[1:]]


def _compile(command: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True)
        with made.open("rb") as stream:
            os.fsync(stream.fileno())
        made.replace(path)


def _load(compiler: list[str]) -> ctypes.CDLL:
    # A home folder may be shared by machines whose processors differ.
    command = [*compiler, *FLAGS, *THREADS, str(SOURCE)]
    machine = [*command, platform.machine(), str(torch.cpu.get_capabilities())]
    key = hashlib.sha256(SOURCE.read_bytes() + "\n".join(machine).encode()).hexdigest()[:16]
    path = _cache_folder() / f"decoder_step-{key}.so"
    if path.exists():
        with suppress(OSError):  # damaged, it is replaced
            return ctypes.CDLL(str(path))
    _compile(command, path)
    return ctypes.CDLL(str(path))


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Load the compiled step, compiling it if this machine has not done so yet.

    Returns:
        The library, or `None` where there is no compiler, or where compiling or keeping the result
        fails, which is logged.
    """
    try:
        compiler = _find_compiler()
        library = None if compiler is None else _load(compiler)
    except subprocess.CalledProcessError as error:
        logger.warning("The decoding kernel is not used: %s cannot compile it.", error.cmd[0])
        logger.debug("%s", error.stderr)
        return None
    # Path.home() where there is none; a CXX whose quotes do not close.
    except (OSError, RuntimeError, ValueError) as error:
        logger.warning("The decoding kernel is not used: %s", error)
        return None
    if library is None:
        return None
    library.decoder_lanes.restype = c_int64
    library.decoder_step.argtypes = [POINTER(_Decoder), c_void_p, c_int64]
    library.decoder_step.restype = None
    return library


class _Matrix(Structure):
    _fields_ = (
        *(("weight", c_void_p), ("bias", c_void_p)),
        *(("inputs", c_int64), ("outputs", c_int64)),
    )


class _Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("eps", c_double))


class _Block(Structure):
    _fields_ = (
        *((name, _Norm) for name in ("attention_norm", "mlp_norm", "query_norm", "key_norm")),
        *((name, _Matrix) for name in ("query", "key", "value", "mix")),
        *((name, _Matrix) for name in ("gate", "widen", "narrow")),
        *(("keys", c_void_p), ("values", c_void_p)),
    )


class _Decoder(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("threads", "batch", "rows", "hidden_size")),
        *((name, c_int64) for name in ("heads", "key_value_heads", "head_dim", "room")),
        *((name, c_int64) for name in ("is_one_text", "is_pre_norm", "activation", "num_blocks")),
        ("scaling", c_double),
        ("blocks", POINTER(_Block)),
        *(("norm", _Norm), ("head", _Matrix)),
        *((name, c_void_p) for name in ("embeddings", "positions", "cosines", "sines")),
        *((name, c_void_p) for name in ("score_bias", "padding")),
        *((name, c_void_p) for name in ("hidden", "projected", "attended", "widened")),
        *(("logits", c_void_p), ("own", c_void_p), ("own_size", c_int64)),
    )


def can_run(model: Any, batch: int) -> bool:
    """Say whether the kernel serves a model that `can_decode`.

    Args:
        model: A TinyFormerForCausalLM.
        batch: Texts at once.
    """
    is_plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    return is_plain and batch <= MOST_ROWS and load_library() is not None


class DecoderKernel:
    """Where the kernel finds a model's weights, and room for it to work."""

    def __init__(
        self,
        model: Any,
        cache: Tensor,
        *,
        positions: Tensor | None,
        angles: tuple[Tensor, Tensor] | None,
        bias: Tensor | None,
        is_one_text: bool = False,
    ) -> None:
        """Note where everything is; nothing is copied.

        Args:
            model: One that it `can_run`.
            cache: Keys and values, `(layers, 2, batch, num_key_value_heads, room, head_dim)`.
            positions: Vectors added to the embeddings, `(room, hidden_size)`.
            angles: Cosines and signed sines, `(room, head_dim)` each.
            bias: Score bias of a query in the last slot, `(1, heads, 1, room)`.
            is_one_text: Read up to `most_tokens` tokens of the cache's only text at once, instead
                of one of each text.
        """
        library = load_library()
        assert library is not None, "ask `can_run` first"
        self._library = library
        self._held: list[Tensor] = []  # what the structures point to
        config, base = model.config, model.model
        _, _, batch, key_value_heads, room, head_dim = cache.shape
        blocks = [self._block(block, part) for block, part in zip(base.layers, cache, strict=True)]
        threads, lanes = torch.get_num_threads(), library.decoder_lanes()
        rows = 1 if batch == 1 and not is_one_text else -(-batch // lanes) * lanes
        self.most_tokens = rows if is_one_text else batch
        own_size = rows * config.hidden_size + 3 * head_dim + room
        logits = torch.empty(model.lm_head.out_features, rows)
        self._logits = logits.t()
        self._decoder = _Decoder(
            threads=threads,
            batch=batch,
            rows=rows,
            hidden_size=config.hidden_size,
            heads=config.num_attention_heads,
            key_value_heads=key_value_heads,
            head_dim=head_dim,
            room=room,
            is_one_text=is_one_text,
            is_pre_norm=config.norm_placement == "pre",
            activation=ACTIVATIONS[config.mlp_type],
            num_blocks=len(blocks),
            scaling=base.layers[0].self_attn.scaling,
            blocks=(_Block * len(blocks))(*blocks),
            norm=self._norm(base.norm),
            head=self._matrix(model.lm_head),
            embeddings=self._hold(base.embed_tokens.weight),
            positions=self._hold(positions),
            cosines=self._hold(angles and angles[0]),
            sines=self._hold(angles and angles[1]),
            score_bias=self._hold(bias),
            hidden=self._scratch(config.hidden_size, rows),
            projected=self._scratch(
                config.num_attention_heads + 2 * key_value_heads, head_dim, rows
            ),
            attended=self._scratch(config.num_attention_heads, head_dim, rows),
            widened=self._scratch(config.intermediate_size, rows),
            logits=logits.data_ptr(),
            own=self._scratch(threads, own_size),
            own_size=own_size,
        )

    def compute(self, tokens: Tensor, slot: int, padding: Tensor | None) -> Tensor:
        """Compute a step's logits.

        Args:
            tokens: Shape `(batch,)`, or some tokens of one text, `(sequence,)`.
            slot: Where they stand in the cache; those of one text, from there on.
            padding: Slots before each text begins, `(batch,)`.

        Returns:
            Shape `(batch, vocab_size)` or `(sequence, vocab_size)`, good until the next step.

        Raises:
            IndexError: If the cache has no such slot; the kernel would write beside it.
        """
        last = slot + len(tokens) - 1 if self._decoder.is_one_text else slot
        if not 0 <= slot <= last < self._decoder.room:
            raise IndexError(f"slot {last} of a cache with room for {self._decoder.room} tokens")
        assert len(tokens) <= self.most_tokens, "the kernel has no rows for more"
        self._decoder.batch = len(tokens)
        tokens = tokens.contiguous()
        self._decoder.padding = None if padding is None else padding.data_ptr()
        self._library.decoder_step(self._decoder, tokens.data_ptr(), slot)
        return self._logits[: len(tokens)]

    def _hold(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()

    def _scratch(self, *shape: int) -> int | None:
        return self._hold(torch.zeros(shape))

    def _matrix(self, layer: nn.Linear) -> _Matrix:
        weight = self._hold(layer.weight)
        return _Matrix(weight, self._hold(layer.bias), layer.in_features, layer.out_features)

    def _norm(self, module: Any) -> _Norm:
        if isinstance(module, nn.Identity):
            return _Norm()
        bias = getattr(module, "bias", None)
        return _Norm(self._hold(module.weight), self._hold(bias), module.eps)

    def _block(self, block: Any, cache: Tensor) -> _Block:
        attention, mlp = block.self_attn, block.mlp
        keys, values = cache
        return _Block(
            attention_norm=self._norm(block.attention_norm),
            mlp_norm=self._norm(block.mlp_norm),
            query_norm=self._norm(attention.q_norm),
            key_norm=self._norm(attention.k_norm),
            query=self._matrix(attention.q_proj),
            key=self._matrix(attention.k_proj),
            value=self._matrix(attention.v_proj),
            mix=self._matrix(attention.o_proj),
            gate=self._matrix(mlp.gate_proj) if hasattr(mlp, "gate_proj") else _Matrix(),
            widen=self._matrix(mlp.up_proj),
            narrow=self._matrix(mlp.down_proj),
            keys=self._hold(keys),
            values=self._hold(values),
        )
