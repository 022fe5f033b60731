"""GGUF: what llama.cpp reads is the model that was written, for every twin that it knows."""

import json
import lzma
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs hf-tinyformer[gguf]")

from tiny_checkpoints import train_tiny_tokenizer, write_tiny_checkpoint

from hf_tinyformer.artifacts import read_manifest
from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.errors import ExportError
from hf_tinyformer.publishing import gguf as gguf_export
from hf_tinyformer.publishing import gguf_layout, gguf_vocabulary
from hf_tinyformer.publishing.gguf import export_gguf
from hf_tinyformer.publishing.llama_cpp import ask, has_llama_cpp

BIASES = {"attention_bias": True, "mlp_bias": True}
GPT2_LIKE = {"norm_type": "layernorm", "mlp_type": "gelu", "num_key_value_heads": 4, **BIASES}
LLAMA_LIKE = {"use_qk_norm": False}
KINDS = {
    "qwen3": {},
    "qwen3-wide-heads": {"head_dim": 16},
    "llama": LLAMA_LIKE,
    "llama-biases": LLAMA_LIKE | BIASES,
    "llama-linear": LLAMA_LIKE
    | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    "llama-llama3": LLAMA_LIKE
    | {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "llama-untied": LLAMA_LIKE | {"tie_word_embeddings": False},
    "arcee": LLAMA_LIKE | {"mlp_type": "relu2"},
    "stablelm": LLAMA_LIKE | {"norm_type": "layernorm"},
    "starcoder2": LLAMA_LIKE | GPT2_LIKE | {"num_key_value_heads": 2},
    "gpt2": LLAMA_LIKE | GPT2_LIKE | {"position_embedding_type": "learned"},
    "gpt2-sinusoidal": LLAMA_LIKE | GPT2_LIKE | {"position_embedding_type": "sinusoidal"},
    "gpt2-none": LLAMA_LIKE | GPT2_LIKE | {"position_embedding_type": "none"},
}

SHARED = Path(__file__).parents[3] / "shared" / "data"
REAL_TEXTS = ("ko_wikipedia/val", "en_simplewiki/val", "ko_nsmc/test", "en_standard_ebooks/val")

SENTENCES = [
    "He said: \u201cI'LL be there at 10:30, won't you?\u201d",
    "1234567 and 3.14159, 0x1F600; \u00bd \u2167 \u0663\u0664\u0665",
    "나는 학교에 갔다. 그런데 2024년 12월에는 1,000,000명이 왔다!",
    "한글 낱자 ㅋㅋㅋ ㅠㅠ 와 옛한글 \u1112\u119e\u11ab, 漢字와 カタカナ",
    "tabs\tand  two   three spaces \n\n\n  indented\r\n\tline \u00a0\u3000 end  ",
    "caf\u00e9 cafe\u0301 na\u00efve \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2744\ufe0f",
    "def f(x):\n        return {**x, 'a': [1, 2]}  # why?!...\n",
    "<s> and </s> and <pad> are special, <unk> and <|im_start|> are letters here",
    "\u00ff\u00fe \u0000 \ufffd ~`^|\\ $100 #1 @me a_b __init__",
    "",
    " ",
]

needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="needs hf-tinyformer[llamacpp]")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tiny_tokenizer()


FAST_KINDS = ("qwen3", "llama-biases", "gpt2")
EVERY_KIND = [
    pytest.param(kind, marks=() if kind in FAST_KINDS else pytest.mark.slow) for kind in KINDS
]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_twin_that_llama_cpp_knows_is_read_as_it_was(tmp_path, tokenizer, kind):
    write_tiny_checkpoint(tmp_path / "final", tokenizer, **KINDS[kind])

    record = export_gguf(tmp_path / "final", tmp_path / "gguf", dtype="f32")

    assert record["architecture"] == kind.partition("-")[0]
    assert record["largest_change_by_rounding"] == 0
    if record["architecture"] != "arcee":  # transformers cannot read that one
        assert record["transformers"]["largest_difference"] <= record["transformers"]["tolerance"]
    if has_llama_cpp():
        assert record["llama_cpp"]["largest_difference"] <= record["llama_cpp"]["tolerance"]
        assert record["llama_cpp"]["greedy_tokens"] > 0


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_rounded_weights_are_read_within_what_their_type_rounds(tmp_path, tokenizer, kind, dtype):
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    write_tiny_checkpoint(tmp_path / "final", tokenizer, **(KINDS[kind] | sizes))

    record = export_gguf(tmp_path / "final", tmp_path / "gguf", dtype=dtype)

    assert record["stored_as"][dtype.upper()] == {"qwen3": 15, "llama": 15, "gpt2": 9}[kind]
    assert record["largest_change_by_rounding"] > 0
    assert record["llama_cpp"]["largest_difference"] <= record["llama_cpp"]["tolerance"]


