"""Stands in for transformers' `tests/causal_lm_tester.py`, which its distribution leaves out.

It gives the mixins of the distribution a model to test, with the same shapes, and adds what only
makes sense for a causal language model.
"""

import inspect

import torch
from transformers import AutoModelForCausalLM, set_seed
from transformers.models.auto.auto_factory import getattribute_from_module
from transformers.testing_utils import _COMMON_MODEL_NAMES_MAP, _TEXT_MODEL_TESTER_DEFAULTS

from .test_configuration_common import ConfigTester
from .test_fsdp_mixin import FSDPTesterMixin
from .test_modeling_common import GenerationTesterMixin, ModelTesterMixin, ids_tensor
from .test_pipeline_mixin import PipelineTesterMixin
from .test_tensor_parallel_mixin import TensorParallelTesterMixin
from .test_training_mixin import TrainingTesterMixin

HEADS = (
    "causal_lm_class",
    "question_answering_class",
    "sequence_classification_class",
    "token_classification_class",
)


class CausalLMModelTester:
    """Makes tiny configs and inputs for the mixins."""

    base_model_class = None
    config_class = None
    causal_lm_class = None
    question_answering_class = None
    sequence_classification_class = None
    token_classification_class = None

    def __init__(self, parent, **settings):
        self.parent = parent
        # Llama's other classes are named after its base class, in the same package.
        package = self.base_model_class.__module__.rpartition(".")[0]
        stem = self.base_model_class.__name__.removesuffix("Model")
        for attribute, suffix in _COMMON_MODEL_NAMES_MAP.items():
            if getattr(self, attribute) is None:
                setattr(self, attribute, getattribute_from_module(package, stem + suffix))
        defaults = {
            "type_sequence_label_size": 2,
            "initializer_range": 0.02,
            "num_labels": 3,
            "tie_word_embeddings": False,
        }
        for name, value in (_TEXT_MODEL_TESTER_DEFAULTS | defaults | settings).items():
            setattr(self, name, value)
        self.head_dim = self.hidden_size // self.num_attention_heads

    @property
    def all_model_classes(self):
        return [self.base_model_class, *(getattr(self, head) for head in HEADS)]

    @property
    def pipeline_model_mapping(self):
        return {
            "feature-extraction": self.base_model_class,
            "text-generation": self.causal_lm_class,
            "question-answering": self.question_answering_class,
            "text-classification": self.sequence_classification_class,
            "token-classification": self.token_classification_class,
            "zero-shot": self.sequence_classification_class,
        }

    def get_config(self):
        names = set(inspect.signature(self.config_class.__init__).parameters) - {"self"}
        return self.config_class(
            **{
                name: getattr(self, name)
                for name in names | {"pad_token_id"}
                if hasattr(self, name)
            }
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        mask = torch.tril(torch.ones_like(input_ids))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": mask}


class CausalLMModelTest(
    ModelTesterMixin,
    GenerationTesterMixin,
    PipelineTesterMixin,
    TrainingTesterMixin,
    TensorParallelTesterMixin,
    FSDPTesterMixin,
):
    """All common tests of a causal language model."""

    model_tester_class = None
    all_model_classes = None
    pipeline_model_mapping = None

    # The mixins declare it abstract; each test gets its own.
    model_tester = None

    def setUp(self):
        super().setUp()
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(self, config_class=self.model_tester.config_class)
        self.all_model_classes = self.model_tester.all_model_classes
        self.pipeline_model_mapping = self.model_tester.pipeline_model_mapping

    def inputs(self, **changes):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for name, value in changes.items():
            setattr(config, name, value)
        return config, inputs

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model(self):
        config, inputs = self.inputs()
        model = self.model_tester.base_model_class(config).eval()

        with torch.no_grad():
            hidden_states = model(**inputs).last_hidden_state

        assert hidden_states.shape == (*inputs["input_ids"].shape, config.hidden_size)

    def check_sequence_classification(self, labels, **changes):
        config, inputs = self.inputs(num_labels=3, **changes)
        model = self.model_tester.sequence_classification_class(config).eval()

        outputs = model(**inputs, labels=labels)

        assert outputs.logits.shape == (self.model_tester.batch_size, 3)
        assert outputs.loss.isfinite()

    def test_sequence_classification_model(self):
        self.check_sequence_classification(ids_tensor([self.model_tester.batch_size], 2))

    def test_sequence_classification_model_for_single_label(self):
        self.check_sequence_classification(
            ids_tensor([self.model_tester.batch_size], 2),
            problem_type="single_label_classification",
        )

    def test_sequence_classification_model_for_multi_label(self):
        self.check_sequence_classification(
            ids_tensor([self.model_tester.batch_size, 3], 2).float(),
            problem_type="multi_label_classification",
        )

    def test_token_classification_model(self):
        config, inputs = self.inputs(num_labels=3)
        model = self.model_tester.token_classification_class(config).eval()

        outputs = model(**inputs, labels=ids_tensor(inputs["input_ids"].shape, 3))

        assert outputs.logits.shape == (*inputs["input_ids"].shape, 3)
        assert outputs.loss.isfinite()

    def test_question_answering_model(self):
        config, inputs = self.inputs()
        model = self.model_tester.question_answering_class(config).eval()

        outputs = model(**inputs)

        assert outputs.start_logits.shape == inputs["input_ids"].shape
        assert outputs.end_logits.shape == inputs["input_ids"].shape

    def test_causal_lm_can_accept_training_kwargs(self):
        config, inputs = self.inputs()
        set_seed(0)
        model = AutoModelForCausalLM.from_config(config).train()
        rows = inputs["input_ids"]
        num_predicted = rows.numel() - len(rows)

        mean = model(rows, labels=rows).loss
        part = model(rows, labels=rows, num_items_in_batch=torch.tensor(2 * num_predicted)).loss

        torch.testing.assert_close(part, mean / 2)
