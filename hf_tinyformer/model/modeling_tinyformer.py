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
"""The model: embeddings, a stack of blocks, and a head for each task.

Positions and masks are made once, above the layers, and handed down.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import TinyFormerAttention
from .block import TinyFormerBlock
from .configuration_tinyformer import TinyFormerConfig
from .embeddings import TinyFormerEmbeddings
from .masking import (
    build_attention_mask,
    check_score_bias,
    distances_of,
    merge_score_bias,
    positions_of,
)
from .normalization import NORMS
from .positions import SCORE_BIASES, TinyFormerRotaryEmbedding


@auto_docstring
class TinyFormerPreTrainedModel(PreTrainedModel):
    """What every TinyFormer shares: its config, its initialization, what it can do."""

    config: TinyFormerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TinyFormerBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": TinyFormerBlock,
        "attentions": TinyFormerAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw first weights: normal with `initializer_range`; norms 1, biases 0.

        Args:
            module: One module of the model.
        """
        super()._init_weights(module)
        # CODEPATH: on by default; off for a plain initialization, as in Llama.
        if self.config.scale_residual_initialization and self._adds_to_residual(module):
            # Two sublayers per layer add to the residual stream; its variance grows with them.
            spread = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=spread)

    def _adds_to_residual(self, module: nn.Module) -> bool:
        """Tell whether a module's output joins the residual stream.

        The blocks cannot do this for their own layers: in a model from outside transformers,
        modules without weights of their own are passed over.

        Args:
            module: One module of the model.

        Returns:
            Whether it is the last layer of some sublayer.
        """
        return any(
            module is layer.self_attn.o_proj or module is layer.mlp.down_proj
            for layer in self.base_model.layers
        )