@needs_llama_cpp
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "bpe"},
        {"kind": "bpe", "digits": 1},
        {"kind": "bpe", "pattern": "gpt2"},
        {"kind": "bytes"},
        {"kind": "syllable"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_llama_cpp_cuts_text_as_the_tokenizer_does(tmp_path, settings):
    tokenizer = train_tiny_tokenizer(**settings)
    write_tiny_checkpoint(tmp_path / "final", tokenizer, num_hidden_layers=1)
    record = export_gguf(tmp_path / "final", tmp_path / "gguf", dtype="f16")

    answers = ask(
        tmp_path / "gguf" / record["file"], context=64, vocab_size=len(tokenizer), texts=SENTENCES
    )

    assert answers.tokens == [tokenizer(text)["input_ids"] for text in SENTENCES]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = train_tiny_tokenizer(chat_template="chatml")
    write_tiny_checkpoint(folder / "final", tokenizer, vocab_size=len(tokenizer) + 6)
    (folder / "final" / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\n- ko\ntags:\n- tiny\n---\n\n# A tiny model\n"
    )
    record = export_gguf(folder / "final", folder / "exports" / "gguf", dtype="q8_0")
    fields = gguf.GGUFReader(folder / "exports" / "gguf" / record["file"]).fields
    return record, folder, tokenizer, {name: field.contents() for name, field in fields.items()}


def test_the_metadata_say_what_the_card_and_the_configuration_say(exported):
    record, _, _, metadata = exported

    expected = {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.name": "A tiny model",
        "general.license": "apache-2.0",
        "general.languages": ["en", "ko"],
        "general.tags": ["tiny"],
        "general.file_type": 7,
        "general.quantization_version": 2,
        "qwen3.context_length": 64,
        "qwen3.embedding_length": 32,
        "qwen3.block_count": 2,
        "qwen3.feed_forward_length": 88,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 8,
        "qwen3.attention.value_length": 8,
        "qwen3.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "qwen3.rope.freq_base": 10_000.0,
        "qwen3.rope.dimension_count": 8,
    }
    assert record["file"] == "A-tiny-model-q8_0.gguf"
    assert {key: metadata[key] for key in expected} == expected


def test_the_vocabulary_says_what_the_tokenizer_is(exported):
    _, _, tokenizer, metadata = exported
    size = len(tokenizer)

    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "dbrx"
    assert metadata["tokenizer.ggml.tokens"][:size] == tokenizer.convert_ids_to_tokens(range(size))
    assert metadata["tokenizer.ggml.tokens"][size:] == [f"[PAD{size + n}]" for n in range(6)]
    types = metadata["tokenizer.ggml.token_type"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    assert types == [3 if i in special else 1 for i in range(size)] + [5] * 6
    ids = [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")]
    assert ids == [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False
    assert metadata["tokenizer.chat_template"] == tokenizer.chat_template


def test_export_json_and_the_manifest_vouch_for_the_file(exported):
    record, folder, _, _ = exported
    out = folder / "exports" / "gguf"

    assert json.loads((out / "export.json").read_text()) == record
    assert record["bytes"] == (out / record["file"]).stat().st_size
    # 88 is no multiple of 32, so two matrices cannot be cut into blocks.
    assert record["stored_as"] == {"F32": 9, "F16": 2, "BF16": 0, "Q8_0": 13}
    assert read_manifest(out, kind="export", check_hashes=True) == record


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("tensors", "token_embd.weight is .* off in .*, but F32 rounds by 0 at most"),
        ("reader", "transformers' reader of GGUF gives logits that differ by"),
        ("llama_cpp", "llama.cpp gives logits that differ by"),
        ("cuts", "llama.cpp cuts .* into .*, but the tokenizer into"),
    ],
)
def test_a_file_that_is_not_the_model_leaves_nothing_behind(
    tmp_path, tokenizer, monkeypatch, part, message
):
    if part in ("llama_cpp", "cuts") and not has_llama_cpp():
        pytest.skip("needs hf-tinyformer[llamacpp]")
    write_tiny_checkpoint(tmp_path / "final", tokenizer, **LLAMA_LIKE)
    if part == "tensors":
        read = gguf_export.read_arrays
        monkeypatch.setattr(
            gguf_export, "read_arrays", lambda path: {n: a + 1e-3 for n, a in read(path).items()}
        )
    if part in ("reader", "llama_cpp"):  # rows of queries and keys in the order of transformers
        monkeypatch.setattr(gguf_layout, "_pair_neighbours", lambda tensor, _: tensor)
        monkeypatch.setattr(gguf_layout, "_pair_halves", lambda tensor, _: tensor)
    if part == "llama_cpp":
        monkeypatch.setattr(gguf_export, "_UNREAD_BY_TRANSFORMERS", ("llama",))
    if part == "cuts":
        monkeypatch.setattr(gguf_vocabulary, "_pattern_name", lambda _: "qwen2")

    with pytest.raises(ExportError, match=message):
        export_gguf(tmp_path / "final", tmp_path / "exports" / "gguf", dtype="f32")

    assert not any((tmp_path / "exports").iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mlp_type": "relu2"}, "twin is apertus, but llama.cpp knows llama, qwen3"),
        ({"norm_placement": "post"}, "no stock architecture computes that"),
        (
            {"position_embedding_type": "none"} | LLAMA_LIKE,
            "twin is smollm3, but llama.cpp knows llama, qwen3",
        ),
        (LLAMA_LIKE | GPT2_LIKE | {"mlp_type": "relu2"}, "mlp_type is relu2, but llama.cpp"),
        (BIASES, "stock architecture|attention_bias is True, but llama.cpp computes qwen3"),
    ],
)
def test_a_model_that_llama_cpp_cannot_run_is_refused_by_name(
    tmp_path, tokenizer, settings, message
):
    write_tiny_checkpoint(tmp_path / "final", tokenizer, **settings)

    with pytest.raises(ExportError, match=message):
        export_gguf(tmp_path / "final", tmp_path / "gguf")

    assert not (tmp_path / "gguf").exists()


def test_a_kind_of_number_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ExportError, match="--dtype is q4_0, but GGUF is written in f32, f16"):
        export_gguf(tmp_path, tmp_path / "gguf", dtype="q4_0")


