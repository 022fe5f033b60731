"""PEFT on every kind of model: defaults, saving, merging."""

import pytest
import torch

peft = pytest.importorskip("peft", reason="needs pip install 'hf-tinyformer[tune]'")

from tiny_models import MLP_TYPES, SCHEMES, random_tokens, tiny_model
from transformers import AutoModelForCausalLM

from hf_tinyformer import TinyFormerForSequenceClassification


def tuned(model, config):
    """Adapt, and take one step, so that the adapter is not zero."""
    torch.manual_seed(0)
    model = peft.get_peft_model(model, config)
    ids = random_tokens(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight -= 0.1 * weight.grad
    return model.eval()


def logits_of(model, ids):
    with torch.inference_mode():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("mlp_type", MLP_TYPES)
def test_lora_by_default_adapts_merges_and_loads(scheme, mlp_type, tmp_path):
    base = tiny_model(position_embedding_type=scheme, mlp_type=mlp_type)
    base.save_pretrained(tmp_path / "base")
    ids = random_tokens(1, 12)
    plain = logits_of(base, ids)
    base.config._name_or_path = base.name_or_path = str(tmp_path / "base")

    model = tuned(base, peft.LoraConfig(task_type="CAUSAL_LM"))
    adapted = logits_of(model, ids)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")

    assert model.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    assert (adapted - plain).abs().max() > 1e-3
    assert torch.equal(logits_of(loaded.eval(), ids), adapted)
    assert torch.allclose(logits_of(again.eval(), ids), adapted, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (lambda: peft.AdaLoraConfig(task_type="CAUSAL_LM", total_step=10), {"q_proj", "v_proj"}),
        (lambda: peft.IA3Config(task_type="CAUSAL_LM"), {"k_proj", "v_proj", "down_proj"}),
        (lambda: peft.LoHaConfig(task_type="CAUSAL_LM"), {"q_proj", "v_proj"}),
    ],
    ids=["adalora", "ia3", "loha"],
)
def test_other_methods_find_their_layers_too(config, names):
    model = peft.get_peft_model(tiny_model(), config())

    found = {name.rpartition(".")[2] for name in model.targeted_module_names}
    assert found == names


def test_all_linear_layers_but_the_head():
    model = peft.get_peft_model(
        tiny_model(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    )

    found = {name.rpartition(".")[2] for name in model.targeted_module_names}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert found == projections


def test_a_classifier_keeps_its_head_beside_the_adapter(tmp_path):
    model = tiny_model(TinyFormerForSequenceClassification)

    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS"))

    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("score" in name for name in trained)
    assert all("lora_" in name or "score" in name for name in trained)
