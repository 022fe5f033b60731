"""A checkpoint of ours as a stock architecture: the same model, or no folder."""

import json
import re
import unicodedata

import pytest
import torch
from tiny_checkpoints import train_tiny_tokenizer, write_tiny_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hf_tinyformer import cli
from hf_tinyformer.artifacts import read_manifest
from hf_tinyformer.errors import ArtifactError, ExportError
from hf_tinyformer.publishing import native as native_room
from hf_tinyformer.publishing.gguf_file import read_about
from hf_tinyformer.publishing.native import compare_tokenizers, export_native

CLASSIC = {
    "norm_type": "layernorm",
    "mlp_type": "gelu",
    "use_qk_norm": False,
    "num_key_value_heads": 4,
}


@pytest.fixture(scope="module")
def tiny_tokenizer():
    return train_tiny_tokenizer()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    write_tiny_checkpoint(folder, tiny_tokenizer)
    return folder


def write(folder, tokenizer, **settings):
    write_tiny_checkpoint(folder, tokenizer, **settings)
    return folder


def load(folder, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **settings).eval()


@torch.no_grad()
def logits_of(model, tokens):
    return model(tokens).logits


def test_the_export_is_the_stock_class_with_the_same_logits(checkpoint, tmp_path):
    record = export_native(checkpoint, tmp_path / "native")

    loaded = load(tmp_path / "native")
    tokens = torch.randint(3, 300, (2, 30))
    assert type(loaded).__module__ == "transformers.models.qwen3.modeling_qwen3"
    torch.testing.assert_close(logits_of(loaded, tokens), logits_of(load(checkpoint), tokens))
    assert json.loads((tmp_path / "native" / "export.json").read_text()) == record
    assert record["format"] == "native"
    assert record["architecture"] == "Qwen3ForCausalLM"
    assert record["dtype"] == "float32"
    assert 0 <= record["largest_difference"] <= record["tolerance"]
    assert record["positions"] > 64
    assert record["greedy_tokens"] == 32


def test_the_folder_is_whole_and_carries_no_code(checkpoint, tmp_path):
    export_native(checkpoint, tmp_path / "native")

    facts = read_manifest(tmp_path / "native", kind="export", check_hashes=True)
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert facts["architecture"] == "Qwen3ForCausalLM"
    assert "auto_map" not in config
    assert "_name_or_path" not in config
    assert not list((tmp_path / "native").glob("*.py"))


