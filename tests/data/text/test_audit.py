"""Duplicates are planted, and all of them must be found."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from hf_tinyformer.data.text.audit import Audit, audit_corpus
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import iterate_documents
from hf_tinyformer.data.text.drop_list import write_drop_list
from hf_tinyformer.errors import ConfigError

pytest.importorskip("datasketch", reason="near duplicates need hf-tinyformer[audit]")

LETTERS = "aeioustrnlmk"
SYLLABLES = [chr(code) for code in range(0xAC00, 0xAC00 + 3000, 7)]


def make_text(seed: int, *, korean: bool = False, num_words: int = 150) -> str:
    drawn = random.Random(seed)
    alphabet = SYLLABLES if korean else LETTERS
    length = (1, 4) if korean else (2, 9)
    words = ["".join(drawn.choices(alphabet, k=drawn.randint(*length))) for _ in range(num_words)]
    return " ".join(words)


def change_form(text: str, seed: int) -> str:
    """The same text in other letters: case, width, white space."""
    drawn = random.Random(seed)
    wide = "".join(
        chr(ord(letter) + 0xFEE0) if "a" <= letter <= "z" and drawn.random() < 0.1 else letter
        for letter in text
    )
    return f"  {wide.capitalize()}".replace(" ", "\n\t", 3)


def change_words(text: str, seed: int) -> str:
    """The same text with two of a hundred words replaced."""
    drawn = random.Random(seed)
    words = text.split(" ")
    for place in drawn.sample(range(len(words)), max(1, len(words) // 50)):
        words[place] = "other"
    return " ".join(words)


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def plant(folder: Path) -> DataConfig:
    """100 copies of each kind in train; 10 of each kind of validation documents in train."""
    texts = [make_text(seed, korean=seed % 2 == 0) for seed in range(500)]
    held_out = [make_text(seed, korean=seed % 2 == 0) for seed in range(1000, 1060)]
    train = [
        *texts,
        *texts[:100],
        *(change_form(text, seed) for seed, text in enumerate(texts[100:200])),
        *(change_words(text, seed) for seed, text in enumerate(texts[200:300])),
        *held_out[:10],
        *(change_form(text, seed) for seed, text in enumerate(held_out[10:20])),
        *(change_words(text, seed) for seed, text in enumerate(held_out[20:30])),
    ]
    random.Random(1).shuffle(train)
    half = len(train) // 2
    write(folder / "a.jsonl", train[:half])
    write(folder / "b.jsonl", [*train[half:], ""])
    write(folder / "held_out.jsonl", [*held_out, *held_out[40:45]])
    return DataConfig(
        files=[str(folder / "[ab].jsonl")], validation_files=[str(folder / "held_out.jsonl")]
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return plant(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def found(corpus: DataConfig) -> Audit:
    return audit_corpus(corpus)


def test_all_planted_duplicates_are_found_and_no_other(found: Audit) -> None:
    for kind in ("exact", "normalized", "near"):
        assert found.report[kind] == {
            "copies_within_train": 100,
            "copies_within_validation": 5 if kind == "exact" else 0,
            "train_also_in_validation": 10,
            "validation_also_in_train": 10,
        }, kind
    assert found.report["documents"] == {"train": 830, "validation": 65}
    assert found.report["would_drop"] == {"train": 330, "validation": 5}


def test_search_says_how_often_it_was_wrong(found: Audit) -> None:
    search = found.report["search"]

    assert search["pairs_confirmed"] == 110
    assert search["pairs_refused"] == search["pairs_compared_in_full"] - 110
    # 1 - (1 - 0.8^6)^21
    assert search["chance_of_finding_at_threshold"] == 0.9983


def test_examples_say_where_both_stand(corpus: DataConfig, found: Audit) -> None:
    texts = {
        document.source: document.text
        for split in ("train", "validation")
        for document in iterate_documents(corpus, split)
    }
    kinds = [example["kind"] for example in found.report["examples"]]

    assert [kinds.count(kind) for kind in ("exact", "normalized", "near")] == [10, 10, 10]
    for example in found.report["examples"]:
        (_, _, first), (split, source, second) = (
            example[side].split(" ", 2) for side in ("first", "second")
        )
        assert (texts[first] == texts[second]) is (example["kind"] == "exact")
        assert (split, source) in (("train", "corpus"), ("validation", "validation"))
        assert example["similarity"] == 1 or 0.8 <= example["similarity"] < 1


def test_several_processes_find_the_same(corpus: DataConfig, found: Audit) -> None:
    def without_time(audit: Audit) -> dict[str, object]:
        return {name: value for name, value in audit.report.items() if name != "seconds"}

    other = audit_corpus(corpus, workers=2)

    assert without_time(other) == without_time(found)
    assert other.dropped == found.dropped


def test_after_dropping_nothing_is_left(corpus: DataConfig, found: Audit, tmp_path: Path) -> None:
    write_drop_list(tmp_path / "drop.jsonl", found.dropped)
    cleaned = replace(corpus, drop=str(tmp_path / "drop.jsonl"))

    again = audit_corpus(cleaned)

    assert again.report["documents"] == {"train": 500, "validation": 60}
    for kind in ("exact", "normalized", "near"):
        assert set(again.report[kind].values()) == {0}, kind


def test_what_is_left_is_one_of_each_and_all_of_validation(
    corpus: DataConfig, found: Audit, tmp_path: Path
) -> None:
    write_drop_list(tmp_path / "drop.jsonl", found.dropped)
    cleaned = replace(corpus, drop=str(tmp_path / "drop.jsonl"))

    before = {document.text for document in iterate_documents(corpus, "validation")}
    held_out = [document.text for document in iterate_documents(cleaned, "validation")]
    train = [document.text for document in iterate_documents(cleaned, "train") if document.text]

    assert sorted(held_out) == sorted(before)
    assert len(train) == len(set(train)) == 500
    assert not before & set(train)


def test_near_duplicates_of_near_duplicates_do_not_take_each_other_away(tmp_path: Path) -> None:
    # A chain: each is near the one before, but the third is far from the first.
    words = make_text(7, num_words=200).split(" ")
    chain = [" ".join(["other"] * (20 * step) + words[20 * step :]) for step in range(4)]
    write(tmp_path / "texts.jsonl", [*chain, *(make_text(seed) for seed in range(60))])
    config = DataConfig(files=[str(tmp_path / "texts.jsonl")], validation_fraction=0.1)
    audit = audit_corpus(config, threshold=0.85)

    dropped = {entry.text for entry in audit.dropped}

    assert len(dropped) == 2
    write_drop_list(tmp_path / "drop.jsonl", audit.dropped)
    left = audit_corpus(replace(config, drop=str(tmp_path / "drop.jsonl")), threshold=0.85)
    assert left.report["search"]["pairs_confirmed"] == 0


def test_of_equal_documents_on_one_line_of_json_one_stays(tmp_path: Path) -> None:
    texts = ["a", "b", "a", "a", "b", "c"]
    path = tmp_path / "texts.json"
    path.write_text(json.dumps([{"text": text} for text in texts]))
    config = DataConfig(files=[str(path)], validation_fraction=1e-9)
    audit = audit_corpus(config, near=False)
    write_drop_list(tmp_path / "drop.jsonl", audit.dropped)

    cleaned = replace(config, drop=str(tmp_path / "drop.jsonl"))

    assert [document.text for document in iterate_documents(cleaned, "train")] == ["a", "b", "c"]


def test_an_example_that_begins_with_a_screen_of_white_space_has_an_empty_excerpt(
    tmp_path: Path,
) -> None:
    write(tmp_path / "texts.jsonl", [" " * 400 + "a"] * 2)
    config = DataConfig(files=[str(tmp_path / "texts.jsonl")], validation_fraction=1e-9)

    examples = audit_corpus(config, near=False).report["examples"]

    assert [example["excerpt"] for example in examples] == [""]


def test_a_corpus_that_is_prepared_and_not_named_cannot_be_audited() -> None:
    with pytest.raises(ConfigError, match=r"data\.prepared is store, but an audit reads the text"):
        audit_corpus(DataConfig(prepared="store"))


def test_a_threshold_that_everything_reaches_is_refused(corpus: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"--threshold is 0\.3.*0\.5 and 1"):
        audit_corpus(corpus, threshold=0.3)


def test_near_duplicates_without_datasketch_name_the_extra(
    corpus: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)

    with pytest.raises(ConfigError, match=r"pip install 'hf-tinyformer\[audit\]'.*--no-near"):
        audit_corpus(corpus)

    assert audit_corpus(corpus, near=False).report["near"] is None
