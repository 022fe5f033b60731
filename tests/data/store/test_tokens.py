import itertools
import shutil
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_tinyformer.artifacts import write_folder
from hf_tinyformer.data.store import part_writing
from hf_tinyformer.data.store.preparation import write_token_store
from hf_tinyformer.data.store.tokens import TokenStore, open_token_store
from hf_tinyformer.data.text.documents import Document
from hf_tinyformer.data.tokenization.tokenizer import (
    encode_documents,
    tokenizer_fingerprint,
    train_tokenizer,
)
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.errors import ArtifactError, DataError


def as_documents(texts: list[str]) -> list[Document]:
    return [Document(text, f"t:{number}") for number, text in enumerate(texts, 1)]


def write(folder: Path, tokenizer, texts: list[str], held_out: list[str], **options) -> None:
    documents = {"train": as_documents(texts), "validation": as_documents(held_out)}
    write_token_store(folder, tokenizer=tokenizer, documents=documents, facts={}, **options)


def read_documents(store: TokenStore) -> list[list[int]]:
    everything = store.read(0, store.num_tokens)
    starts = store.document_starts(0, store.num_tokens)
    return [part.tolist() for part in np.split(everything, starts[1:])]


@pytest.fixture
def small_pieces(monkeypatch):
    """Many record batches and files, so that reads cross them."""
    monkeypatch.setattr(part_writing, "_DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr(part_writing, "_TOKENS_A_BATCH", 12)
    monkeypatch.setattr(part_writing, "_TOKENS_A_FILE", 40)


@pytest.fixture(scope="module")
def ab():
    return train_tokenizer(
        TokenizerConfig(kind="syllable", byte_fallback=False), ["ab한"], sequence_length=8
    )


def test_tokens_documents_and_bytes_are_counted_by_hand(tmp_path, ab):
    # Each document gets <s> and </s>; 한 has 3 bytes in UTF-8; x and y are unknown.
    write(tmp_path / "t", ab, ["ab", "", "한xy", ""], ["b", "a"])

    stores = open_token_store(tmp_path / "t")

    assert stores.train.read(0, 9).tolist() == [1, 4, 5, 2, 1, 6, 3, 3, 2]
    assert stores.train.document_starts(0, 9).tolist() == [0, 4]
    assert (stores.train.num_tokens, stores.train.num_documents) == (9, 2)
    assert stores.train.num_bytes == 2 + 5
    counts = stores.facts["splits"]["train"]
    assert counts["unknown_tokens"] == 2
    assert counts["empty_documents"] == 2
    assert (counts["documents"], counts["tokens"], counts["bytes"]) == (2, 9, 7)
    assert stores.validation.read(0, 6).tolist() == [1, 5, 2, 1, 4, 2]
    assert stores.facts["tokenizer"] == tokenizer_fingerprint(ab)
    assert stores.facts["vocab_size"] == len(ab) == 7


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("ab한?", max_size=30), min_size=1, max_size=12).filter(any),
    data=st.data(),
)
def test_documents_in_are_documents_out_and_every_window_reads_right(
    tmp_path, ab, small_pieces, texts, data
):
    write(tmp_path / "t", ab, texts, ["a"])
    expected = encode_documents(ab, [text for text in texts if text])
    store = open_token_store(tmp_path / "t").train
    flat = list(itertools.chain.from_iterable(expected))
    starts = np.cumsum([0, *(len(ids) for ids in expected)])[:-1].tolist()

    assert read_documents(store) == expected

    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    assert store.read(start, stop).tolist() == flat[start:stop]
    between = store.document_starts(start, stop).tolist()
    assert between == [place for place in starts if start <= place < stop]
    rows = np.array(data.draw(st.lists(st.integers(0, len(flat) - 2), max_size=5)), dtype=np.int64)
    assert store.read_rows(rows, 2).tolist() == [flat[row : row + 2] for row in rows]


def test_a_store_of_many_files_reads_as_one(tmp_path, bpe, texts, small_pieces):
    write(tmp_path / "t", bpe, texts, texts[:2])

    store = open_token_store(tmp_path / "t").train

    assert len(list((tmp_path / "t").glob("parts/*/*/train-*.arrow"))) > 10
    assert read_documents(store) == encode_documents(bpe, texts)