@needs_llama_cpp
@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"GGUF\x03" + bytes(60), b"\xff" * 4096],
    ids=["empty", "short", "header", "noise"],
)
def test_llama_cpp_failing_on_a_file_is_one_clear_line(tmp_path, content):
    (tmp_path / "broken.gguf").write_bytes(content)

    with pytest.raises(ExportError, match=r"llama.cpp ended with status .* on broken.gguf: "):
        ask(tmp_path / "broken.gguf", context=64, vocab_size=10)


@pytest.mark.parametrize("storage", ["F32", "F16", "BF16", "Q8_0"])
def test_no_weight_moves_by_more_than_the_bound_and_some_come_close(storage):
    kind = gguf.GGMLQuantizationType[storage]
    drawn = np.random.default_rng(0)
    array = (drawn.normal(size=(256, 64)) * 10.0 ** drawn.integers(-9, 4, (256, 1))).astype("f4")

    moved = np.abs(gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind) - array)

    bound = gguf_layout.rounding_bound(array, storage)
    assert (moved <= bound).all()
    assert storage == "F32" or (moved > 0.4 * bound).any()


def read_sentences(name, count):
    """Lines of a corpus: whole paragraphs of an encyclopedia, remarks, dialogue."""
    with lzma.open(SHARED / f"{name}.jsonl.xz", "rt", encoding="utf-8") as stream:
        lines = (line for row in stream for line in json.loads(row)["text"].split("\n") if line)
        return list(islice(lines, count))


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the corpora lie in ../shared/data, not here")
@pytest.mark.parametrize("settings", [{}, {"pattern": "gpt2"}, {"kind": "syllable"}])
def test_twelve_hundred_real_sentences_are_cut_alike(tmp_path, settings):
    texts = [text for name in REAL_TEXTS for text in read_sentences(name, 300)]
    config = TokenizerConfig(vocab_size=3000, **settings)
    tokenizer = train_tokenizer(config, texts[::2], sequence_length=64)
    write_tiny_checkpoint(tmp_path / "final", tokenizer, num_hidden_layers=1)
    record = export_gguf(tmp_path / "final", tmp_path / "gguf")

    answers = ask(
        tmp_path / "gguf" / record["file"], context=64, vocab_size=len(tokenizer), texts=texts
    )

    expected = tokenizer(texts, verbose=False)["input_ids"]
    assert len(texts) == 1200
    assert [pair for pair in zip(answers.tokens, expected, strict=True) if pair[0] != pair[1]] == []
