"""The models under test; copied into the assembled package, beside the common tests.

Llama and ours run the same classes on the same tiny shapes.
"""

import unittest

from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.auto import modeling_auto

from hf_tinyformer import TinyFormerConfig
from hf_tinyformer.model import modeling_tinyformer

from . import test_fsdp_mixin, test_tensor_parallel_mixin
from .causal_lm_tester import CausalLMModelTest, CausalLMModelTester

BASES = (CausalLMModelTest, unittest.TestCase)
try:
    from .test_expert_parallel_mixin import ExpertParallelTesterMixin

    if not issubclass(CausalLMModelTest, ExpertParallelTesterMixin):
        BASES = (CausalLMModelTest, ExpertParallelTesterMixin, unittest.TestCase)
except ImportError:
    pass  # transformers 5.16 has its tests in the tensor parallel mixin

# The tests of several processes are run for a few model types only; here for both.
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None

# The common tests look a class's task up by its name, in tables that list transformers' own models.
for table, name in {
    "MODEL_MAPPING_NAMES": "TinyFormerModel",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "TinyFormerForCausalLM",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "TinyFormerForSequenceClassification",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "TinyFormerForTokenClassification",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "TinyFormerForQuestionAnswering",
}.items():
    getattr(modeling_auto, table)["tinyformer"] = name


class LlamaTester(CausalLMModelTester):
    """Llama, as transformers' own test of it has it."""

    base_model_class = LlamaModel


class LlamaTest(*BASES):
    """The measure."""

    model_tester_class = LlamaTester
    model_split_percents = (0.5, 0.7, 0.8)  # as in transformers' test of Llama
    _torch_compile_train_cls = LlamaForCausalLM


class TinyFormerTester(CausalLMModelTester):
    """Ours; the default shape, but for the position scheme."""

    base_model_class = modeling_tinyformer.TinyFormerModel
    config_class = TinyFormerConfig
    causal_lm_class = modeling_tinyformer.TinyFormerForCausalLM
    question_answering_class = modeling_tinyformer.TinyFormerForQuestionAnswering
    sequence_classification_class = modeling_tinyformer.TinyFormerForSequenceClassification
    token_classification_class = modeling_tinyformer.TinyFormerForTokenClassification
    scheme = "rope"

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.position_embedding_type = self.scheme


class TinyFormerTest(*BASES):
    """Ours with rotary positions: the default."""

    model_tester_class = TinyFormerTester
    model_split_percents = (0.5, 0.7, 0.8)
    _torch_compile_train_cls = modeling_tinyformer.TinyFormerForCausalLM


class LearnedTester(TinyFormerTester):
    scheme = "learned"


class LearnedTest(TinyFormerTest):
    """Ours with learned positions."""

    model_tester_class = LearnedTester


class SinusoidalTester(TinyFormerTester):
    scheme = "sinusoidal"


class SinusoidalTest(TinyFormerTest):
    """Ours with sinusoidal positions."""

    model_tester_class = SinusoidalTester


class AlibiTester(TinyFormerTester):
    scheme = "alibi"


class AlibiTest(TinyFormerTest):
    """Ours with ALiBi."""

    model_tester_class = AlibiTester


class RelativeTester(TinyFormerTester):
    scheme = "relative"


class RelativeTest(TinyFormerTest):
    """Ours with T5's relative positions."""

    model_tester_class = RelativeTester


class NoneTester(TinyFormerTester):
    scheme = "none"


class NoneTest(TinyFormerTest):
    """Ours without positions."""

    model_tester_class = NoneTester
