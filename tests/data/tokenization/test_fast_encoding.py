import json
import logging
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_tinyformer.data.tokenization import character_check, fast_encoding
from hf_tinyformer.data.tokenization.fast_encoding import DocumentEncoder
from hf_tinyformer.data.tokenization.tokenizer import (
    encode_documents,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig

pytest.importorskip("gigatoken", reason="without it everything is encoded by tokenizers")

DIFFICULT = [
    "",
    "<s></s><pad><|im_start|>",
    "  \t\n \r\n\n x  y\u00a0\u2003z \n",
    "The KING'S don't we'LL it'\u017f \u212aelvin 1234567 \u0663\u0664 \u2167\u00bd",
    "\u1112\u1161\u11ab글 한글 日本語 ไทย हिन्दी עברית e\u0301\u0301 \u0301",
    "👩\u200d👩\u200d👧\ufe0f🇰🇷 \ufeff\x00\x07\u200b\ue000\U000e0041\U0010ffff",
    "=" * 500 + " " * 500 + "\n" * 500,
]


def by_tokenizers(tokenizer, texts):
    return encode_documents(tokenizer, texts)


def by_encoder(encoder, texts):
    strange = encoder.examine(texts)
    ids, lengths = encoder.correct(*encoder.encode(texts), texts, strange)
    assert ids.dtype == encoder.dtype
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])][: len(texts)]


def train(texts, **settings):
    config = TokenizerConfig(vocab_size=600, **settings)
    return train_tokenizer(config, texts * 3, sequence_length=64)


@pytest.fixture(
    scope="module",
    params=[
        {},
        {"kind": "jamo"},
        {"pattern": "gpt2"},
        {"digits": 1},
        {"add_bos_token": False, "add_eos_token": False},
        # 한국어 is a piece of the text, too.
        {"special_tokens": ["<|im_start|>", "한국어", "an end"]},
    ],
    ids=str,
)
def tokenizer(request, texts):
    return train(texts, **request.param)


def test_ids_are_those_of_tokenizers_and_no_document_loses_its_frame(tokenizer, texts):
    encoder = DocumentEncoder(tokenizer)

    assert encoder.name.startswith("gigatoken ")
    for batch in (DIFFICULT, texts, texts[:1], []):
        assert by_encoder(encoder, batch) == by_tokenizers(tokenizer, batch)
    assert encoder.name.startswith("gigatoken ")  # and nothing made it fall out of trust


@pytest.fixture(scope="module")
def encoder(bpe):
    return DocumentEncoder(bpe)


@settings(max_examples=40)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_ids_are_those_of_tokenizers_on_any_text(bpe, encoder, texts):
    assert by_encoder(encoder, texts) == by_tokenizers(bpe, texts)


def test_ids_are_those_of_tokenizers_wherever_a_character_stands(bpe, encoder):
    # One in 150 characters of Unicode, in drawn surroundings.
    draw = random.Random(0)
    characters = [chr(code) for code in range(0, 0x110000, 150) if not 0xD800 <= code < 0xE000]
    around = ["a", " ", "  ", "\n", "1", "'", "한", "!", "\t", ""]
    texts = [
        "".join(draw.choice(around) + draw.choice(characters) for _ in range(20))
        for _ in range(1000)
    ]

    assert by_encoder(encoder, texts) == by_tokenizers(bpe, texts)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "syllable"},
        {"kind": "word"},
        {"kind": "bytes"},
        {"digits": 2},
        {"space_runs": False},
        {"pattern": r"\w+|\W"},
    ],
    ids=str,
)
def test_a_tokenizer_that_the_fast_library_does_not_know_is_encoded_by_tokenizers(settings, texts):
    tokenizer = train(texts, **settings)
    encoder = DocumentEncoder(tokenizer)

    assert encoder.name.startswith("tokenizers ")
    assert by_encoder(encoder, texts) == by_tokenizers(tokenizer, texts)


