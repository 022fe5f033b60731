import json
import pickle

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.errors import ArtifactError, ConfigError
from hf_tinyformer.inference.loading import load_checkpoint, load_tokenizer_of

IDS = torch.arange(3, 20)[None]


@pytest.fixture
def checkpoint(tmp_path, byte_tokenizer):
    """A saved TinyFormer with its tokenizer."""
    config = TinyFormerConfig(
        vocab_size=259,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = TinyFormerForCausalLM(config)
    folder = tmp_path / "final"
    model.save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder, model.eval()


def test_our_model_comes_back_with_its_tokenizer(checkpoint, byte_tokenizer):
    folder, model = checkpoint

    loaded, tokenizer = load_checkpoint(str(folder))

    assert type(loaded) is TinyFormerForCausalLM
    assert not loaded.training
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert tokenizer("a</s>")["input_ids"] == byte_tokenizer("a</s>")["input_ids"]


def test_a_stock_model_loads_too(tiny_llama, byte_tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)

    loaded, _ = load_checkpoint(tmp_path, dtype=torch.bfloat16)

    assert type(loaded) is type(tiny_llama)
    assert loaded.dtype == torch.bfloat16


def test_a_tokenizer_alone_loads(byte_tokenizer, tmp_path):
    byte_tokenizer.save_pretrained(tmp_path)

    assert load_tokenizer_of(tmp_path)("ab")["input_ids"] == byte_tokenizer("ab")["input_ids"]


@pytest.mark.parametrize("missing", ["config.json", "tokenizer_config.json"])
def test_a_folder_that_lacks_a_file_is_named(checkpoint, missing):
    folder, _ = checkpoint
    (folder / missing).unlink()

    with pytest.raises(ArtifactError, match=f"has no {missing}"):
        load_checkpoint(folder)


def test_a_name_that_is_nowhere_is_one_line():
    # The tests run offline, as a machine without a network does.
    with pytest.raises(
        ArtifactError, match="me/none is no folder here, and not to be had"
    ) as error:
        load_checkpoint("me/none")
    assert "\n" not in str(error.value)
    with pytest.raises(ArtifactError, match=r"runs/none/final is no folder.*not of the form"):
        load_checkpoint("runs/none/final")


class _ProxyError(HfHubHTTPError.__bases__[0]):
    """As httpx raises it: no OSError."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_ProxyError("403 Forbidden"), "403 Forbidden"),
        (OSError(), "OSError"),
        (RuntimeError("xet: no route\nto host"), "xet: no route"),
    ],
)
def test_a_hub_out_of_reach_is_one_line(error, reason, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)

    with pytest.raises(ArtifactError, match=f"not to be had from the Hub either: {reason}. Point"):
        load_checkpoint("me/model")


@pytest.mark.parametrize(
    ("device", "reason"),
    [("foo", "Expected one of cpu"), ("", "must not be empty"), ("cuda:99", "")],
)
def test_a_device_that_is_not_there_is_named(checkpoint, device, reason):
    folder, _ = checkpoint

    with pytest.raises(ConfigError, match=f"--device is {device}, but.*{reason}.*Take cpu") as info:
        load_checkpoint(folder, device=device)
    assert "\n" not in str(info.value)


def _set(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("head_dim", 7, "head_dim is 7, but rotary positions turn pairs"),
        ("hidden_size", "64", "'hidden_size' expected int, got str"),
        ("norm_type", "foo", "'norm_type' expected one of"),
        ("dtype", "foo", "no attribute 'foo'"),
    ],
)
def test_a_wrong_value_in_the_configuration_is_named(checkpoint, key, value, reason):
    folder, _ = checkpoint
    _set(folder, **{key: value})

    with pytest.raises(ArtifactError, match=f"cannot be loaded: .*{reason}") as info:
        load_checkpoint(folder)
    assert "\n" not in str(info.value)


def test_a_missing_library_of_a_quantized_model_is_named(checkpoint, monkeypatch):
    folder, _ = checkpoint
    _set(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    monkeypatch.setattr(
        "transformers.quantizers.quantizer_gptq.is_optimum_available", lambda: False
    )

    with pytest.raises(ArtifactError, match=r"cannot be loaded: .*optimum.*Install what is"):
        load_checkpoint(folder)


def test_pickled_weights_are_not_read(checkpoint, tmp_path):
    folder, _ = checkpoint
    canary = tmp_path / "canary"

    class Malicious:
        def __reduce__(self):
            return open, (str(canary), "w")

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Malicious()}))

    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_checkpoint(folder)
    assert not canary.exists()


@pytest.mark.parametrize("damage", ["cut", "pickle"])
def test_damaged_weights_are_one_line(checkpoint, damage):
    folder, _ = checkpoint
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else pickle.dumps([1, 2]))

    with pytest.raises(ArtifactError, match="cannot be loaded") as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_code_in_a_checkpoint_is_not_run(checkpoint, tmp_path):
    folder, _ = checkpoint
    canary = tmp_path / "canary"
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "other"
    config["auto_map"] = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
    }
    config["trust_remote_code"] = True
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')")

    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_checkpoint(folder)
    assert not canary.exists()


@pytest.mark.parametrize("problem", ["missing", "unexpected"])
def test_weights_that_are_not_the_configurations_are_refused(checkpoint, problem):
    from safetensors.torch import load_file, save_file

    folder, _ = checkpoint
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    if problem == "missing":
        del weights[name]
    else:
        weights[f"{name}.more"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ArtifactError, match=rf"1 {problem} keys, {name}.*same model"):
        load_checkpoint(folder)


def test_the_folder_of_the_run_is_answered_with_that_of_the_model(checkpoint):
    folder, _ = checkpoint

    with pytest.raises(ArtifactError, match=rf"Did you mean {folder}\?"):
        load_checkpoint(folder.parent)
