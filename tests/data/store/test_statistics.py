import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from hf_tinyformer.data.store.preparation import write_token_store
from hf_tinyformer.data.store.statistics import (
    Lengths,
    add_tokens,
    describe_corpus,
    describe_store,
    draw_lengths,
)
from hf_tinyformer.data.store.tokens import open_token_store
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import iterate_documents
from hf_tinyformer.data.text.documents import Document
from hf_tinyformer.data.text.scripts import NAMES, count_scripts, name_shares
from hf_tinyformer.data.text.sources import WeightedSource


def script_counts(text: str) -> dict[str, int]:
    counts = count_scripts([text])
    return {name: int(count) for name, count in zip(NAMES, counts, strict=True) if count}


def test_characters_are_counted_by_script() -> None:
    text = "Hello, 나는 漢字 ひらカタ привет Ω 123 🙂"

    assert script_counts(text) == {
        "Latin": 5,
        "Hangul": 2,
        "Han": 2,
        "Hiragana": 2,
        "Katakana": 2,
        "Cyrillic": 6,
        "Greek": 1,
        "common": 1 + 7 + 3 + 1,  # the comma, seven spaces, three digits, an emoji
    }


def test_jamo_syllables_and_full_width_letters_have_their_script() -> None:
    assert script_counts(unicodedata.normalize("NFD", "한글")) == {"Hangul": 6}
    assert script_counts("\uff21\u3131") == {"Latin": 1, "Hangul": 1}


def test_scripts_agree_with_the_names_of_characters() -> None:
    # Another source of the same fact: Python's own table of names.
    words = {"HANGUL SYLLABLE": "Hangul", "CJK UNIFIED": "Han", "CYRILLIC SMALL": "Cyrillic"}
    words |= {"THAI CHARACTER": "Thai", "HIRAGANA LETTER": "Hiragana", "LATIN SMALL": "Latin"}
    checked = 0
    for code in range(0x20, 0x11000):
        name = unicodedata.name(chr(code), "")
        for word, script in words.items():
            if name.startswith(word) and code not in range(0xD800, 0xE000):
                assert script_counts(chr(code)) == {script: 1}, name
                checked += 1
    assert checked > 11_172


def test_shares_are_of_all_characters_largest_first() -> None:
    assert list(name_shares(count_scripts(["aaab나 "])).items()) == [
        ("Latin", 4 / 6),
        ("Hangul", 1 / 6),
        ("common", 1 / 6),
    ]


def test_lengths_know_their_ends_and_mean_exactly() -> None:
    lengths = Lengths("characters")
    lengths.add(np.array([1, 2, 3]))
    lengths.add(np.array([1000]))

    summary = lengths.summary()

    assert (summary["least"], summary["greatest"], summary["mean"]) == (1, 1000, 251.5)
    assert summary["histogram"][0] == (1, 2, 1)
    assert summary["histogram"][1] == (2, 4, 2)
    assert summary["histogram"][-1] == (512, 1024, 1)


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_are_right_to_three_percent(seed: int) -> None:
    drawn = np.random.default_rng(seed).lognormal(6, 1.5, 20_000).astype(np.int64) + 1
    lengths = Lengths("tokens")
    for part in np.array_split(drawn, 7):
        lengths.add(part)

    for share in (0.5, 0.9, 0.99):
        # Half a bin of a sixteenth of a doubling is 2.2 %, the rest is rounding to whole numbers.
        assert lengths.quantile(share) == pytest.approx(np.quantile(drawn, share), rel=0.03, abs=1)


def test_a_power_of_two_opens_its_own_bin() -> None:
    lengths = Lengths("tokens")
    lengths.add(2 ** np.arange(40))

    assert [count for *_, count in lengths.by_doubling()] == [1] * 40