def test_how_documents_are_batched_leaves_the_fingerprint_alone(tmp_path, bpe, texts, monkeypatch):
    write(tmp_path / "a", bpe, texts, texts[:2])
    monkeypatch.setattr(part_writing, "_DOCUMENTS_AT_ONCE", 7)
    monkeypatch.setattr(part_writing, "_TOKENS_A_BATCH", 50)
    write(tmp_path / "b", bpe, texts, texts[:2])

    fingerprints = {open_token_store(tmp_path / name).fingerprint for name in "ab"}

    assert len(fingerprints) == 1


def test_the_same_corpus_prepared_elsewhere_gives_the_same_bytes(tmp_path, bpe, texts):
    for place in ("one", "other"):
        time.sleep(0.01)  # a time stamp in a file would show
        write(tmp_path / place / "deep" / "tokens", bpe, texts, texts[:2])

    one, other = tmp_path / "one" / "deep" / "tokens", tmp_path / "other" / "deep" / "tokens"
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    # The store's and the part's manifest; for each split, one data and two description files.
    assert len(names) == 8
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
        assert str(tmp_path).encode() not in (one / name).read_bytes()


def test_the_fingerprint_changes_with_text_order_boundary_split_and_tokenizer(tmp_path, ab):
    other = train_tokenizer(
        TokenizerConfig(kind="syllable", byte_fallback=False), ["abc한"], sequence_length=8
    )
    plain = TokenizerConfig(
        kind="syllable", byte_fallback=False, add_bos_token=False, add_eos_token=False
    )
    bare = train_tokenizer(plain, ["ab한"], sequence_length=8)
    cases = [
        (ab, ["ab", "b"], ["a"]),
        (ab, ["ab", "a"], ["a"]),
        (ab, ["b", "ab"], ["a"]),
        (ab, ["ab", "b"], ["b"]),
        (other, ["ab", "b"], ["a"]),
        (bare, ["ab", "b"], ["ab"]),
        (bare, ["a", "bb"], ["ab"]),
        (bare, ["abb"], ["ab"]),
    ]
    fingerprints = set()
    for number, (tokenizer, texts, held_out) in enumerate(cases):
        write(tmp_path / str(number), tokenizer, texts, held_out)
        fingerprints.add(open_token_store(tmp_path / str(number)).fingerprint)

    assert len(fingerprints) == len(cases)


def test_anyone_with_datasets_can_read_a_store(tmp_path, ab):
    write(tmp_path / "t", ab, ["ab", "한"], ["a"])

    loaded = datasets.load_from_disk(str(tmp_path / "t" / "train"))
    file = tmp_path / "t" / "parts" / "corpus" / "00000" / "train-00000.arrow"
    single = datasets.Dataset.from_file(str(file))

    for found in (loaded, single):
        assert found["input_ids"][:] == [[1, 4, 5, 2], [1, 6, 2]]
        assert found["num_bytes"][:] == [2, 3]
        assert found.features["input_ids"].feature.dtype == "uint16"


def test_a_vocabulary_beyond_sixteen_bits_is_stored_in_thirty_two(tmp_path):
    # 65,533 characters and 4 special tokens make 65,537: one more than 16 bits can number.
    characters = "".join(chr(code) for code in range(0x20000, 0x20000 + 65_533))
    config = TokenizerConfig(kind="syllable", vocab_size=70_000, byte_fallback=False)
    large = train_tokenizer(config, [characters], sequence_length=8)
    fits = train_tokenizer(config, [characters[:-1]], sequence_length=8)

    write(tmp_path / "large", large, [characters[-1] + characters[0]], ["a"])
    write(tmp_path / "fits", fits, [characters[-2] + characters[0]], ["a"])

    stores = open_token_store(tmp_path / "large")
    assert stores.train.read(0, 4).tolist() == [1, 65_536, 4, 2]
    assert stores.facts["dtype"] == "uint32"
    stores = open_token_store(tmp_path / "fits")
    assert stores.train.read(0, 4).tolist() == [1, 65_535, 4, 2]
    assert stores.facts["dtype"] == "uint16"


def test_special_tokens_in_a_document_are_stored_as_letters(tmp_path, bpe):
    write(tmp_path / "t", bpe, ["<s></s><pad> x </s>"], ["<s>"])

    store = open_token_store(tmp_path / "t").train

    found = store.read(0, store.num_tokens)
    assert (found[0], found[-1]) == (1, 2)
    assert not np.isin(found[1:-1], [0, 1, 2]).any()


