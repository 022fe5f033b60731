"""What llama.cpp is told of a tokenizer; whether it then cuts alike, tests/integrations shows."""

import pytest
from tiny_checkpoints import train_tiny_tokenizer

from hf_tinyformer.errors import ExportError
from hf_tinyformer.publishing.gguf_vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    read_vocabulary,
)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "dbrx"),
        ({"digits": 1}, "qwen2"),
        ({"pattern": "gpt2"}, "gpt-2"),
        ({"kind": "bytes"}, "gpt-2"),
    ],
)
def test_a_pattern_goes_by_the_name_that_llama_cpp_has_for_it(settings, name):
    tokenizer = train_tiny_tokenizer(**settings)

    vocabulary = read_vocabulary(tokenizer, len(tokenizer))

    assert (vocabulary.model, vocabulary.pattern_name) == ("gpt2", name)
    assert vocabulary.tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert vocabulary.types == [CONTROL] * 3 + [NORMAL] * (len(tokenizer) - 3)


def test_characters_with_bytes_for_the_rest_go_as_sentencepiece():
    tokenizer = train_tiny_tokenizer(kind="syllable")

    vocabulary = read_vocabulary(tokenizer, len(tokenizer) + 2)

    assert vocabulary.model == "llama"
    space = tokenizer.convert_tokens_to_ids(" ")
    assert vocabulary.tokens[space] == "\u2581"
    assert vocabulary.types.count(BYTE) == 256
    assert vocabulary.types[-2:] == [UNUSED] * 2
    assert vocabulary.merges == []


def test_a_tokenizer_without_a_begin_token_says_so():
    vocabulary = read_vocabulary(train_tiny_tokenizer(add_bos_token=False), 400)

    assert (vocabulary.add_bos, vocabulary.add_eos) == (False, False)


def test_something_else_around_a_prompt_is_refused():
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> <s> $A", special_tokens=[("<s>", 1)]
    )

    with pytest.raises(ExportError, match=r"llama.cpp puts <s> before and </s> after it at most"):
        read_vocabulary(tokenizer, 400)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "jamo"}, "rewrites text first .*, but llama.cpp runs no normalizer"),
        ({"kind": "word"}, "is a WordLevel model, but llama.cpp has no equal"),
        ({"kind": "syllable", "byte_fallback": False}, "has unk_token '<unk>'"),
        ({"pattern": r"\w+|\W+"}, r"by the pattern .*, but llama.cpp knows patterns by name"),
        ({"digits": 2}, r"by the pattern .*, but llama.cpp knows patterns by name"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_cut_with_otherwise_is_refused(settings, message):
    tokenizer = train_tiny_tokenizer(**settings)

    with pytest.raises(ExportError, match=message):
        read_vocabulary(tokenizer, len(tokenizer))


def test_a_word_that_is_a_token_is_taken_whole_only_where_the_tokenizer_does():
    tokenizer = train_tiny_tokenizer()
    tokenizer.backend_tokenizer.model.ignore_merges = True

    assert read_vocabulary(tokenizer, len(tokenizer)).pattern_name == "llama-bpe"
