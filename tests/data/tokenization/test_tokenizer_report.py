import pytest

from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.data.tokenization.tokenizer_report import report_tokenizer
from hf_tinyformer.errors import DataError


def test_figures_of_words_counted_by_hand():
    config = TokenizerConfig(kind="word", vocab_size=4 + 3)
    tokenizer = train_tokenizer(config, ["나는 간다\n나는 간다\n"], sequence_length=8)
    # The vocabulary: 나는 (at the start of a line), " 간다" and the line's end.

    report = report_tokenizer("words", tokenizer, ["나는 간다\n나는 뷁", "", "나는"])

    assert (report.texts, report.words, report.tokens) == (2, 5, 6)
    assert (report.characters, report.bytes) == (5 + 1 + 4 + 2, 13 + 1 + 10 + 6)
    assert (report.unknown_tokens, report.hidden_bytes) == (1, 4)  # " 뷁"
    assert (report.used_tokens, report.vocab_size) == (4, 7)
    assert (report.texts_unchanged, report.texts_equivalent, report.texts_lost) == (1, 0, 1)
    assert report.most_frequent[0] == ("나는", 3)
    assert report.longest[0] == (" 간다", 1)
    rates = report.rates()
    assert rates["bytes_per_token"] == pytest.approx(30 / 6)
    assert rates["words_per_token"] == pytest.approx(5 / 6)
    assert rates["unknown_rate"] == pytest.approx(1 / 6)
    assert rates["hidden_rate"] == pytest.approx(4 / 30)
    assert rates["vocabulary_use"] == pytest.approx(4 / 7)
    assert report.to_json()["texts_lost"] == 1


def test_jamo_give_text_back_and_say_where_only_the_spelling_is_another(every_kind):
    texts = ["간다", "\u1100\u1161\u11ab다", "cafe\u0301"]

    report = report_tokenizer("jamo", every_kind["jamo"], texts)

    assert (report.texts_unchanged, report.texts_equivalent, report.texts_lost) == (2, 1, 0)
    assert report.hidden_bytes == 0


def test_lists_are_as_long_as_asked_for_and_readable(every_kind):
    report = report_tokenizer("bytes", every_kind["bytes"], ["가 a"], num_shown=2)

    # A byte that is a part of a character has no length of its own.
    assert sorted(piece for piece, _ in report.longest) == [" ", "a"]
    assert len(report.longest) == len(report.most_frequent) == 2


def test_no_text_is_an_error(bpe):
    with pytest.raises(DataError, match="gives 0 tokens"):
        report_tokenizer("bpe", bpe, ["", ""])