def test_the_store_is_mapped_and_not_copied(tmp_path, bpe, texts):
    write(tmp_path / "t", bpe, texts, texts[:2])

    store = open_token_store(tmp_path / "t").train

    assert not store._mapped
    store.read(0, 2)
    (mapped,) = store._mapped.values()
    for view in (*mapped.ids, *mapped.offsets):
        assert not view.flags.owndata
        assert not view.flags.writeable
    maps = Path("/proc/self/maps")
    if maps.exists():  # Linux
        assert "train-00000.arrow" in maps.read_text()
        descriptors = [link.resolve().name for link in Path("/proc/self/fd").iterdir()]
        assert "train-00000.arrow" not in descriptors  # thousands may be mapped, not held open


def test_facts_of_the_caller_are_kept(tmp_path, ab):
    documents = {"train": as_documents(["ab"]), "validation": as_documents(["b"])}
    facts = {"inputs": {"files": ["a.txt"]}}
    write_token_store(tmp_path / "t", tokenizer=ab, documents=documents, facts=facts)

    assert open_token_store(tmp_path / "t").facts["inputs"] == {"files": ["a.txt"]}
    assert facts == {"inputs": {"files": ["a.txt"]}}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_tokens_is_an_error_and_leaves_no_store(tmp_path, ab, split):
    texts = {"train": ["ab"], "validation": ["ab"], split: ["", ""]}

    with pytest.raises(DataError, match=rf"The {split} split has 0 tokens in 0 documents"):
        write(tmp_path / "t", ab, texts["train"], texts["validation"])

    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_corpus_leaves_the_older_store_alone(tmp_path, ab):
    write(tmp_path / "t", ab, ["ab"], ["a"])
    before = open_token_store(tmp_path / "t").fingerprint

    def broken():
        yield Document("b", "t:1")
        raise DataError("t:2 is broken.")

    documents = {"train": broken(), "validation": as_documents(["a"])}
    with pytest.raises(DataError, match=r"^t:2 is broken\.$"):
        write_token_store(tmp_path / "t", tokenizer=ab, documents=documents, facts={})

    assert open_token_store(tmp_path / "t").fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_document_too_large_for_the_format_is_named(tmp_path, ab, monkeypatch):
    monkeypatch.setattr(part_writing, "_LARGEST_DOCUMENT", 4)

    with pytest.raises(DataError, match=r"t:2 is one document of 5 bytes, but .* have 4"):
        write(tmp_path / "t", ab, ["ab", "ababa"], ["a"])


def test_a_missing_cut_or_changed_file_is_named(tmp_path, bpe, texts):
    whole = tmp_path / "whole"
    write(whole, bpe, texts, texts[:2])
    name = "parts/corpus/00000/train-00000.arrow"

    with pytest.raises(ArtifactError, match=r"gone is not there"):
        open_token_store(tmp_path / "gone")
    missing = Path(shutil.copytree(whole, tmp_path / "missing"))
    (missing / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name} has None bytes, but manifest"):
        open_token_store(missing)
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / name).write_bytes((cut / name).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=rf"{name} has \d+ bytes, but manifest"):
        open_token_store(cut)
    changed = Path(shutil.copytree(whole, tmp_path / "changed"))
    raw = bytearray((changed / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (changed / name).write_bytes(raw)
    with pytest.raises(ArtifactError, match=rf"{name} does not have the SHA-256"):
        open_token_store(changed, check_hashes=True)


def test_rubbish_of_the_right_size_is_an_error_when_it_is_read(tmp_path, bpe, texts):
    write(tmp_path / "t", bpe, texts, texts[:2])
    file = tmp_path / "t" / "parts" / "corpus" / "00000" / "train-00000.arrow"
    file.write_bytes(bytes(file.stat().st_size))
    store = open_token_store(tmp_path / "t").train

    with pytest.raises(ArtifactError, match=r"arrow (cannot be read as Arrow|holds 0 tokens)"):
        store.read(0, 2)


def test_files_that_do_not_fit_the_counts_are_an_error(tmp_path, ab):
    write(tmp_path / "t", ab, ["ab"], ["a"])

    files = [["parts/corpus/00000/train-00000.arrow", 5, 1]]
    store = TokenStore(tmp_path / "t", files, num_bytes=2)

    with pytest.raises(ArtifactError, match=r"arrow holds 4 tokens in 1 documents, but .* says 5"):
        store.read(0, 2)


def test_a_store_of_another_layout_is_refused(tmp_path, ab):
    write(tmp_path / "t", ab, ["ab"], ["a"])
    facts = open_token_store(tmp_path / "t").facts
    with write_folder(tmp_path / "old", kind="tokens", facts={**facts, "layout": 1}):
        pass

    with pytest.raises(ArtifactError, match=r"old has layout 1, but this version reads layout"):
        open_token_store(tmp_path / "old")
