import pytest

from hf_tinyformer.data.tokenization.tokenizer import (
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.errors import ConfigError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "안녕?"},
    {"role": "assistant", "content": "네."},
]


def train(texts, **settings):
    return train_tokenizer(TokenizerConfig(kind="bytes", **settings), texts, sequence_length=64)


def test_chatml_writes_turns_between_its_tokens_and_travels_with_the_tokenizer(tmp_path, texts):
    save_tokenizer(train(texts, chat_template="chatml"), tmp_path / "t", facts={})
    tokenizer = load_tokenizer(tmp_path / "t")

    written = tokenizer.apply_chat_template(TURNS[1:], tokenize=False)
    asked = tokenizer.apply_chat_template(TURNS[:2], tokenize=False, add_generation_prompt=True)

    assert written == (
        "<s><|im_start|>user\n안녕?<|im_end|>\n<|im_start|>assistant\n네.<|im_end|>\n"
    )
    assert asked.startswith("<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert asked.endswith("안녕?<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert (ids[0], ids.count(3), ids.count(4)) == (1, 2, 2)


def test_what_the_assistant_says_can_be_told_from_the_rest(texts):
    tokenizer = train(texts, chat_template="chatml")

    found = tokenizer.apply_chat_template(
        TURNS, return_dict=True, return_assistant_tokens_mask=True
    )

    said = [i for i, m in zip(found["input_ids"], found["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(said) == "네.<|im_end|>"


def test_without_a_first_token_a_conversation_has_none_either(texts):
    tokenizer = train(texts, chat_template="chatml", add_bos_token=False)

    assert tokenizer.apply_chat_template(TURNS, tokenize=False).startswith("<|im_start|>")


def test_a_template_is_read_from_a_file_or_given_as_text(tmp_path, texts):
    own = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
    (tmp_path / "own.jinja").write_text(own)

    for setting in (own, str(tmp_path / "own.jinja")):
        tokenizer = train(texts, chat_template=setting, special_tokens=["<|end|>"])
        ids = tokenizer.apply_chat_template(TURNS[1:2], return_dict=True)["input_ids"]
        assert tokenizer.decode(ids) == "user: 안녕?<|end|>"
        assert ids[-1] == 3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("missing.jinja", r"chat_template is missing\.jinja, but there is no such file"),
        ("{% for %}", r"chat_template fails on a conversation"),
        ("{{ raise_exception('no') }}", r"chat_template fails on a conversation .*: no\."),
    ],
)
def test_a_template_that_does_not_work_is_an_error(texts, template, message):
    with pytest.raises(ConfigError, match=message):
        train(texts, chat_template=template)
