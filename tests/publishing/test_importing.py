"""A stock checkpoint becomes one of ours: weights, tokenizer, settings, exactly, or not at all."""

import json

import pytest
import torch
from tiny_checkpoints import train_tiny_tokenizer, write_tiny_checkpoint
from tiny_models import random_tokens
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
    Starcoder2Config,
)

from hf_tinyformer import TinyFormerForCausalLM, cli
from hf_tinyformer.artifacts import read_manifest
from hf_tinyformer.errors import ArtifactError, ExportError
from hf_tinyformer.inference.generation import generate_text
from hf_tinyformer.inference.loading import load_checkpoint
from hf_tinyformer.publishing import importing
from hf_tinyformer.publishing.importing import import_checkpoint
from hf_tinyformer.publishing.native import export_native

CARD = """\
---
license: apache-2.0
language: [en, ko]
base_model: someone/larger
tags: [llama, their-tag]
---
# Their model

Their words.
"""
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "gpt2": (GPT2Config, {"n_inner": 48}),
    "llama": (LlamaConfig, {"intermediate_size": 48, "num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 16}),
    "opt": (
        OPTConfig,
        {"ffn_dim": 48, "do_layer_norm_before": False, "activation_function": "gelu_new"},
    ),
    "starcoder2": (Starcoder2Config, {"intermediate_size": 48}),
}


@pytest.fixture(scope="module")
def tiny_tokenizer():
    tokenizer = train_tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_stock(folder, tokenizer, name="llama", **changes):
    torch.manual_seed(0)
    config_class, settings = CONFIGS[name]
    config = config_class(vocab_size=len(tokenizer), **(SIZES | settings | changes))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=[1, 2], do_sample=True, top_k=7).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def stock(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("stock") / "their-model"
    write_stock(folder, tiny_tokenizer)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory, stock):
    folder = tmp_path_factory.mktemp("imported") / "ours"
    import_checkpoint(str(stock), folder)
    return folder


@torch.no_grad()
def logits_of(model, tokens):
    return model(tokens, attention_mask=torch.ones_like(tokens)).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_the_import_gives_the_stock_models_logits(name, tmp_path, tiny_tokenizer):
    native = write_stock(tmp_path / "stock", tiny_tokenizer, name)

    record = import_checkpoint(str(tmp_path / "stock"), tmp_path / "ours")

    model, _ = load_checkpoint(tmp_path / "ours")
    tokens = random_tokens(2, 30, len(tiny_tokenizer))
    assert isinstance(model, TinyFormerForCausalLM)
    torch.testing.assert_close(logits_of(model, tokens), logits_of(native, tokens))
    assert record["architecture"] == type(native).__name__
    assert record["largest_difference"] <= record["tolerance"]
    assert json.loads((tmp_path / "ours" / "import.json").read_text()) == record