@pytest.mark.parametrize(
    "change",
    [
        lambda rules: rules["model"].update(dropout=0.1),
        lambda rules: rules["model"].update(ignore_merges=True),
        lambda rules: rules.update(normalizer={"type": "NFKC"}),
        lambda rules: rules["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
        lambda rules: rules["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda rules: rules["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda rules: rules["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
        lambda rules: rules["added_tokens"][0].update(special=False),
    ],
)
def test_rules_that_the_two_libraries_read_differently_keep_the_fast_one_out(bpe, change):
    rules = json.loads(bpe.backend_tokenizer.to_str())
    change(rules)
    changed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(rules)))

    assert DocumentEncoder(changed).name.startswith("tokenizers ")


def test_a_tokenizer_read_back_is_encoded_as_before(tmp_path, texts):
    tokenizer = train(texts)
    save_tokenizer(tokenizer, tmp_path / "t", facts={})

    encoder = DocumentEncoder(load_tokenizer(tmp_path / "t"))

    assert encoder.name.startswith("gigatoken ")
    assert by_encoder(encoder, texts) == by_tokenizers(tokenizer, texts)


def test_without_the_fast_library_all_is_as_before(monkeypatch, bpe, texts):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    encoder = DocumentEncoder(bpe)

    assert encoder.name.startswith("tokenizers ")
    assert by_encoder(encoder, texts) == by_tokenizers(bpe, texts)


class Wrong:
    """Gives another id than it should for each text that holds a word."""

    def __init__(self, real, word):
        self._real, self._word = real, word

    def encode_batch(self, texts, parallel):
        changed = [text.replace(self._word, "?") for text in texts]
        return self._real.encode_batch(changed, parallel=parallel)


def test_the_libraries_agree_on_the_letters_that_are_not_put_to_them(tokenizer):
    encoder = DocumentEncoder(tokenizer)
    settled = [code for code in range(0x110000) if character_check._is_settled(code)]
    texts = [character_check._surround(chr(code)) for code in settled[::20]]

    assert len(settled) > 80_000
    assert all(encoder._agree(texts))


def test_a_difference_in_a_sample_is_told_once_and_the_ids_are_right(monkeypatch, bpe, caplog):
    encoder = DocumentEncoder(bpe)
    encoder._fast, name = Wrong(encoder._fast, "count"), encoder.name
    texts = ["a count of sheep"] * 5

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert by_encoder(encoder, texts) == by_tokenizers(bpe, texts)

    assert [record.message.split(" gives")[0] for record in caplog.records] == [name]
    assert encoder.name.startswith("tokenizers ")
    assert encoder.distrusted == {name}


def test_texts_with_a_character_of_which_the_libraries_differ_are_encoded_by_tokenizers(
    bpe, caplog
):
    encoder = DocumentEncoder(bpe)
    encoder._fast = Wrong(encoder._fast, "ȡ")
    texts = ["a sheep", "aȡb", "", "ȡ", "one more"]

    with caplog.at_level(logging.WARNING):
        assert by_encoder(encoder, texts) == by_tokenizers(bpe, texts)

    assert not caplog.records
    assert encoder.name.startswith("gigatoken ")


def test_two_threads_take_turns_with_the_tokenizer_whose_switches_they_set(monkeypatch, bpe):
    encoder = DocumentEncoder(bpe)
    inside, most = [], []

    def slowly(_tokenizer, _texts):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()

    monkeypatch.setattr(fast_encoding, "encode_documents", lambda *given: slowly(*given) or [[0]])
    monkeypatch.setattr(fast_encoding, "count_hidden_bytes", lambda *given: slowly(*given) or [0])
    actions = [
        lambda: encoder.correct(np.zeros(1, "uint16"), np.ones(1, "int64"), ["a"], [0]),
        lambda: encoder.count_hidden_bytes(["a"]),
        lambda: encoder._encode_slowly(["a"]),
    ]

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(action) for action in actions]:
            done.result()

    assert most == [1, 1, 1]


def test_a_frame_of_unknown_tokens_is_not_counted():
    # As GPT-2's tokenizer has it: one token is the begin, the end and the unknown.
    backend = Tokenizer(models.WordLevel({"<|end|>": 0, "a": 1}, unk_token="<|end|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|end|>")
    encoder = DocumentEncoder(PreTrainedTokenizerFast(tokenizer_object=backend, **special))

    ids, lengths = encoder.encode(["a a", "a b"])

    assert ids.tolist() == [0, 1, 1, 0, 0, 1, 0, 0]
    assert encoder.count_unknown(ids, len(lengths)) == 1


def test_a_sample_is_taken_from_the_whole_batch(monkeypatch):
    monkeypatch.setattr(fast_encoding, "_PIECE", 2)
    monkeypatch.setattr(fast_encoding, "_SHARE_COMPARED", 3)

    # Characters 0-1, 6-7, 12-13 of all; a piece ends with its text.
    assert fast_encoding._sample(["abcdefg", "hij", "", "klmnop"]) == ["ab", "g", "mn"]
    assert fast_encoding._sample([]) == []
