import re
import sys
import threading

import pytest
import torch
from tiny_models import tiny_model

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.inference.demo import (
    PART_OF_CHARACTER,
    SHOWN_TOKENS,
    Demo,
    build_page,
    compute_attention,
    label_tokens,
    render_attention,
    render_tokens,
    stream_ids,
)
from hf_tinyformer.inference.generation import generate_text


@pytest.fixture
def model():
    return tiny_model(vocab_size=259, max_position_embeddings=32)


def shades(table):
    """The weights as drawn, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", table)[1:]
    return [[float(w) for w in re.findall(r"rgba\(214,39,40,([\d.]+)\)", row)] for row in rows]


def test_ids_come_one_by_one_and_spell_what_generate_text_gives(model, byte_tokenizer):
    settings = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3}

    steps = list(stream_ids(model, byte_tokenizer, "ab", **settings))

    prompt = byte_tokenizer("ab")["input_ids"]
    assert steps[0] == prompt
    assert [len(ids) for ids in steps] == list(range(len(prompt), len(prompt) + len(steps)))
    written = byte_tokenizer.decode(steps[-1][len(prompt) :], skip_special_tokens=True)
    assert written == generate_text(model, byte_tokenizer, "ab", **settings)


def test_whoever_stops_reading_stops_the_writing(model, byte_tokenizer):
    before = threading.active_count()
    stream = stream_ids(model, byte_tokenizer, "ab", max_new_tokens=100_000, seed=0)
    next(stream)
    assert threading.active_count() == before + 1

    stream.close()

    assert threading.active_count() == before


def test_what_goes_wrong_while_writing_is_raised_where_it_is_read(model, byte_tokenizer):
    with pytest.raises(ConfigError, match="temperature is -1, but it must be 0 or more"):
        list(stream_ids(model, byte_tokenizer, "ab", temperature=-1))


def test_a_character_of_several_tokens_is_shown_by_its_last(byte_tokenizer):
    ids = byte_tokenizer("a한b", add_special_tokens=False)["input_ids"]

    part = PART_OF_CHARACTER
    assert label_tokens(byte_tokenizer, ids) == ["a", part, part, "한", "b"]


def test_bytes_that_spell_nothing_hold_up_no_more_than_three_others(byte_tokenizer):
    first_of_three = byte_tokenizer("한", add_special_tokens=False)["input_ids"][0]
    a = byte_tokenizer("a", add_special_tokens=False)["input_ids"][0]

    labels = label_tokens(byte_tokenizer, [first_of_three, a, a, a, a])

    part = PART_OF_CHARACTER
    assert labels == [part, part, part, "\ufffdaaa", "a"]


def test_tokens_are_drawn_as_text_not_as_html():
    drawn = render_tokens(["<b>", "\n", "x"], num_prompt_tokens=1)

    assert "<b>" not in drawn
    assert drawn.count("<span") == 3
    assert drawn.count("background") == 2
    assert "\u21b5\n" in drawn


def test_attention_is_what_the_formula_gives(model):
    # Without positions and query-key norm, worked from the first layer's own weights.
    model = tiny_model(position_embedding_type="none", use_qk_norm=False, num_key_value_heads=4)
    model.set_attn_implementation("eager")
    ids = [5, 9, 9, 30]

    weights = compute_attention(model, ids)

    layer = model.model.layers[0]
    hidden = layer.attention_norm(model.model.embed_tokens(torch.tensor(ids)))
    query, key = (
        projection(hidden).view(4, 4, 8).transpose(0, 1)
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    scores = query @ key.transpose(1, 2) / 8**0.5
    scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    assert weights.shape == (2, 4, 4, 4)
    torch.testing.assert_close(weights[0], scores.softmax(dim=-1))


def test_the_table_has_the_weights_of_each_pair():
    weights = torch.tensor([[1.0, 0.0], [0.25, 0.75]])

    table = render_attention(["a", "<s>"], weights)

    assert shades(table) == [[1.0], [0.25, 0.75]]
    assert "&#x27;&lt;s&gt;&#x27; looks at &#x27;a&#x27;: 0.250" in table


def test_of_a_long_text_the_newest_tokens_are_drawn_and_the_rest_added_up():
    count = SHOWN_TOKENS + 10
    weights = torch.ones(count, count).tril()
    weights = weights / weights.sum(dim=1, keepdim=True)

    rows = shades(render_attention(["x"] * count, weights))

    assert len(rows) == SHOWN_TOKENS
    assert rows[0] == [pytest.approx(10 / 11, abs=1e-3), pytest.approx(1 / 11, abs=1e-3)]
    assert len(rows[-1]) == SHOWN_TOKENS + 1


def test_a_text_longer_than_the_context_is_looked_at_by_its_end(model, byte_tokenizer):
    demo = Demo(model, byte_tokenizer)

    table = demo.look(list(range(3, 103)), layer=2, head=1)

    assert len(shades(table)) == 32


def test_head_zero_is_the_mean_of_all(model, byte_tokenizer):
    demo = Demo(model, byte_tokenizer)
    ids = [1, 70, 71]

    last = [shades(demo.look(ids, 1, head))[-1] for head in range(5)]

    mean = [sum(column) / 4 for column in zip(*last[1:], strict=True)]
    assert last[0] == pytest.approx(mean, abs=2e-3)


def test_before_anything_is_written_there_is_nothing_to_look_at(model, byte_tokenizer):
    assert Demo(model, byte_tokenizer).look(None, 1, 0) == "Nothing is written yet."


def test_without_gradio_the_error_names_what_to_install(model, byte_tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)

    with pytest.raises(ConfigError, match=r"gradio is not installed.*hf-tinyformer\[demo\]"):
        build_page(model, byte_tokenizer, name="tiny")
