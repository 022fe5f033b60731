"""Train a tokenizer and a small Transformer from raw text; the result is a Hugging Face model.

Importing this registers the model with transformers' Auto classes, and with PEFT. (transformers has
no plug-in discovery: without this import, or `trust_remote_code=True`, `AutoModel` does not know
it.)
"""

import gc

_collects_garbage = gc.isenabled()
# Imports make objects by the hundred thousand, and hardly one of them goes: looking for garbage
# among them takes a fifth of the time.
gc.disable()
try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    from hf_tinyformer.adapters import register_with_peft
    from hf_tinyformer.model.configuration_tinyformer import TinyFormerConfig
    from hf_tinyformer.model.modeling_tinyformer import (
        TinyFormerForCausalLM,
        TinyFormerForMaskedLM,
        TinyFormerForQuestionAnswering,
        TinyFormerForSequenceClassification,
        TinyFormerForTokenClassification,
        TinyFormerModel,
        TinyFormerPreTrainedModel,
    )
    from hf_tinyformer.model.tokenization_tinyformer import TinyFormerTokenizer
finally:
    if _collects_garbage:
        gc.enable()

__version__ = "0.1.0"

AutoConfig.register(TinyFormerConfig.model_type, TinyFormerConfig, exist_ok=True)
AutoModel.register(TinyFormerConfig, TinyFormerModel, exist_ok=True)
AutoModelForCausalLM.register(TinyFormerConfig, TinyFormerForCausalLM, exist_ok=True)
AutoModelForMaskedLM.register(TinyFormerConfig, TinyFormerForMaskedLM, exist_ok=True)
AutoModelForQuestionAnswering.register(
    TinyFormerConfig, TinyFormerForQuestionAnswering, exist_ok=True
)
AutoModelForSequenceClassification.register(
    TinyFormerConfig, TinyFormerForSequenceClassification, exist_ok=True
)
AutoModelForTokenClassification.register(
    TinyFormerConfig, TinyFormerForTokenClassification, exist_ok=True
)
AutoTokenizer.register(TinyFormerConfig, tokenizer_class=TinyFormerTokenizer, exist_ok=True)
register_with_peft()

__all__ = [
    "TinyFormerConfig",
    "TinyFormerForCausalLM",
    "TinyFormerForMaskedLM",
    "TinyFormerForQuestionAnswering",
    "TinyFormerForSequenceClassification",
    "TinyFormerForTokenClassification",
    "TinyFormerModel",
    "TinyFormerPreTrainedModel",
    "TinyFormerTokenizer",
    "__version__",
]
