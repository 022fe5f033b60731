# Copyright 2026 The hf_tinyformer authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Every architectural choice of a TinyFormer, checked when it is made.

Never add the annotations future import here: `@strict` would stop checking field types.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters
from transformers.utils import auto_docstring

CONFIG_INTRO = """
Every architectural choice of a TinyFormer: one decoder-style Transformer whose positions,
normalization, placement of the norms, feed-forward and attention details are all settings.
The defaults are those of Qwen3: RMSNorm, rotary positions, query-key norm, SwiGLU, no biases,
pre-LN.
"""


def full_auto_map() -> dict[str, str]:
    """Name the class behind each Auto class, so that a checkpoint loads through every one of them.

    transformers writes only the entry of the class that was saved; a causal LM would then not load
    through `AutoModel`.

    Returns:
        From the Auto class to `file.Class` inside the checkpoint.
    """
    return {
        "AutoConfig": "configuration_tinyformer.TinyFormerConfig",
        "AutoModel": "modeling_tinyformer.TinyFormerModel",
        "AutoModelForCausalLM": "modeling_tinyformer.TinyFormerForCausalLM",
        "AutoModelForMaskedLM": "modeling_tinyformer.TinyFormerForMaskedLM",
        "AutoModelForQuestionAnswering": "modeling_tinyformer.TinyFormerForQuestionAnswering",
        "AutoModelForSequenceClassification": (
            "modeling_tinyformer.TinyFormerForSequenceClassification"
        ),
        "AutoModelForTokenClassification": "modeling_tinyformer.TinyFormerForTokenClassification",
    }


