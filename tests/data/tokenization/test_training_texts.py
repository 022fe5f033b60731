import logging

import pytest

from hf_tinyformer.data.tokenization import training_texts
from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.data.tokenization.training_texts import choose_texts
from hf_tinyformer.errors import ConfigError


def test_all_texts_come_as_they_are_if_they_fit(texts, caplog):
    size = sum(len(text.encode()) for text in texts)

    with caplog.at_level(logging.INFO):
        assert list(choose_texts(texts, size)) == texts

    assert not caplog.records


def test_a_larger_corpus_is_cut_down_evenly_and_in_order(caplog):
    texts = [f"text {number:05d}" for number in range(10_000)]  # 10 bytes each

    with caplog.at_level(logging.INFO):
        chosen = list(choose_texts(texts, 20_000))

    # The share shrinks by an eighth at a time, so at least seven eighths of the cap are used,
    # give or take what chance leaves (2,000 texts: a standard deviation of about 2 %).
    assert 0.8 * 20_000 < 10 * len(chosen) <= 20_000
    assert chosen == sorted(chosen)
    quarters = [sum(f"text {q}" <= text < f"text {q}~" for text in chosen) for q in range(4)]
    first_half = sum(text < "text 05000" for text in chosen)
    assert 0.45 < first_half / len(chosen) < 0.55, quarters
    assert "learned from" in caplog.text
    assert "of 100,000 bytes" in caplog.text
    assert list(choose_texts(iter(texts), 20_000)) == chosen


def test_a_long_document_is_chosen_in_pieces_and_put_together_again(monkeypatch):
    monkeypatch.setattr(training_texts, "_LONGEST_PIECE", 10)
    lines = "".join(f"line {number:04d}\n" for number in range(500)) + "without an end" * 5

    assert list(choose_texts([lines, "short"], 10_000)) == [lines, "short"]
    chosen = list(choose_texts([lines, "short"], 1_000))
    assert sum(map(len, chosen)) <= 1_000
    assert len(chosen) > 20
    assert all(piece in lines for piece in chosen if piece != "short")


def test_of_one_text_longer_than_the_cap_most_of_the_cap_is_learned_from():
    text = "".join(f"line {number:05d}\n" for number in range(80_000))  # 11 bytes each

    chosen = list(choose_texts([text], 500_000))

    # Pieces of 7,812 bytes, so of the cap a piece or two are left over by chance.
    assert 0.8 * 500_000 < sum(map(len, chosen)) <= 500_000
    assert all(piece in text for piece in chosen)


def test_a_cap_below_every_piece_is_an_error_with_both_sizes():
    with pytest.raises(ConfigError, match=r"train_bytes is 50, but no .* 1000 bytes"):
        list(choose_texts(["x" * 1000], 50))


def test_pieces_end_at_lines_or_spaces_where_there_are_any():
    assert list(training_texts._divide("ab\ncd\nefgh ijklmnopq", 6)) == [
        "ab\ncd\n",
        "efgh",
        " ijklm",
        "nopq",
    ]


def test_a_tokenizer_learns_from_the_chosen_texts_only():
    texts = [f"{'abcd' * 8} {number}" for number in range(100)] + [
        f"{'z' * 40} {number}" for number in range(100)
    ]

    small = train_tokenizer(
        TokenizerConfig(vocab_size=600, train_bytes=200), texts, sequence_length=8
    )
    whole = train_tokenizer(TokenizerConfig(vocab_size=600), texts, sequence_length=8)

    assert len(small) < len(whole)


def test_a_cap_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"tokenizer\.train_bytes is 0, but .* at least 1 byte"):
        TokenizerConfig(train_bytes=0)
