from contextlib import nullcontext

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TextStreamer

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.errors import ConfigError, DataError
from hf_tinyformer.inference import generation
from hf_tinyformer.inference.generation import encode_prompt, generate_text


class RecordingStreamer:
    def __init__(self):
        self.ids = []
        self.ends = 0

    def put(self, value):
        self.ids.extend(value.reshape(-1).tolist())

    def end(self):
        self.ends += 1


@pytest.fixture
def learned_positions():
    """A model that has no position beyond its table of 8."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=259,
        n_positions=8,
        n_embd=32,
        n_layer=1,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


def greedy_by_hand(model, ids, count):
    for _ in range(count):
        logits = model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids = [*ids, int(logits[0, -1].argmax())]
    return ids


def test_temperature_zero_takes_the_likeliest_token_each_time(tiny_llama, byte_tokenizer):
    prompt_ids = byte_tokenizer("ab")["input_ids"]
    expected = greedy_by_hand(tiny_llama, prompt_ids, 10)[len(prompt_ids) :]
    assert 2 not in expected

    streamer = RecordingStreamer()
    text = generate_text(
        tiny_llama, byte_tokenizer, "ab", max_new_tokens=10, temperature=0, streamer=streamer
    )

    assert streamer.ids == prompt_ids + expected
    assert text == byte_tokenizer.decode(expected, skip_special_tokens=True)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(tiny_llama, byte_tokenizer):
    texts = [
        generate_text(tiny_llama, byte_tokenizer, "a", max_new_tokens=12, temperature=5.0, seed=s)
        for s in (1, 1, 2)
    ]

    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("seed", [7, None])
def test_a_sample_leaves_the_global_random_state_alone(tiny_llama, byte_tokenizer, seed):
    before = torch.get_rng_state()

    generate_text(tiny_llama, byte_tokenizer, "a", max_new_tokens=4, temperature=1.0, seed=seed)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [7, None])
def test_a_sample_on_the_cpu_seeds_no_gpu(tiny_llama, byte_tokenizer, seed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("GPUs are seeded"))

    generate_text(tiny_llama, byte_tokenizer, "a", max_new_tokens=2, temperature=1.0, seed=seed)


def test_a_sample_on_a_gpu_seeds_that_one(monkeypatch):
    gpus = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)]
    monkeypatch.setattr(torch.cuda, "default_generators", gpus)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices, device_type: nullcontext())

    with generation._seeded(7, torch.device("cuda", 1)):
        assert [gpu.initial_seed() for gpu in gpus] == [1, 7]
        assert torch.initial_seed() == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_seed_holds_on_a_gpu_too_and_its_state_is_put_back(tiny_llama, byte_tokenizer):
    before = torch.cuda.get_rng_state()

    texts = [
        generate_text(tiny_llama.cuda(), byte_tokenizer, "a", temperature=5.0, seed=seed)
        for seed in (1, 1, 2)
    ]

    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_models_own_settings_change_nothing(tiny_llama, byte_tokenizer):
    settings = {"temperature": 0, "max_new_tokens": 10}
    expected = generate_text(tiny_llama, byte_tokenizer, "a", **settings)
    own = tiny_llama.generation_config
    own.repetition_penalty, own.suppress_tokens, own.min_new_tokens = 9.0, list(range(100)), 3

    text = generate_text(tiny_llama, byte_tokenizer, "a", **settings)

    assert text == expected
    assert tiny_llama.generation_config is own
    assert own.repetition_penalty == 9.0


def test_both_ways_to_write_give_the_same_text(byte_tokenizer, monkeypatch):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = TinyFormerForCausalLM(
        TinyFormerConfig(vocab_size=259, initializer_range=0.5, eos_token_id=2, **sizes)
    )
    model.generation_config.repetition_penalty = 9.0
    settings = {"temperature": 0, "max_new_tokens": 20}
    expected = generate_text(model, byte_tokenizer, "a", **settings)
    monkeypatch.setattr(generation, "can_decode", lambda model: False)

    assert generate_text(model, byte_tokenizer, "a", **settings) == expected


def test_a_temperature_of_almost_zero_is_greedy(tiny_llama, byte_tokenizer):
    greedy = generate_text(tiny_llama, byte_tokenizer, "x", max_new_tokens=8, temperature=0)

    text = generate_text(
        tiny_llama, byte_tokenizer, "x", max_new_tokens=8, temperature=1e-39, top_k=0, seed=0
    )

    assert text == greedy


def test_top_k_of_one_is_greedy(tiny_llama, byte_tokenizer):
    greedy = generate_text(tiny_llama, byte_tokenizer, "x", max_new_tokens=8, temperature=0)

    text = generate_text(
        tiny_llama, byte_tokenizer, "x", max_new_tokens=8, temperature=3.0, top_k=1, seed=0
    )

    assert text == greedy


def test_an_empty_prompt_begins_at_the_start_token(tiny_llama, byte_tokenizer):
    streamer = RecordingStreamer()

    generate_text(tiny_llama, byte_tokenizer, "", max_new_tokens=2, seed=0, streamer=streamer)

    assert streamer.ids[0] == 1
    assert len(streamer.ids) == 3


@pytest.mark.parametrize(
    ("text", "frame", "expected"),
    [
        ("ab\n", {"add_bos_token": True}, "<s>"),
        ("ab\n", {"add_bos_token": False}, "</s>"),
        ("ab\n", {"add_bos_token": False, "add_eos_token": False}, "\n"),
        ("ab", {"add_bos_token": False, "add_eos_token": False}, "<s>"),
    ],
)
def test_an_empty_prompt_begins_as_documents_did_in_training(text, frame, expected):
    config = TokenizerConfig(kind="syllable", byte_fallback=False, **frame)
    tokenizer = train_tokenizer(config, [text], sequence_length=8)

    assert tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, "")) == [expected]


def test_an_empty_prompt_without_a_token_to_begin_with_is_refused():
    backend = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))

    with pytest.raises(DataError, match="the prompt is empty"):
        encode_prompt(PreTrainedTokenizerFast(tokenizer_object=backend), "")


def test_a_special_token_in_the_prompt_is_plain_text(byte_tokenizer):
    ids = encode_prompt(byte_tokenizer, "a</s>")

    assert ids[0] == 1
    assert len(ids) == 1 + len("a</s>")
    assert 2 not in ids


def test_text_past_the_context_slides_over_the_newer_half(learned_positions, byte_tokenizer):
    # Context 8: 4 tokens are read, 5 written (the last is not read back). Then the newest 4 are
    # read from position 0 again; for the last 4 new tokens there is room for 5.
    prompt_ids = byte_tokenizer("abc")["input_ids"]
    expected = greedy_by_hand(learned_positions, prompt_ids, 5)
    for kept, count in ((4, 5), (5, 4)):
        expected = expected[:-kept] + greedy_by_hand(learned_positions, expected[-kept:], count)
    assert 2 not in expected

    streamer = RecordingStreamer()
    generate_text(
        learned_positions,
        byte_tokenizer,
        "abc",
        max_new_tokens=14,
        temperature=0,
        streamer=streamer,
    )

    assert streamer.ids == expected
    assert streamer.ends == 1


def test_of_a_prompt_longer_than_the_context_the_end_is_read(learned_positions, byte_tokenizer):
    # Two new tokens leave room for 7 of the prompt's 21.
    prompt = "0123456789abcdefghij"
    expected = greedy_by_hand(learned_positions, byte_tokenizer(prompt)["input_ids"][-7:], 2)[-2:]

    text = generate_text(learned_positions, byte_tokenizer, prompt, max_new_tokens=2, temperature=0)

    assert text == byte_tokenizer.decode(expected)


def test_text_ends_at_the_end_token(tiny_llama, byte_tokenizer):
    with torch.no_grad():
        tiny_llama.lm_head.weight[2] = 100 * tiny_llama.lm_head.weight.abs().sum(0)
        tiny_llama.model.norm.weight.fill_(1.0)
        tiny_llama.model.embed_tokens.weight.fill_(1.0)
        for layer in tiny_llama.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    streamer = RecordingStreamer()

    text = generate_text(
        tiny_llama, byte_tokenizer, "a", max_new_tokens=9, temperature=0, streamer=streamer
    )

    assert text == ""
    assert streamer.ids[-1] == 2
    assert len(streamer.ids) == 3


def test_streamed_text_equals_the_returned_text(tiny_llama, byte_tokenizer, capsys):
    # Random bytes are mostly broken UTF-8, cut at window borders besides.
    streamer = TextStreamer(byte_tokenizer, skip_prompt=True, skip_special_tokens=True)

    text = generate_text(
        tiny_llama,
        byte_tokenizer,
        "a",
        max_new_tokens=80,
        temperature=2.0,
        seed=3,
        streamer=streamer,
    )

    assert capsys.readouterr().out == text + "\n"


def test_the_training_mode_is_put_back(tiny_llama, byte_tokenizer):
    tiny_llama.train()

    generate_text(tiny_llama, byte_tokenizer, "a", max_new_tokens=1, seed=0)

    assert tiny_llama.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but it must be at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0, but it must be 0 or more"),
        ({"top_k": -1}, "top_k is -1, but it must be 0"),
        ({"top_p": 0.0}, "top_p is 0.0, but it must be above 0 and at most 1"),
    ],
)
def test_a_setting_out_of_range_is_named(tiny_llama, byte_tokenizer, settings, message):
    with pytest.raises(ConfigError, match=message):
        generate_text(tiny_llama, byte_tokenizer, "a", **settings)