def default_intermediate_size(hidden_size: int, mlp_type: str) -> int:
    """Choose the feed-forward width that gives every kind about the same number of weights.

    GELU and ReLU^2 have two matrices, `4 * hidden_size` wide (Vaswani et al. 2017, section 3.3).
    SwiGLU has three, so two thirds of that width (Shazeer 2020, section 2), rounded up to a
    multiple of 64 (of 8 in models narrower than 128), which is what fast matrix kernels like.

    Args:
        hidden_size: Width of the residual stream.
        mlp_type: `"swiglu"`, `"gelu"` or `"relu2"`.

    Returns:
        Width of the feed-forward layer.
    """
    if mlp_type != "swiglu":
        return 4 * hidden_size
    multiple = 64 if hidden_size >= 128 else 8
    return -(-8 * hidden_size // (3 * multiple)) * multiple


@auto_docstring(custom_intro=CONFIG_INTRO, checkpoint="hf_tinyformer")
@strict
class TinyFormerConfig(PreTrainedConfig):
    r"""Every architectural choice of a TinyFormer.

    Args:
        intermediate_size (`int`, *optional*):
            Width of the feed-forward layer. `None`: two thirds of `4 * hidden_size` for SwiGLU,
            rounded up, else `4 * hidden_size`.
        num_key_value_heads (`int`, *optional*):
            Key and value heads, each shared by an equal group of query heads (Ainslie et al. 2023,
            section 2.2). `None`: as many as query heads. 1: multi-query attention.
        head_dim (`int`, *optional*):
            Width of one head. `None`: `hidden_size / num_attention_heads`.
        max_position_embeddings (`int`, *optional*, defaults to 1024):
            Longest sequence the model is meant for. A hard limit for `learned` positions, whose
            table ends there; the other schemes go on.
        position_embedding_type (`str`, *optional*, defaults to `"rope"`):
            How a token's place enters: `"rope"`, `"learned"`, `"sinusoidal"`, `"alibi"`,
            `"relative"` (T5 buckets) or `"none"` (the causal mask alone).
        norm_type (`str`, *optional*, defaults to `"rmsnorm"`):
            `"rmsnorm"` (Zhang and Sennrich 2019) or `"layernorm"` (Ba et al. 2016).
        norm_eps (`float`, *optional*, defaults to 1e-06):
            Added to the variance before the square root.
        norm_placement (`str`, *optional*, defaults to `"pre"`):
            `"pre"`: before each sublayer and once at the end (GPT-2). `"post"`: after each residual
            sum (the original Transformer), with no norm at the end.
        mlp_type (`str`, *optional*, defaults to `"swiglu"`):
            `"swiglu"` (Shazeer 2020), `"gelu"` (tanh form, as GPT-2) or `"relu2"` (So et al. 2021).
        use_qk_norm (`bool`, *optional*, defaults to `True`):
            RMSNorm on every query and key head before positions are applied, as in Qwen3.
        hidden_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the embeddings and on each sublayer's output.
        scale_residual_initialization (`bool`, *optional*, defaults to `True`):
            Divide the initial spread of `o_proj` and `down_proj` by
            `sqrt(2 * num_hidden_layers)` (GPT-2, Radford et al. 2019, section 2.3), so that the
            residual sum starts out independent of depth.
        relative_attention_num_buckets (`int`, *optional*, defaults to 32):
            Distinct distances of the `relative` scheme.
        relative_attention_max_distance (`int`, *optional*, defaults to 128):
            Distance from which on all share the last bucket of the `relative` scheme.
        is_causal (`bool`, *optional*, defaults to `True`):
            Whether a token sees only itself and what stands before it.

    Example:
    ```python
    >>> from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM

    >>> config = TinyFormerConfig(hidden_size=64, position_embedding_type="alibi")
    >>> model = TinyFormerForCausalLM(config)
    ```
    """

    model_type = "tinyformer"
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "embeddings": (["inputs_embeds", "position_ids"], ["hidden_states"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32000
    hidden_size: int = 256
    intermediate_size: int | None = None
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 1024
    position_embedding_type: Literal[
        "rope", "learned", "sinusoidal", "alibi", "relative", "none"
    ] = "rope"
    rope_parameters: RopeParameters | dict[str, Any] | None = None
    norm_type: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float | int = 1e-6
    norm_placement: Literal["pre", "post"] = "pre"
    mlp_type: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    use_qk_norm: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = True
    attention_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    initializer_range: float | int = 0.02
    scale_residual_initialization: bool = True
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    is_causal: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the sizes that follow from others and tidy the positions' settings."""
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            # A count below 1 is refused, by name, in `validate_architecture`.
            self.head_dim = self._divide_hidden_size() if self.num_attention_heads > 0 else 0
        if self.intermediate_size is None:
            self.intermediate_size = default_intermediate_size(self.hidden_size, self.mlp_type)
        super().__post_init__(**kwargs)
        if getattr(self, "auto_map", None) is None:
            self.auto_map = full_auto_map()
        if self.position_embedding_type != "rope":
            # transformers fills these in for every config that has the field.
            self.rope_parameters = None
        if self.position_embedding_type in ("alibi", "relative"):
            # The score bias holds all heads while a rank of tensor parallelism holds some of them.
            self.base_model_tp_plan = None

    def _divide_hidden_size(self) -> int:
        """Split the width among the heads.

        Returns:
            Width of one head.

        Raises:
            ValueError: If the heads do not divide the width.
        """
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, but it must divide "
                f"hidden_size ({self.hidden_size}). Change one of them, or set head_dim."
            )
        return self.hidden_size // self.num_attention_heads

    def validate_architecture(self) -> None:
        """Refuse sizes that cannot make a model. Part of `@strict`'s validation.

        Raises:
            ValueError: If a size is below 1 or two sizes do not fit each other.
        """
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be 1 or more.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}, but it must divide "
                f"num_attention_heads ({self.num_attention_heads}). Each key and value head serves "
                "an equal group of query heads."
            )

    def validate_positions(self) -> None:
        """Refuse settings the position scheme cannot work with. Part of `@strict`'s validation.

        Raises:
            ValueError: If a width is odd where pairs are needed, or the T5 buckets are degenerate.
        """
        scheme = self.position_embedding_type
        if scheme == "rope" and self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}, but rotary positions turn pairs, so it must be "
                "even. Change hidden_size, num_attention_heads or head_dim."
            )
        if scheme == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, but sinusoidal positions need it even, one "
                "sine and one cosine for each frequency."
            )
        if scheme == "relative":
            self._validate_buckets()

    def _validate_buckets(self) -> None:
        """Refuse buckets whose logarithmic half would be empty or backwards.

        Raises:
            ValueError: If there are too few buckets, or they reach too short a distance.
        """
        num_buckets = self.relative_attention_num_buckets
        if num_buckets < 4 or num_buckets % 4:
            raise ValueError(
                f"relative_attention_num_buckets is {num_buckets}, but it must be a multiple of 4: "
                "half for each direction when bidirectional, half of those exact."
            )
        if self.relative_attention_max_distance <= num_buckets // 2:
            raise ValueError(
                f"relative_attention_max_distance is {self.relative_attention_max_distance}, but "
                f"it must be above half of relative_attention_num_buckets ({num_buckets}), since "
                "so many distances have a bucket of their own. Raise it."
            )

    def validate_rates(self) -> None:
        """Refuse rates outside their range. Part of `@strict`'s validation.

        Raises:
            ValueError: If a dropout is not in [0, 1) or a spread is not positive.
        """
        for name in ("attention_dropout", "hidden_dropout", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate}, but it must be at least 0 and below 1.")
        for name in ("norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be above 0.")


TinyFormerConfig.register_for_auto_class()

__all__ = ["TinyFormerConfig"]
