import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TextIteratorStreamer

from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer, write_tokenizer_files
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.model import tokenization_tinyformer
from hf_tinyformer.model.tokenization_tinyformer import TinyFormerTokenizer, compose_syllables

TEXT = "나는 간다. 쉰 café é \u1112\u1161\u11ab ㅋㅋ 樂\ufa5c!\n"  # jamo and doubles of hanja, too
COMPOSED = TEXT.replace("\u1112\u1161\u11ab", "한")


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["나는 간다. 너는 쉰다. 한국어 문장, café. " * 20]
    config = TokenizerConfig(kind="jamo", vocab_size=320)
    return train_tokenizer(config, texts, sequence_length=64)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    """A tokenizer's folder as it is published: its files, and the code that composes."""
    path = tmp_path_factory.mktemp("published")
    write_tokenizer_files(tokenizer, path)
    source = Path(tokenization_tinyformer.__file__)
    (path / source.name).write_bytes(source.read_bytes())
    return path


def test_only_syllables_are_composed():
    assert compose_syllables(TEXT) == COMPOSED
    assert compose_syllables("느\u11ab \u11ab\u1102") == "는 \u11ab\u1102"
    # Old Korean letters have no syllables of their own, and accents stay apart.
    assert compose_syllables("\u1113\u1161e\u0301") == "\u1113\u1161e\u0301"


def test_every_syllable_is_composed():
    syllables = "".join(map(chr, range(0xAC00, 0xD7A4)))

    assert compose_syllables(unicodedata.normalize("NFD", syllables)) == syllables


def test_the_names_that_every_program_knows_are_there_before_anything_is_uploaded(
    tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = {}

    def upload(self, folder, repo_id, timestamps, **words):
        path = Path(folder) / "x-tokenizer_config.json"
        seen.update(json.loads(path.read_text(encoding="utf-8")))

    hub = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr("transformers.tokenization_utils_base.hf_api", lambda: hub)
    monkeypatch.setattr(TinyFormerTokenizer, "_upload_modified_files", upload)

    tokenizer.save_pretrained(tmp_path / "saved", filename_prefix="x", push_to_hub=True)

    assert seen["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert seen["auto_map"]["AutoTokenizer"][1].endswith("TinyFormerTokenizer")


def test_decoding_composes_one_text_or_many(tokenizer):
    ids = tokenizer(TEXT)["input_ids"]

    assert isinstance(tokenizer, TinyFormerTokenizer)
    assert tokenizer.decode(ids, skip_special_tokens=True) == COMPOSED
    assert tokenizer.decode(torch.tensor(ids)) == "<s>" + COMPOSED
    assert tokenizer.batch_decode([ids, ids[:4]], skip_special_tokens=True)[0] == COMPOSED
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(TEXT)) == COMPOSED


def test_a_stream_has_whole_syllables_only(tokenizer):
    ids = tokenizer("나는 쉰다. 너는 간다.\n한국어 ")["input_ids"]
    streamer = TextIteratorStreamer(tokenizer, skip_special_tokens=True)

    for index in ids:  # one token at a time, each a part of a syllable at most
        streamer.put(torch.tensor([index]))
    streamer.end()
    parts = list(streamer)

    assert "".join(parts) == "나는 쉰다. 너는 간다.\n한국어 "
    assert len([part for part in parts if part]) > 3
    assert not any("\u1100" <= letter <= "\u11ff" for part in parts for letter in part)


def test_saved_files_name_a_class_that_every_program_knows_and_ours_beside_it(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)

    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())

    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["auto_map"] == {
        "AutoTokenizer": [None, "tokenization_tinyformer.TinyFormerTokenizer"]
    }
    again = TinyFormerTokenizer.from_pretrained(tmp_path)
    assert again.decode(again(TEXT)["input_ids"], skip_special_tokens=True) == COMPOSED


@pytest.mark.parametrize("load", [AutoTokenizer, PreTrainedTokenizerFast])
def test_without_our_class_text_is_canonically_equivalent(folder, tokenizer, load, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))

    plain = load.from_pretrained(folder)
    ids = plain(TEXT)["input_ids"]
    text = plain.decode(ids, skip_special_tokens=True)

    assert ids == tokenizer(TEXT)["input_ids"]
    assert text != COMPOSED
    assert unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", TEXT)
    assert compose_syllables(text) == COMPOSED


def test_text_that_streams_from_the_plain_tokenizer_always_begins_with_what_came_before(folder):
    from tokenizers.decoders import DecodeStream

    plain = PreTrainedTokenizerFast.from_pretrained(folder)
    stream = DecodeStream(skip_special_tokens=True)
    parts = [stream.step(plain.backend_tokenizer, index) for index in plain(TEXT)["input_ids"]]

    assert compose_syllables("".join(part or "" for part in parts)) == COMPOSED


# What a program does that has never heard of this package, in a process of its own.
PROGRAM = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **json.loads(sys.argv[2]))
ids = tokenizer(sys.argv[3])["input_ids"]
text = tokenizer.decode(ids, skip_special_tokens=True)
print(json.dumps([ids, text, "hf_tinyformer" in sys.modules]))
"""


@pytest.mark.parametrize("trusts", [True, False, None])
def test_a_program_without_the_package(folder, tokenizer, tmp_path, trusts):
    asked = {} if trusts is None else {"trust_remote_code": trusts}
    ran = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, folder, json.dumps(asked), TEXT],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,  # where a question would fail
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    ids, text, has_package = json.loads(ran.stdout)

    assert not has_package
    assert ids == tokenizer(TEXT)["input_ids"]
    assert unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", TEXT)
    assert (text == COMPOSED) == bool(trusts)
