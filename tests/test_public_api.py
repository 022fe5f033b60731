"""The names a user may rely on, and what importing them does."""

import gc
import subprocess
import sys

import pytest
from tiny_models import tiny_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import hf_tinyformer


def test_the_public_names_are_these():
    assert set(hf_tinyformer.__all__) >= {
        "TinyFormerConfig",
        "TinyFormerForCausalLM",
        "TinyFormerForMaskedLM",
        "TinyFormerForQuestionAnswering",
        "TinyFormerForSequenceClassification",
        "TinyFormerForTokenClassification",
        "TinyFormerModel",
        "TinyFormerPreTrainedModel",
    }
    for name in hf_tinyformer.__all__:
        assert getattr(hf_tinyformer, name) is not None


def test_importing_leaves_garbage_collection_on():
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("auto_class", "name"),
    [
        (AutoModel, "TinyFormerModel"),
        (AutoModelForCausalLM, "TinyFormerForCausalLM"),
        (AutoModelForMaskedLM, "TinyFormerForMaskedLM"),
        (AutoModelForQuestionAnswering, "TinyFormerForQuestionAnswering"),
        (AutoModelForSequenceClassification, "TinyFormerForSequenceClassification"),
        (AutoModelForTokenClassification, "TinyFormerForTokenClassification"),
    ],
)
def test_importing_the_package_teaches_the_auto_classes(auto_class, name):
    assert type(auto_class.from_config(tiny_config())) is getattr(hf_tinyformer, name)


def test_the_model_type_gives_our_config():
    assert type(AutoConfig.for_model("tinyformer")) is hf_tinyformer.TinyFormerConfig


def test_importing_prints_nothing():
    # transformers prints an [ERROR] line for each setting or argument without documentation.
    result = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", "import hf_tinyformer"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout == ""
    assert result.stderr == ""