@auto_docstring
class TinyFormerModel(TinyFormerPreTrainedModel):
    """Embeddings and blocks; gives a vector per token."""

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__(config)
        scheme = config.position_embedding_type
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embeddings = TinyFormerEmbeddings(config)
        self.rotary_emb = TinyFormerRotaryEmbedding(config) if scheme == "rope" else None
        self.score_bias = SCORE_BIASES[scheme](config) if scheme in SCORE_BIASES else None
        self.layers = nn.ModuleList(
            TinyFormerBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm: nn.Module = nn.Identity()
        # CODEPATH: pre-LN needs a norm at the end; post-LN ends each block with one already.
        if config.norm_placement == "pre":
            self.norm = NORMS[config.norm_type](config.hidden_size, config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Turn tokens into vectors that know their context."""
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError(
                "input_ids and inputs_embeds are both given or both None, but the model reads "
                "exactly one of them. Pass one."
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        # A bidirectional model sees what comes later, so nothing it computed earlier stays valid.
        use_cache = bool(use_cache and self.config.is_causal)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        mask = build_attention_mask(
            self.config, inputs_embeds, attention_mask, past_key_values, position_ids
        )
        position_bias = None
        # CODEPATH: only the alibi and relative schemes have a score bias.
        if self.score_bias is not None:
            check_score_bias(self.config, kwargs)
            distance = distances_of(inputs_embeds, attention_mask, past_key_values, position_ids)
            mask, position_bias = self._add_score_bias(mask, distance, inputs_embeds.dtype)
        if position_ids is None:
            position_ids = positions_of(inputs_embeds, attention_mask, past_key_values)
        hidden_states = self.embeddings(inputs_embeds, position_ids)
        # CODEPATH: only the rope scheme has rotary angles.
        position_embeddings = (
            self.rotary_emb(hidden_states, position_ids) if self.rotary_emb is not None else None
        )

        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                mask,
                position_bias,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )

    def _add_score_bias(
        self, mask: Any, distance: Tensor, dtype: torch.dtype
    ) -> tuple[Any, Tensor | None]:
        """Put the score bias of a scheme that has one where the attention function reads it.

        Args:
            mask: What `build_attention_mask` gave.
            distance: What `distances_of` gave.
            dtype: That of the scores.

        Returns:
            The mask, and a bias that has to be passed beside it or `None`.
        """
        is_causal = self.config.is_causal
        bias = self.score_bias(distance, bidirectional=not is_causal).to(dtype)
        return merge_score_bias(bias, mask, distance, is_causal=is_causal)


def keep_positions(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Choose the positions whose logits are wanted, before the costly projection to the vocabulary.

    Args:
        hidden_states: Shape `(batch, sequence, hidden_size)`.
        logits_to_keep: The number of last positions, 0 for all; indices of positions, the same for
            all rows, shape `(kept,)`, or for each, shape `(batch, kept)`; or Booleans, shape
            `(batch, sequence)`.

    Returns:
        Shape `(batch, kept, hidden_size)`, or `(kept, hidden_size)` for Booleans.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]  # -0 is 0: all of them
    if logits_to_keep.dim() == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    return hidden_states.take_along_dim(logits_to_keep[..., None], dim=1)


@auto_docstring
class TinyFormerForCausalLM(TinyFormerPreTrainedModel, GenerationMixin):
    """Predicts each token from those before it."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: TinyFormerConfig) -> None:
        if not config.is_causal:
            raise ValueError(
                "is_causal is False, but a causal language model must not see the token it "
                "predicts. Set is_causal=True, or use TinyFormerForMaskedLM."
            )
        super().__init__(config)
        self.model = TinyFormerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        r"""Predict the token that follows each one.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The tokens themselves; the model shifts them. -100 is left out of the loss.
            shift_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                For each position the token that follows it, shifted already; used instead of
                `labels`.
        """
        computes_loss = labels is not None or shift_labels is not None
        if computes_loss and use_cache is None and past_key_values is None:
            use_cache = False  # a training step would only hold the memory
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(keep_positions(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if computes_loss:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                shift_labels=shift_labels,
                vocab_size=self.config.vocab_size,
                **kwargs,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@auto_docstring
class TinyFormerForMaskedLM(TinyFormerPreTrainedModel):
    """Predicts hidden tokens from both sides (Devlin et al. 2019, section 3.1)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: TinyFormerConfig) -> None:
        config = copy.deepcopy(config)  # the caller's may serve a causal model next
        config.is_causal = False
        super().__init__(config)
        self.model = TinyFormerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        r"""Predict the hidden tokens.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The hidden tokens at their own places, not shifted; -100 everywhere else.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def last_tokens(
    input_ids: Tensor | None, attention_mask: Tensor | None, pad_token_id: int | None, sequence: int
) -> Tensor | int:
    """Find each row's last real token, wherever the padding stands.

    Args:
        input_ids: Shape `(batch, sequence)`, or `None` if embeddings were given.
        attention_mask: 1 marks a real token, shape `(batch, sequence)`.
        pad_token_id: Tells padding where there is no mask.
        sequence: Number of places in a row.

    Returns:
        Places, shape `(batch,)`; or -1 if no row can hold padding.
    """
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        is_real = attention_mask[:, -sequence:].bool()
    elif input_ids is not None and pad_token_id is not None:
        is_real = input_ids != pad_token_id
    else:
        return -1
    return (torch.arange(sequence, device=is_real.device) * is_real).argmax(dim=-1)


@auto_docstring
class TinyFormerForSequenceClassification(TinyFormerPreTrainedModel):
    """Labels a text by the vector of its last token, the only one that has seen all of it."""

    # Its loss is a mean over the batch, so Trainer has to weigh micro-batches itself.
    accepts_loss_kwargs = False

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TinyFormerModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        r"""Label each text.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The class of each text, or its number if `num_labels` is 1.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        batch, sequence = hidden_states.shape[:2]
        last = last_tokens(input_ids, attention_mask, self.config.pad_token_id, sequence)
        if isinstance(last, int) and batch > 1:
            raise ValueError(
                f"The batch holds {batch} texts, but with neither an attention_mask nor input_ids "
                "and pad_token_id the end of each is unknown. Pass an attention_mask."
            )
        rows = torch.arange(batch, device=hidden_states.device)
        logits = self.score(self.dropout(hidden_states[rows, last]))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits, config=self.config
            )
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@auto_docstring
class TinyFormerForTokenClassification(TinyFormerPreTrainedModel):
    """Labels each token."""

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TinyFormerModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        r"""Label each token.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The class of each token; -100 is left out of the loss.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@auto_docstring
class TinyFormerForQuestionAnswering(TinyFormerPreTrainedModel):
    """Marks where the answer to a question starts and ends in a text (Rajpurkar et al. 2016)."""

    # Its loss is a mean over the batch, so Trainer has to weigh micro-batches itself.
    accepts_loss_kwargs = False

    def __init__(self, config: TinyFormerConfig) -> None:
        super().__init__(config)
        self.model = TinyFormerModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Score each token as the first and as the last of the answer."""
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


TinyFormerModel.register_for_auto_class("AutoModel")
TinyFormerForCausalLM.register_for_auto_class("AutoModelForCausalLM")
TinyFormerForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
TinyFormerForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
TinyFormerForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
TinyFormerForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")

__all__ = [
    "TinyFormerForCausalLM",
    "TinyFormerForMaskedLM",
    "TinyFormerForQuestionAnswering",
    "TinyFormerForSequenceClassification",
    "TinyFormerForTokenClassification",
    "TinyFormerModel",
    "TinyFormerPreTrainedModel",
]
