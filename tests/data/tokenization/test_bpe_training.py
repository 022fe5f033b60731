import json
import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from hf_tinyformer.data.tokenization import bpe_training
from hf_tinyformer.data.tokenization.bpe_training import train_bpe
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.data.tokenization.tokenizer_training import split_pattern

pytest.importorskip("gigabpe", reason="without it tokenizers trains")

SPECIAL = ["<pad>", "<s>", "</s>"]
GPT4, GPT2 = split_pattern(TokenizerConfig()), None
QWEN = split_pattern(TokenizerConfig(digits=1))
PLAIN_SPACES = split_pattern(TokenizerConfig(space_runs=False))


def make(pattern):
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    backend.pre_tokenizer = byte_level
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return backend


def by_tokenizers(pattern, texts, vocab_size, special=SPECIAL):
    backend = make(pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return json.loads(backend.to_str())


def by_us(pattern, texts, vocab_size, special=SPECIAL):
    backend = make(pattern)
    train_bpe(backend, iter(texts), vocab_size=vocab_size, special_tokens=special)
    return json.loads(backend.to_str())


@pytest.fixture
def no_slow_training(monkeypatch):
    """Training by `tokenizers` would be equal, and prove nothing."""

    def fail(*_args, **_options):
        pytest.fail("tokenizers trained")

    monkeypatch.setattr(trainers, "BpeTrainer", fail)


@pytest.mark.parametrize("pattern", [GPT4, GPT2, QWEN, PLAIN_SPACES])
@pytest.mark.parametrize("vocab_size", [259, 300, 700, 100_000])
def test_the_tokenizer_is_that_of_tokenizers(texts, pattern, vocab_size, request):
    expected = by_tokenizers(pattern, texts, vocab_size)
    request.getfixturevalue("no_slow_training")

    assert by_us(pattern, texts, vocab_size) == expected


def test_ties_are_broken_as_in_tokenizers(request):
    # Many pairs with few different counts, of letters whose bytes order otherwise than they do.
    draw = random.Random(0)
    letters = "ab\u00a0\u00ad\u00ff\x00\x7f~!한각 \n"
    texts = ["".join(draw.choices(letters, k=12)) for _ in range(400)]
    expected = by_tokenizers(GPT4, texts, 1_000)
    request.getfixturevalue("no_slow_training")

    assert len(expected["model"]["merges"]) > 200
    assert by_us(GPT4, texts, 1_000) == expected


def test_a_merge_that_spells_a_special_token_is_as_in_tokenizers(request):
    texts = ["</s> x </s>y <pad></s>"] * 50
    expected = by_tokenizers(GPT4, texts, 400)
    request.getfixturevalue("no_slow_training")

    assert by_us(GPT4, texts, 400) == expected


CUTTERS = {}  # Knowing each character takes a while, once.


def cutter_of(pattern):
    if pattern not in CUTTERS:
        known = pattern or bpe_training._GPT2
        pieces = bpe_training._translate(known)
        CUTTERS[pattern] = bpe_training._Cutter(make(pattern), known, pieces)
    return CUTTERS[pattern]


def test_special_tokens_of_any_letters_are_as_in_tokenizers(request, texts):
    special = [*SPECIAL, "한국어", "an end", "Ġwith"]
    expected = by_tokenizers(GPT4, texts, 600, special)
    request.getfixturevalue("no_slow_training")

    assert by_us(GPT4, texts, 600, special) == expected


@settings(max_examples=60)
@given(st.lists(st.text(max_size=30), max_size=5), st.sampled_from([GPT4, GPT2, QWEN]))
def test_words_are_cut_as_by_tokenizers_on_any_text(texts, pattern):
    cutter = cutter_of(pattern)

    easy, _ = cutter.set_apart(texts)

    for text, words in zip(easy, cutter.cut_fast(easy).to_pylist(), strict=True):
        assert [word for word in words if word] == cutter.cut_slowly(text)


@pytest.mark.parametrize("pattern", [GPT4, GPT2, QWEN, PLAIN_SPACES])
def test_words_are_cut_as_by_tokenizers_around_white_space_signs_and_digits(pattern):
    draw = random.Random(0)
    pieces = [
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "a",
        "B'll",
        "'S",
        "'\u017f",
        "12345",
        "!?",
        "한",
        "\u2003",
    ]
    texts = ["".join(draw.choices(pieces, k=12)) for _ in range(2_000)]
    cutter = cutter_of(pattern)

    cut = cutter.cut_fast(texts).to_pylist()

    assert [[word for word in words if word] for words in cut] == list(
        map(cutter.cut_slowly, texts)
    )


def test_texts_that_hold_the_mark_or_an_unknown_character_are_cut_by_tokenizers(
    texts, monkeypatch, request
):
    texts = [*texts, "ab\ufdd0cd " * 30, "q\u0301q " * 30, "\U0001f9ff " * 30]
    expected = by_tokenizers(GPT4, texts, 600)
    request.getfixturevalue("no_slow_training")
    # One more reason to differ, whatever the libraries' versions of Unicode.
    real = bpe_training._Cutter._agree
    monkeypatch.setattr(
        bpe_training._Cutter,
        "_agree",
        lambda self, seen: [
            same and "\U0001f9ff" not in text
            for text, same in zip(seen, real(self, seen), strict=True)
        ],
    )

    assert by_us(GPT4, texts, 600) == expected


def test_batches_and_large_counts_change_nothing(texts, monkeypatch, request):
    texts = [*texts, "the " * 20_000]
    expected = by_tokenizers(GPT4, texts, 500)
    request.getfixturevalue("no_slow_training")
    monkeypatch.setattr(bpe_training, "_CHARACTERS_AT_ONCE", 100)
    monkeypatch.setattr(bpe_training, "_REPEATS_AT_ONCE", 7)

    assert by_us(GPT4, texts, 500) == expected


# In the last of them a sign takes along line ends at which the run of spaces must not end.
@pytest.mark.parametrize(
    "pattern",
    [
        r"\S+|\s+",
        r"\p{L}+(?=\s)|.",
        GPT4 + "|x",
        GPT4.replace(r"|\s*[\r\n]+", ""),
    ],
)
def test_an_unknown_pattern_is_left_to_tokenizers(texts, pattern, monkeypatch):
    monkeypatch.setattr(bpe_training, "_write_words", None)
    texts = [*texts, "x!\n\n\ny?\n\nz" * 50]

    assert by_us(pattern, texts, 400) == by_tokenizers(pattern, texts, 400)


def test_without_the_fast_library_tokenizers_trains(texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigabpe", None)
    monkeypatch.setattr(bpe_training, "_write_words", None)

    assert by_us(GPT4, texts, 400) == by_tokenizers(GPT4, texts, 400)


def test_words_are_spelled_in_the_letters_of_byte_level():
    import numpy as np
    import pyarrow as pa

    # `a` has one byte and so no pair. A space is Ġ; 한 is the bytes ED 95 9C.
    words = pa.array([" x", "a", "한", ""], pa.large_string())

    written = b"".join(bpe_training._repeat_words(words, np.array([2, 5, 1, 9]))).decode()

    assert written == "Ġx Ġx íķľ "
