"""A GGUF file becomes one of ours: weights, and the file's own way of cutting text."""

import pytest

pytest.importorskip("gguf", reason="needs hf-tinyformer[gguf]")

import torch
from tiny_checkpoints import train_tiny_tokenizer, write_tiny_checkpoint

from hf_tinyformer.errors import ExportError
from hf_tinyformer.inference.loading import load_checkpoint
from hf_tinyformer.publishing.gguf import export_gguf
from hf_tinyformer.publishing.gguf_metadata import (
    GgufFile,
    read_gguf_tokenizer,
    read_stock_config,
)
from hf_tinyformer.publishing.importing import import_checkpoint

CLASSIC = {
    "norm_type": "layernorm",
    "mlp_type": "gelu",
    "use_qk_norm": False,
    "num_key_value_heads": 4,
    "attention_bias": True,
    "mlp_bias": True,
}
KINDS = {
    "llama": {"use_qk_norm": False},
    "qwen3": {},
    "gpt2": CLASSIC | {"position_embedding_type": "learned"},
    "starcoder2": CLASSIC,
}
TEXT = "In 1989, 12,345 people didn't know it.\n\n  모든 국민은 법 앞에 평등하다."


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_out_as_gguf_and_in_again_is_the_same_model(tmp_path, kind):
    tokenizer = train_tiny_tokenizer()
    model = write_tiny_checkpoint(tmp_path / "tiny", tokenizer, **KINDS[kind])
    export_gguf(tmp_path / "tiny", tmp_path / "gguf", dtype="f32")
    file = next((tmp_path / "gguf").glob("*.gguf"))

    import_checkpoint(str(file), tmp_path / "again")

    back, its_tokenizer = load_checkpoint(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert its_tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert its_tokenizer.decode(its_tokenizer(TEXT)["input_ids"], skip_special_tokens=True) == TEXT


@pytest.fixture
def tiny_file():
    """What a file says of a tiny Llama."""
    tokenizer = train_tiny_tokenizer()
    fields = {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
        "llama.rope.freq_base": 500.0,
        "llama.rope.dimension_count": 8,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokenizer.convert_ids_to_tokens(range(len(tokenizer))),
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokenizer) - 3),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 2,
    }
    return GgufFile(fields, frozenset({"token_embd.weight", "blk.0.attn_q.weight"}))


def changed(file, key, value):
    return GgufFile({**file.fields, key: value}, file.tensors)


def test_the_settings_are_those_of_the_file(tiny_file):
    config = read_stock_config(tiny_file)

    assert config.model_type == "llama"
    assert config.rms_norm_eps == 1e-5  # the shortest number with the file's float32
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}
    assert config.tie_word_embeddings is True
    assert config.attention_bias is False
    assert (config.num_key_value_heads, config.head_dim, config.intermediate_size) == (2, 8, 48)


def test_digits_are_cut_apart_where_the_file_says_so(tiny_file):
    apart = read_gguf_tokenizer(tiny_file)
    together = read_gguf_tokenizer(changed(tiny_file, "tokenizer.ggml.pre", "gpt-2"))

    def pieces(tokenizer):
        return [p for p, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a 12")]

    assert pieces(apart) == ["a", "Ġ", "1", "2"]
    assert pieces(together) == ["a", "Ġ12"]
    assert apart("</s>")["input_ids"] == [2]


@pytest.mark.parametrize(
    ("name", "flags", "frame"),
    [
        ("smollm", {}, (False, False)),
        ("llama-bpe", {}, (True, False)),  # llama.cpp's own default for it
        ("llama-bpe", {"add_bos_token": False}, (False, False)),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, (True, True)),
        ("smollm", {"add_eos_token": True}, (False, True)),
    ],
)
def test_the_frame_of_a_text_is_that_of_the_file(tiny_file, name, flags, frame):
    said = {f"tokenizer.ggml.{key}": value for key, value in flags.items()}
    said |= {"tokenizer.ggml.pre": name, "tokenizer.ggml.bos_token_id": 1}
    tokenizer = read_gguf_tokenizer(GgufFile({**tiny_file.fields, **said}, tiny_file.tensors))

    ids = tokenizer("ab")["input_ids"]

    assert (ids[0] == 1, ids[-1] == 2) == frame
    assert tokenizer("ab", "c")["input_ids"].count(1) == 2 * frame[0]


def test_an_architecture_without_our_numbers_is_refused_by_its_name():
    with pytest.raises(ExportError, match=r"general.architecture is mamba, but we know llama"):
        read_stock_config(GgufFile({"general.architecture": "mamba"}, frozenset()))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("general.architecture", "bloom", r"general.architecture is bloom, but we know llama"),
        ("llama.rope.dimension_count", 4, r"llama.rope.dimension_count is 4, but .* compute 8"),
        ("llama.attention.sliding_window", 16, r"llama.attention.sliding_window is 16"),
        ("llama.expert_count", 8, r"llama.expert_count is 8"),
        ("llama.rope.scaling.type", "yarn", r"rope.scaling.type is yarn, but none and linear"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_by_its_key(tiny_file, key, value, sentence):
    fields = {
        name.replace("llama.", f"{value}.", 1) if key == "general.architecture" else name: v
        for name, v in tiny_file.fields.items()
    }
    with pytest.raises(ExportError, match=sentence):
        read_stock_config(GgufFile({**fields, key: value}, tiny_file.tensors))


def test_a_table_of_angles_is_refused(tiny_file):
    tensors = tiny_file.tensors | {"rope_freqs.weight"}

    with pytest.raises(ExportError, match="rope_freqs is a table"):
        read_stock_config(GgufFile(tiny_file.fields, tensors))


def test_an_unknown_way_of_cutting_is_refused_by_its_name(tiny_file):
    with pytest.raises(ExportError, match=r"tokenizer.ggml.pre is viking, but only gpt-2, smollm"):
        read_gguf_tokenizer(changed(tiny_file, "tokenizer.ggml.pre", "viking"))