def test_tokenizer_and_generation_settings_go_along(tmp_path, tiny_tokenizer):
    source = write(tmp_path / "tiny", tiny_tokenizer)
    GenerationConfig(eos_token_id=[1, 2], do_sample=True, temperature=0.7).save_pretrained(source)
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")

    export_native(source, tmp_path / "native")

    out = AutoTokenizer.from_pretrained(tmp_path / "native")
    generation = GenerationConfig.from_pretrained(tmp_path / "native")
    text = "A house by the sea, 모든 국민은."
    assert out(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert out.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"
    assert (generation.eos_token_id, generation.temperature) == ([1, 2], 0.7)


def test_programs_of_transformers_4_find_the_rotary_angles(tmp_path, tiny_tokenizer):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    source = write(tmp_path / "tiny", tiny_tokenizer, rope_parameters=rope)

    export_native(source, tmp_path / "native")

    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert config["rope_theta"] == 500.0
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert load(tmp_path / "native").config.rope_parameters == rope


def test_letters_of_hangul_need_no_code_to_be_read_back(tmp_path):
    jamo = train_tiny_tokenizer(kind="jamo")
    source = write(tmp_path / "tiny", jamo)

    export_native(source, tmp_path / "native")

    plain = AutoTokenizer.from_pretrained(tmp_path / "native", trust_remote_code=False)
    text = "모든 국민은 법 앞에 평등하다."
    ids = plain(text, add_special_tokens=False)["input_ids"]
    assert ids == jamo(text, add_special_tokens=False)["input_ids"]
    assert unicodedata.normalize("NFC", plain.decode(ids)) == text
    assert 'unicodedata.normalize("NFC", text)' in (tmp_path / "native/README.md").read_text()
    assert not list((tmp_path / "native").glob("*.py"))


def test_half_precision_is_kept(tmp_path, tiny_tokenizer):
    source = tmp_path / "tiny"
    write_tiny_checkpoint(source, tiny_tokenizer).to(torch.bfloat16).save_pretrained(source)

    record = export_native(source, tmp_path / "native")

    assert record["dtype"] == "bfloat16"
    assert load(tmp_path / "native", dtype="auto").dtype == torch.bfloat16
    assert record["largest_difference"] <= record["tolerance"]


def test_waves_are_written_in_full_precision(tmp_path, tiny_tokenizer):
    source = tmp_path / "tiny"
    settings = CLASSIC | {"position_embedding_type": "sinusoidal"}
    write_tiny_checkpoint(source, tiny_tokenizer, **settings).to(torch.bfloat16).save_pretrained(
        source
    )

    record = export_native(source, tmp_path / "native")

    assert record["architecture"] == "GPT2LMHeadModel"
    assert record["dtype"] == "float32"
    assert "ends at 64 tokens" in " ".join((tmp_path / "native/README.md").read_text().split())


def test_a_card_keeps_its_words_but_tells_the_new_way_to_load(tmp_path, final_dir):
    export_native(final_dir, tmp_path / "native")

    card, before = ((f / "README.md").read_text() for f in (tmp_path / "native", final_dir))
    heading = re.compile(r"^## .*$", flags=re.MULTILINE)
    assert heading.findall(card) == heading.findall(before)
    assert card.startswith("---\nlanguage:\n- code\nlibrary_name: transformers")
    assert "transformers' own `Qwen3ForCausalLM`" in card
    assert 'pipeline("text-generation", "tiny")' in card
    assert "trust_remote_code" not in card
    assert "import hf_tinyformer" not in card


def test_a_shape_without_a_twin_is_refused_and_leaves_nothing(tmp_path, tiny_tokenizer):
    source = write(tmp_path / "tiny", tiny_tokenizer, position_embedding_type="alibi")

    with pytest.raises(ExportError, match="position_embedding_type is alibi"):
        export_native(source, tmp_path / "native")

    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_neither_the_source_nor_what_holds_it_is_replaced(tmp_path, tiny_tokenizer):
    source = write(tmp_path / "run" / "tiny", tiny_tokenizer)

    for out in (source, source.parent):
        with pytest.raises(ArtifactError, match="so it is not replaced"):
            export_native(source, out)

    assert (source / "config.json").is_file()


def test_a_card_that_is_not_utf8_is_named(tmp_path, tiny_tokenizer):
    source = write(tmp_path / "tiny", tiny_tokenizer)
    (source / "README.md").write_bytes("# 모델\n".encode("cp949"))

    with pytest.raises(ExportError, match=r"README.md is not UTF-8 at byte 2"):
        export_native(source, tmp_path / "native")

    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_card_whose_front_is_not_yaml_is_named(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n# Model\n")

    with pytest.raises(ExportError, match=r"README.md begins with lines that are not YAML"):
        read_about(tmp_path)


@pytest.mark.parametrize("to", ["native", "onnx"])
def test_a_dtype_is_only_for_gguf(checkpoint, tmp_path, capsys, to):
    with pytest.raises(SystemExit) as status:
        cli.main(["export", str(checkpoint), str(tmp_path / "o"), "--to", to, "--dtype", "q8_0"])

    assert status.value.code == 2
    assert "--dtype is q8_0, but only --to gguf" in capsys.readouterr().err


def test_a_stock_checkpoint_is_refused(checkpoint, tmp_path):
    export_native(checkpoint, tmp_path / "native")

    with pytest.raises(ExportError, match="is a qwen3, but --to native is for TinyFormers"):
        export_native(tmp_path / "native", tmp_path / "again")


@pytest.mark.parametrize("part", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_lost_weight_leaves_the_older_export_in_its_place(
    checkpoint, tmp_path, monkeypatch, part
):
    export_native(checkpoint, tmp_path / "native")
    older = (tmp_path / "native" / "manifest.json").read_bytes()
    build = native_room.to_native

    def lose_a_weight(model):
        native = build(model)
        native.get_parameter(part).data = torch.ones_like(native.get_parameter(part))
        return native

    monkeypatch.setattr(native_room, "to_native", lose_a_weight)
    with pytest.raises(ExportError, match=r"logits that differ by .* Nothing was written"):
        export_native(checkpoint, tmp_path / "native")

    assert [path.name for path in tmp_path.iterdir()] == ["native"]
    assert (tmp_path / "native" / "manifest.json").read_bytes() == older


def test_another_text_is_refused_even_where_single_logits_agree(checkpoint, tmp_path, monkeypatch):
    generate = native_room.generate_greedily

    def forget_the_past(model, row, max_new_tokens):
        # What a broken cache does: every token is chosen from the last one alone.
        if type(model).__name__ == "TinyFormerForCausalLM":
            return generate(model, row, max_new_tokens)
        tokens = list(row)
        for _ in range(max_new_tokens):
            tokens += generate(model, tokens[-1:], 1)
        return tokens[len(row) :]

    monkeypatch.setattr(native_room, "generate_greedily", forget_the_past)
    with pytest.raises(ExportError, match=r"chose token \d+ at step \d+ of a greedy text"):
        export_native(checkpoint, tmp_path / "native")


def test_tokenizers_that_differ_are_refused(tiny_tokenizer):
    with pytest.raises(ExportError, match="the tokenizer cuts"):
        compare_tokenizers(tiny_tokenizer, train_tiny_tokenizer(vocab_size=300))


def test_export_from_the_command_line(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        cli.main(["export", str(checkpoint), str(tmp_path / "native"), "--to", "native"])

    assert status.value.code == 0
    assert "Qwen3ForCausalLM" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "native" / "export.json").is_file()
