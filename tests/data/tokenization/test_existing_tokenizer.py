import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_tinyformer.data.tokenization.existing_tokenizer import adopt_tokenizer, describe_tokenizer
from hf_tinyformer.data.tokenization.tokenizer import (
    count_ids,
    encode_documents,
    load_tokenizer,
    save_tokenizer,
    write_tokenizer_files,
)
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.errors import ArtifactError, ConfigError
from hf_tinyformer.inference.loading import load_tokenizer_of
from hf_tinyformer.model.tokenization_tinyformer import TinyFormerTokenizer


def write_foreign(folder, vocabulary: dict[str, int], **special: str):
    """Write the files of a tokenizer such as others publish: words, and whatever is special."""
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def adopt(path: str, **settings) -> PreTrainedTokenizerFast:
    return adopt_tokenizer(TokenizerConfig(path=path, **settings), sequence_length=32)


def test_ids_stay_and_a_pad_token_is_made_behind_them(tmp_path, caplog):
    path = write_foreign(tmp_path / "t", {"?": 0, "a": 1, "b": 2, "<end>": 3}, eos_token="<end>")

    with caplog.at_level(logging.INFO):
        tokenizer = adopt(path)

    assert encode_documents(tokenizer, ["b a"]) == [[2, 1, 3]]
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 4)
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (32, "left")
    assert "has no pad token; <pad> is it, id 4" in caplog.text


def test_a_pad_token_that_lies_unused_is_named(tmp_path):
    path = write_foreign(tmp_path / "t", {"?": 0, "a": 1, "[PAD]": 2})

    assert adopt(path).pad_token_id == 2


def test_ids_that_are_left_out_count_for_the_model(tmp_path):
    path = write_foreign(tmp_path / "t", {"?": 0, "a": 1, "[PAD]": 2, "far": 900})
    tokenizer = adopt(path)

    assert (len(tokenizer), count_ids(tokenizer)) == (4, 901)


def test_documents_begin_as_the_tokenizers_prompts_do(tmp_path, bpe):
    write_tokenizer_files(bpe, tmp_path)
    foreign = write_foreign(tmp_path / "t", {"?": 0, "a": 1, "<b>": 2}, bos_token="<b>")

    ours, theirs = adopt(str(tmp_path)), adopt(foreign)

    assert encode_documents(ours, ["def"]) == encode_documents(bpe, ["def"])
    assert encode_documents(theirs, ["a"]) == [[1]]  # its prompts have no <b> either
    without = adopt(str(tmp_path), add_eos_token=False)
    assert encode_documents(without, ["def"])[0] == encode_documents(bpe, ["def"])[0][:-1]


def test_documents_cannot_begin_otherwise_than_prompts(tmp_path, bpe):
    write_tokenizer_files(bpe, tmp_path)
    foreign = write_foreign(tmp_path / "t", {"?": 0, "a": 1, "<b>": 2}, bos_token="<b>")

    assert encode_documents(adopt(foreign, add_bos_token=False), ["a"]) == [[1]]
    with pytest.raises(ConfigError, match=r"add_bos_token is false, but .* prompts begin with <s>"):
        adopt(str(tmp_path), add_bos_token=False)


def test_special_tokens_and_a_chat_template_are_added_and_kept(tmp_path, bpe):
    write_tokenizer_files(bpe, tmp_path)
    tokenizer = adopt(str(tmp_path), chat_template="chatml", special_tokens=["<|tool|>"])
    save_tokenizer(tokenizer, tmp_path / "t", facts={})

    loaded = load_tokenizer(tmp_path / "t")

    size = len(bpe)
    names = ["<|im_start|>", "<|im_end|>", "<|tool|>"]
    assert loaded.convert_tokens_to_ids(names) == [size, size + 1, size + 2]
    written = loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert written == "<s><|im_start|>user\nx<|im_end|>\n"
    assert encode_documents(loaded, ["def f"]) == encode_documents(bpe, ["def f"])


def test_a_tokenizer_of_jamo_goes_on_composing(tmp_path, every_kind):
    write_tokenizer_files(every_kind["jamo"], tmp_path)

    tokenizer = adopt(str(tmp_path))

    assert isinstance(tokenizer, TinyFormerTokenizer)
    assert tokenizer.decode(encode_documents(tokenizer, ["간다"])[0][1:-1]) == "간다"


def test_what_is_no_tokenizer_is_an_error(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=rf"path is {path}, but no tokenizer can be loaded"):
            adopt(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"added_tokens": []}'),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_damaged_tokenizer_is_an_error_of_one_line(tmp_path, bpe, name, content):
    write_tokenizer_files(bpe, tmp_path)
    (tmp_path / name).write_text(content)

    with pytest.raises(ConfigError, match=r"path is .*, but no tokenizer can be loaded.*: [^\n]+$"):
        adopt(str(tmp_path))
    with pytest.raises(ArtifactError, match=r"cannot be loaded: [^\n]+$"):
        load_tokenizer_of(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
    ],
)
def test_the_description_follows_every_file_that_a_tokenizer_may_have(tmp_path, bpe, name):
    write_tokenizer_files(bpe, tmp_path)
    first = describe_tokenizer(TokenizerConfig(path=str(tmp_path)))
    (tmp_path / name).write_text("{}")

    assert describe_tokenizer(TokenizerConfig(path=str(tmp_path))) != first


def test_the_description_follows_the_files_that_the_settings_name(tmp_path, bpe, char):
    def describe(**settings):
        return describe_tokenizer(TokenizerConfig(**settings))

    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    first = describe(chat_template=str(template))
    template.write_text("{{ messages[0] }}")
    assert describe(chat_template=str(template)) != first

    write_tokenizer_files(bpe, tmp_path)
    first = describe(path=str(tmp_path))
    assert describe(path=str(tmp_path)) == first
    write_tokenizer_files(char, tmp_path)
    assert describe(path=str(tmp_path)) != first
    assert describe(path="someone/model")["path"] == "someone/model"