@pytest.fixture
def corpus(tmp_path: Path) -> DataConfig:
    for name, texts in {"ko": ["나는 학교에", "간다", ""], "en": ["one two", "three"] * 30}.items():
        lines = [
            json.dumps({"text": f"{text} {n}" if text else ""}) for n, text in enumerate(texts)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return DataConfig(
        sources={
            name: WeightedSource(files=[str(tmp_path / f"{name}.jsonl")]) for name in ("ko", "en")
        },
        validation_fraction=0.3,
    )


def test_groups_add_up_to_the_corpus(corpus: DataConfig) -> None:
    groups = describe_corpus(corpus)

    assert [(group.split, group.source) for group in groups][:2] == [
        ("train", "ko"),
        ("train", "en"),
    ]
    for split in ("train", "validation"):
        texts = [document.text for document in iterate_documents(corpus, split) if document.text]
        own = [group for group in groups if group.split == split]
        assert sum(group.documents for group in own) == len(texts)
        assert sum(group.bytes for group in own) == sum(len(text.encode()) for text in texts)
        assert sum(group.characters or 0 for group in own) == sum(map(len, texts))
        assert sum(int(group.scripts.sum()) for group in own) == sum(map(len, texts))
    assert sum(group.empty_documents for group in groups) == 1
    korean = next(group for group in groups if group.source == "ko").summary()
    assert next(iter(korean["scripts"])) == "Hangul"


def make_store(corpus: DataConfig, folder: Path, tokenizer: object) -> object:
    documents = {s: list(iterate_documents(corpus, s)) for s in ("train", "validation")}
    write_token_store(folder, tokenizer=tokenizer, documents=documents, facts={})
    return open_token_store(folder)


def test_a_store_gives_the_lengths_of_its_documents(
    corpus: DataConfig, bpe: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = make_store(corpus, tmp_path / "tokens", bpe)
    # Documents lie across the borders of what is looked at together.
    monkeypatch.setattr("hf_tinyformer.data.store.statistics._POSITIONS_AT_ONCE", 7)

    train, validation = describe_store(stores, bpe)

    texts = [document.text for document in iterate_documents(corpus, "train") if document.text]
    expected = [len(bpe(text)["input_ids"]) + 1 for text in texts]  # and </s>
    assert train.lengths.total == sum(expected) == train.tokens
    assert (train.lengths.least, train.lengths.greatest) == (min(expected), max(expected))
    assert sum(train.lengths.bins) == train.documents == len(texts)
    assert validation.split == "validation"
    assert train.empty_documents + validation.empty_documents == 1
    # Few documents: the sample is all of them, some more than once.
    assert 0.05 < train.summary()["scripts"].get("Latin", 0) < 1


def test_tokens_are_taken_over_from_a_store_of_the_same_text_only(
    bpe: object, tmp_path: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(40))
    )
    config = DataConfig(files=[str(tmp_path / "texts.jsonl")], validation_fraction=0.3)
    stored = describe_store(make_store(config, tmp_path / "tokens", bpe))
    groups = describe_corpus(config)

    assert add_tokens(groups, stored)
    assert groups[0].lengths.unit == "tokens"
    assert groups[0].tokens == stored[0].tokens

    with (tmp_path / "texts.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": "one more"}) + "\n")
    changed = describe_corpus(config)
    assert not add_tokens(changed, stored)
    assert changed[0].lengths.unit == "characters"
    assert "tokens" not in changed[0].summary()


def test_the_picture_is_a_png_that_is_the_same_each_time(
    corpus: DataConfig, tmp_path: Path
) -> None:
    groups = describe_corpus(corpus)

    draw_lengths(groups, tmp_path / "lengths.png")
    first = (tmp_path / "lengths.png").read_bytes()
    draw_lengths(groups, tmp_path / "lengths.png")

    assert first.startswith(b"\x89PNG")
    assert len(first) > 5_000
    assert (tmp_path / "lengths.png").read_bytes() == first


def test_texts_are_counted_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": "나 " * (n + 1)}) + "\n" for n in range(50))
    )
    config = DataConfig(files=[str(tmp_path / "a.jsonl")], validation_fraction=0.2)
    whole = [group.summary() for group in describe_corpus(config)]
    monkeypatch.setattr("hf_tinyformer.data.store.statistics._CHARACTERS_AT_ONCE", 10)

    assert [group.summary() for group in describe_corpus(config)] == whole


def test_a_group_of_one_document(bpe: object, tmp_path: Path) -> None:
    documents = {"train": [Document("one", "a:1")], "validation": [Document("two", "b:1")]}
    write_token_store(tmp_path / "tokens", tokenizer=bpe, documents=documents, facts={})

    train, _ = describe_store(open_token_store(tmp_path / "tokens"))

    assert train.lengths.summary()["median"] == train.tokens