def test_tokenizer_and_chat_template_come_along(imported, tiny_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(imported)

    text = "A house by the sea, 모든 국민은 </s>"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>Hi</s>"


def test_generation_settings_come_along(imported):
    generation = GenerationConfig.from_pretrained(imported)

    assert (generation.eos_token_id, generation.top_k) == ([1, 2], 7)


def test_the_folder_is_one_of_ours(imported):
    model, tokenizer = load_checkpoint(imported)

    read_manifest(imported, kind="final", check_hashes=True)
    assert (imported / "modeling_tinyformer.py").is_file()
    assert isinstance(generate_text(model, tokenizer, "Once", max_new_tokens=4, seed=0), str)


def test_the_card_keeps_what_is_still_true(imported):
    card = (imported / "README.md").read_text()

    assert "license: apache-2.0" in card
    assert "language:\n- en\n- ko\n" in card
    assert "base_model: someone/larger" in card
    assert "# their-model" in card
    assert "their-tag" not in card
    assert "`LlamaForCausalLM`" in card


def test_exported_again_it_is_the_model_it_was(imported, stock, tmp_path):
    export_native(imported, tmp_path / "again")

    before, after = (AutoModelForCausalLM.from_pretrained(f) for f in (stock, tmp_path / "again"))
    assert type(after) is type(before)
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name
    expected, found = before.config.to_dict(), after.config.to_dict()
    assert found == expected | {"_name_or_path": found["_name_or_path"]}


def test_half_precision_is_kept(tmp_path, tiny_tokenizer):
    write_stock(tmp_path / "stock", tiny_tokenizer).to(torch.bfloat16).save_pretrained(
        tmp_path / "stock"
    )

    record = import_checkpoint(str(tmp_path / "stock"), tmp_path / "ours")

    assert record["dtype"] == "bfloat16"
    assert load_checkpoint(tmp_path / "ours", dtype="auto")[0].dtype == torch.bfloat16


def test_a_prompt_without_a_first_token_makes_documents_without_one(tmp_path, tiny_tokenizer):
    bare = train_tiny_tokenizer(add_bos_token=False)
    for key in ("documents_begin_with_bos", "documents_end_with_eos"):
        bare.init_kwargs.pop(key)
    write_stock(tmp_path / "stock", bare)

    import_checkpoint(str(tmp_path / "stock"), tmp_path / "ours")

    settings = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert settings["documents_begin_with_bos"] is False


def test_what_we_cannot_compute_is_refused_before_anything_is_written(tmp_path, tiny_tokenizer):
    write_stock(tmp_path / "stock", tiny_tokenizer, hidden_act="gelu")

    with pytest.raises(ExportError, match=r"config.json's hidden_act is gelu, .* have silu"):
        import_checkpoint(str(tmp_path / "stock"), tmp_path / "ours")

    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


def test_another_architecture_is_refused(tmp_path, tiny_tokenizer):
    BloomConfig(hidden_size=32, n_head=2).save_pretrained(tmp_path / "bloom")

    with pytest.raises(ExportError, match="model_type is bloom, but we can read llama"):
        import_checkpoint(str(tmp_path / "bloom"), tmp_path / "ours")


def test_one_of_ours_is_refused(tmp_path, tiny_tokenizer):
    write_tiny_checkpoint(tmp_path / "tiny", tiny_tokenizer)

    with pytest.raises(ExportError, match="is one of ours already"):
        import_checkpoint(str(tmp_path / "tiny"), tmp_path / "ours")


def test_a_missing_weight_is_refused(tmp_path, tiny_tokenizer):
    write_stock(tmp_path / "stock", tiny_tokenizer)
    path = tmp_path / "stock" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))

    with pytest.raises(ArtifactError, match=r"has 9 weights too few or too many"):
        import_checkpoint(str(tmp_path / "stock"), tmp_path / "ours")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, tiny_tokenizer):
    write_stock(tmp_path / "stock", train_tiny_tokenizer(vocab_size=300))
    tiny_tokenizer.save_pretrained(tmp_path / "stock")

    with pytest.raises(ArtifactError, match=r"400 .*300"):
        import_checkpoint(str(tmp_path / "stock"), tmp_path / "ours")


@pytest.mark.parametrize("name", ["nothing-there", "user/nothing-there"])
def test_a_source_that_is_not_there_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ArtifactError, match=rf"^{name} cannot be loaded: .*") as refused:
        import_checkpoint(name, tmp_path / "ours")

    assert "\n" not in str(refused.value)


def test_pickled_weights_are_not_opened(tmp_path, tiny_tokenizer):
    write_stock(tmp_path / "stock", tiny_tokenizer)
    (tmp_path / "stock" / "model.safetensors").unlink()
    (tmp_path / "stock" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")

    with pytest.raises(ArtifactError, match="safetensors"):
        import_checkpoint(str(tmp_path / "stock"), tmp_path / "ours")


def test_a_file_of_weights_alone_is_no_model(stock, tmp_path):
    with pytest.raises(ArtifactError, match=r"model.safetensors is a file, but only a .gguf"):
        import_checkpoint(str(stock / "model.safetensors"), tmp_path / "ours")


def test_a_wrong_rename_leaves_nothing(stock, tmp_path, monkeypatch):
    build = importing.from_native

    def swap_gate_and_up(native):
        model = build(native)
        mlp = model.model.layers[0].mlp
        mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
        return model

    monkeypatch.setattr(importing, "from_native", swap_gate_and_up)
    with pytest.raises(ExportError, match="logits that differ by"):
        import_checkpoint(str(stock), tmp_path / "ours")

    assert not list(tmp_path.iterdir())


def test_import_from_the_command_line(stock, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        cli.main(["import", str(stock), str(tmp_path / "ours")])

    assert status.value.code == 0
    assert "it was a LlamaForCausalLM" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "ours" / "import.json").is_file()
