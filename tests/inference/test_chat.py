import copy

import pytest
import torch

from hf_tinyformer import cli
from hf_tinyformer.errors import ConfigError, DataError
from hf_tinyformer.inference.chat import Conversation, find_end_of_turn
from hf_tinyformer.inference.generation import generate_text

TEMPLATE = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ m.role[0] }}{{ m.content }}|end|{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)
END = 259


@pytest.fixture
def tokenizer(byte_tokenizer):
    """Bytes, with a token that ends turns and is none of the named special ones."""
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["|end|"]})
    tokenizer.chat_template = TEMPLATE
    assert tokenizer.convert_tokens_to_ids("|end|") == END
    return tokenizer


@pytest.fixture
def model(tiny_llama):
    tiny_llama.resize_token_embeddings(260, mean_resizing=False)
    return tiny_llama


def record(model, monkeypatch):
    """Note what every call of `generate` reads."""
    prompts = []
    generate = model.generate

    def noting(inputs, **settings):
        prompts.append(inputs[0].tolist())
        return generate(inputs, **settings)

    monkeypatch.setattr(model, "generate", noting)
    return prompts


class RecordingStreamer:
    def __init__(self):
        self.ids = []

    def put(self, value):
        self.ids.extend(value.reshape(-1).tolist())

    def end(self):
        pass


def test_the_end_of_a_turn_is_read_off_the_template(tokenizer):
    assert find_end_of_turn(tokenizer) == END


def test_a_template_whose_turns_end_in_plain_text_has_no_end_token(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"

    assert find_end_of_turn(tokenizer) is None


def test_the_model_reads_the_whole_conversation_as_the_template_writes_it(
    model, tokenizer, monkeypatch
):
    prompts = record(model, monkeypatch)
    conversation = Conversation(model, tokenizer, system="be")

    first = conversation.reply("hi", max_new_tokens=3, temperature=0)
    conversation.reply("ok", max_new_tokens=3, temperature=0)

    texts = [tokenizer.decode(ids) for ids in prompts]
    assert texts == [
        "<s>sbe|end|uhi|end|a",
        f"<s>sbe|end|uhi|end|a{first}|end|uok|end|a",
    ]
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant"] * 2


def test_an_answer_ends_at_the_end_of_the_turn(model, tokenizer):
    with torch.no_grad():
        # Every hidden state is all ones, so the largest row of the head is always the next token.
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[END] = 1.0
    talking, writing = RecordingStreamer(), RecordingStreamer()
    settings = {"max_new_tokens": 9, "temperature": 0}

    answer = Conversation(model, tokenizer).reply("hi", streamer=talking, **settings)
    generate_text(model, tokenizer, "hi", streamer=writing, **settings)

    assert answer == ""
    assert talking.ids.count(END) == 2  # the user's turn and its own
    assert writing.ids.count(END) == 9  # which only the conversation takes for an end


def test_the_oldest_turns_are_left_out_when_the_context_is_full(model, tokenizer, monkeypatch):
    # Context 32. A turn of 4 letters costs 6 tokens, <s> and the last `a` one each.
    said = []

    def say_xyzw(inputs, **settings):
        said.append(tokenizer.decode(inputs[0]))
        new = [*tokenizer("xyzw", add_special_tokens=False)["input_ids"], END]
        return torch.cat([inputs, torch.tensor([new])], dim=1)

    monkeypatch.setattr(model, "generate", say_xyzw)
    conversation = Conversation(model, tokenizer)
    for text in ("aaaa", "bbbb", "cccc"):
        assert conversation.reply(text, max_new_tokens=8) == "xyzw"

    assert said == [
        "<s>uaaaa|end|a",
        "<s>uaaaa|end|axyzw|end|ubbbb|end|a",
        "<s>ubbbb|end|axyzw|end|ucccc|end|a",
    ]
    assert len(conversation.turns) == 6  # all of it is remembered, and read where there is room


def test_an_answer_is_no_longer_than_the_context_has_room_for(model, tokenizer, monkeypatch):
    prompts = record(model, monkeypatch)

    Conversation(model, tokenizer).reply("x" * 20, max_new_tokens=100, temperature=0)

    # 24 tokens are read, so 9 can be written; a second window would lose the template.
    assert [len(ids) for ids in prompts] == [24]


def test_a_message_longer_than_the_context_is_refused(model, tokenizer):
    with pytest.raises(DataError, match="the message makes 44 tokens, but the model reads 32"):
        Conversation(model, tokenizer).reply("x" * 40)


def test_a_tokenizer_without_a_template_is_refused(tiny_llama, byte_tokenizer):
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        Conversation(tiny_llama, byte_tokenizer)


def test_what_the_template_refuses_is_one_line(model, tokenizer):
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ messages[0].content }}"
    )

    with pytest.raises(ConfigError, match=r"the chat template refuses this.*no system here"):
        Conversation(model, tokenizer, system="be").reply("hi")


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    return str(tmp_path / "chat")


def run_cli(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return stop.value.code


def test_the_command_answers_one_prompt(checkpoint, capsys):
    code = run_cli("generate", checkpoint, "hi", "--chat", "--max-new-tokens", "4")

    assert code in (0, None)
    out = capsys.readouterr().out
    assert out.strip()
    assert "uhi" not in out  # the prompt and the template's words are not repeated


def test_the_command_talks_line_by_line_until_an_empty_one(checkpoint, capsys, monkeypatch):
    lines = iter(["hi", "ho", "/new", "hi", "", "never read"])
    monkeypatch.setattr("builtins.input", lambda question: next(lines))

    code = run_cli("generate", checkpoint, "--chat", "--max-new-tokens", "4", "--temperature", "0")

    assert code in (0, None)
    answers = capsys.readouterr().out.splitlines()
    assert answers[0] == answers[-1]  # the same words after /new, the same answer
    assert next(lines) == "never read"


def test_the_command_without_a_template_is_one_line(tiny_llama, byte_tokenizer, tmp_path, capsys):
    tiny_llama.save_pretrained(tmp_path / "plain")
    byte_tokenizer.save_pretrained(tmp_path / "plain")

    code = run_cli("generate", str(tmp_path / "plain"), "hi", "--chat")

    assert code == 2
    assert "tinyformer: error: the tokenizer has no chat template" in capsys.readouterr().err
