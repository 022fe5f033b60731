import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forked import killed_at
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_tinyformer.artifacts import read_manifest
from hf_tinyformer.data.store import part_writing, preparation
from hf_tinyformer.data.store.part_writing import encode_part
from hf_tinyformer.data.store.preparation import prepare_token_store
from hf_tinyformer.data.store.tokens import open_token_store
from hf_tinyformer.data.text.documents import Document, Skipped
from hf_tinyformer.data.text.parts import Part
from hf_tinyformer.data.tokenization.fast_encoding import DocumentEncoder
from hf_tinyformer.data.tokenization.tokenizer import encode_documents, train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.errors import DataError

SIZES = {"wiki": [5, 1, 0, 7], "books": [3, 4]}
"""Documents of each part of each source. A part may have none."""


def make_parts(**changes) -> list[Part]:
    return [
        Part(f"{source}/{number:05d}", source, {"count": count, **changes.get(source, {})})
        for source, counts in SIZES.items()
        for number, count in enumerate(counts)
    ]


def read(part: Part, _on_skip=None):
    """Documents that depend on the part alone; one in four is for validation."""
    draw = random.Random(part.name + part.description.get("edition", ""))
    for number in range(part.description["count"]):
        text = "".join(draw.choices("ab한 ", k=draw.randint(0, 30)))
        split = "validation" if number % 4 == 0 else "train"
        yield split, Document(text, f"{part.name}:{number + 1}")


def read_all(parts, split):
    return [d.text for part in parts for side, d in read(part) if side == split and d.text]


@pytest.fixture(scope="module")
def ab():
    config = TokenizerConfig(kind="syllable", byte_fallback=False)
    return train_tokenizer(config, ["ab한 "], sequence_length=8)


def prepare(folder, tokenizer, parts=None, **options):
    options = {"read": read, "facts": {"inputs": "x"}, **options}
    prepare_token_store(folder, tokenizer=tokenizer, parts=parts or make_parts(), **options)
    return open_token_store(folder, check_hashes=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_store_holds_the_documents_of_all_parts_in_their_order(tmp_path, ab):
    stores = prepare(tmp_path / "t", ab)

    for split in ("train", "validation"):
        store = getattr(stores, split)
        texts = read_all(make_parts(), split)
        found = np.split(
            store.read(0, store.num_tokens), store.document_starts(0, store.num_tokens)[1:]
        )
        assert [part.tolist() for part in found] == encode_documents(ab, texts)
        assert store.num_bytes == sum(len(text.encode()) for text in texts)
    assert not (tmp_path / "t.partial").exists()
    assert stores.facts["inputs"] == "x"


def test_each_source_is_counted_and_its_positions_are_its_own(tmp_path, ab):
    stores = prepare(tmp_path / "t", ab)

    assert list(stores.sources) == ["wiki", "books"]
    for split in ("train", "validation"):
        store, end = getattr(stores, split), 0
        for name in SIZES:
            counted = stores.facts["sources"][name][split]
            texts = read_all([part for part in make_parts() if part.source == name], split)
            expected = [index for ids in encode_documents(ab, texts) for index in ids]
            assert counted["start"] == end
            assert store.read(counted["start"], counted["stop"]).tolist() == expected
            assert counted["tokens"] == len(expected)
            assert counted["documents"] == len(texts)
            assert counted["bytes"] == sum(len(text.encode()) for text in texts)
            end = counted["stop"]
        assert end == store.num_tokens
    assert stores.sources["books"] == (stores.sources["wiki"][1], stores.train.num_tokens)


def test_a_source_without_train_documents_has_no_positions(tmp_path, ab):
    def one_side(part, _on_skip):
        for _, document in read(part):
            yield ("validation" if part.source == "books" else "train"), document

    stores = prepare(tmp_path / "t", ab, read=one_side)

    assert list(stores.sources) == ["wiki"]
    assert stores.facts["sources"]["books"]["train"]["tokens"] == 0


def test_order_and_number_of_writers_leave_the_bytes_alone(tmp_path, ab):
    prepare(tmp_path / "one", ab)
    parts = make_parts()
    for share in (parts[1::2], parts[::-1]):  # two writers, the second in the other order
        encoder = DocumentEncoder(ab)
        made = [encode_part(tmp_path / "two", part, encoder=encoder, read=read) for part in share]
    # The second found what the first had made: parts 1, 3 and 5.
    assert made == [False, True, False, True, False, True]

    prepare(tmp_path / "two", ab)

    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_how_documents_are_divided_into_parts_leaves_the_fingerprint_alone(tmp_path, ab):
    documents = [pair for part in make_parts() for pair in read(part)]

    def slice_of(part, _on_skip):
        return documents[part.description["from"] : part.description["to"]]

    def divided(*cuts):
        bounds = [0, *cuts, len(documents)]
        return [
            Part(f"corpus/{n:05d}", "corpus", {"from": low, "to": high})
            for n, (low, high) in enumerate(itertools.pairwise(bounds))
        ]

    found = [
        prepare(tmp_path / str(n), ab, divided(*cuts), read=slice_of).fingerprint
        for n, cuts in enumerate([(), (3,), (1, 2, 2, 15), tuple(range(1, 20))])
    ]

    assert len(set(found)) == 1
    documents[0], documents[4] = documents[4], documents[0]  # both of them for validation
    assert prepare(tmp_path / "x", ab, divided(3), read=slice_of).fingerprint != found[0]


def test_a_part_that_is_there_is_not_read_again(tmp_path, ab):
    seen = []

    def watched(part, _on_skip):
        seen.append(part.name)
        if part.name == "books/00000" and len(seen) < 6:
            raise DataError("books/00000:1 is broken.")
        return read(part)

    with pytest.raises(DataError, match="books"):
        prepare(tmp_path / "t", ab, read=watched)
    assert not (tmp_path / "t").exists()
    prepare(tmp_path / "t", ab, read=watched)

    names = [part.name for part in make_parts()]
    assert seen == [*names[:5], *names[4:]]


@pytest.mark.parametrize("change", ["description", "rules", "tokenizer", "damage"])
def test_a_part_of_other_inputs_or_damaged_is_made_again(tmp_path, ab, change, caplog):
    other = train_tokenizer(
        TokenizerConfig(kind="syllable", byte_fallback=False), ["ab한 c"], sequence_length=8
    )
    encoder = DocumentEncoder(ab)
    for part in make_parts()[:2]:
        encode_part(tmp_path / "t", part, encoder=encoder, read=read, rules=[0.1])
    parts, rules, tokenizer = make_parts(), [0.1], ab
    if change == "description":
        parts = make_parts(wiki={"edition": "2"})
    if change == "rules":
        rules = [0.2]
    if change == "tokenizer":
        tokenizer = other
    if change == "damage":
        file = next((tmp_path / "t.partial").rglob("00000/train-*.arrow"))
        file.write_bytes(file.read_bytes()[:-1])

    stores = prepare(tmp_path / "t", tokenizer, parts, rules=rules)

    assert stores.fingerprint == prepare(tmp_path / "new", tokenizer, parts).fingerprint
    assert ("It is made again." in caplog.text) == (change == "damage")


def test_parts_of_an_older_plan_and_leftovers_of_a_kill_are_removed(tmp_path, ab):
    encoder = DocumentEncoder(ab)
    gone = Part("news/00000", "news", {"count": 3})
    encode_part(tmp_path / "t", gone, encoder=encoder, read=read)
    partial = tmp_path / "t.partial"
    (partial / "parts" / "wiki").mkdir(parents=True)
    (partial / "parts" / "wiki" / ".00001.tmp-99").mkdir()
    (partial / "manifest.json").write_text("half")

    prepare(tmp_path / "t", ab)
    prepare(tmp_path / "new", ab)

    assert contents(tmp_path / "t") == contents(tmp_path / "new")


def test_a_kill_at_any_point_loses_at_most_one_part(tmp_path, ab):
    prepare(tmp_path / "whole", ab)
    expected = contents(tmp_path / "whole")
    log = tmp_path / "log"

    def logged(part, _on_skip):
        with log.open("a") as stream:
            stream.write(part.name + "\n")
        return read(part)

    kills = 0
    # Each start is killed a little later than the one before.
    point = 3
    while killed_at(point, lambda: prepare(tmp_path / "t", ab, read=logged)):
        kills += 1
        point += 2
        if (tmp_path / "t").exists():
            assert contents(tmp_path / "t") == expected
            shutil.rmtree(tmp_path / "t")

    assert kills > 5
    assert contents(tmp_path / "t") == expected
    reads = log.read_text().splitlines()
    after_rename = 1  # a store that was whole, and that this test deleted
    assert len(reads) <= len(make_parts()) * (1 + after_rename * kills)


def test_a_kill_at_every_single_point_leaves_a_store_that_is_completed(tmp_path, ab):
    prepare(tmp_path / "whole", ab)
    expected = contents(tmp_path / "whole")

    point = 1
    while killed_at(point, lambda: prepare(tmp_path / str(point) / "t", ab)):  # noqa: B023
        folder = tmp_path / str(point) / "t"
        made = len(list(folder.parent.glob("t.partial/parts/*/[!.]*/manifest.json")))
        seen = []
        prepare(folder, ab, read=lambda part, _: seen.append(part.name) or read(part))  # noqa: B023
        assert len(seen) == len(make_parts()) - made
        assert contents(folder) == expected
        point += 7  # a step without a common divisor with the points of a part

    assert point > 50


def test_an_older_store_stays_until_the_new_one_is_whole(tmp_path, ab):
    before = prepare(tmp_path / "t", ab).fingerprint
    newer = make_parts(wiki={"edition": "2"})

    def broken(part, _on_skip):
        if part.source == "books":
            raise DataError("books is broken.")
        return read(part)

    with pytest.raises(DataError, match=r"^books is broken\.$"):
        prepare(tmp_path / "t", ab, newer, read=broken)
    assert open_token_store(tmp_path / "t").fingerprint == before

    assert prepare(tmp_path / "t", ab, newer).fingerprint != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]


def test_progress_counts_parts_and_bytes(tmp_path, ab, monkeypatch):
    monkeypatch.setattr(part_writing, "_DOCUMENTS_AT_ONCE", 2)
    seen = []

    stores = prepare(tmp_path / "t", ab, on_progress=lambda *news: seen.append(news))

    assert [total for _, total, _ in seen] == [6] * len(seen)
    assert sorted(seen) == seen
    assert seen[-1] == (5, 6, stores.train.num_bytes + stores.validation.num_bytes)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_too_few_tokens_are_an_error_and_the_parts_stay_for_the_next_try(tmp_path, ab, split):
    def one_sided(part, _on_skip):
        for side, document in read(part):
            yield side, Document("" if side == split else document.text, document.source)

    with pytest.raises(DataError, match=rf"The {split} split has 0 tokens in 0 documents"):
        prepare(tmp_path / "t", ab, read=one_sided)

    assert not (tmp_path / "t").exists()


class Unreliable(DocumentEncoder):
    """Falls out of trust when it meets a text with the letters `ba`."""

    def examine(self, texts):
        if any("ba" in text for text in texts):
            self.distrust("fast 1.0")
        return super().examine(texts)

    @property
    def name(self):
        return "slow 1.0" if "fast 1.0" in self.distrusted else "fast 1.0"


def test_parts_of_a_library_that_fell_out_of_trust_are_made_again(tmp_path, ab, monkeypatch):
    monkeypatch.setattr(preparation, "DocumentEncoder", Unreliable)
    parts = [Part(f"corpus/{n}", "corpus", {"text": text}) for n, text in enumerate(["aa", "ba"])]
    seen = []

    def watched(part, _on_skip):
        seen.append(part.name)
        for split in ("train", "validation"):
            yield split, Document(part.description["text"], "x:1")

    prepare(tmp_path / "t", ab, parts, read=watched)

    # 0 by the fast library; 1 is begun by it and made again; then 0 is made again.
    assert seen == ["corpus/0", "corpus/1", "corpus/1", "corpus/0"]
    for part in parts:
        facts = read_manifest(tmp_path / "t" / "parts" / part.name, kind="tokens part")
        assert facts["encoder"] == "slow 1.0"


def test_distrust_reaches_a_process_that_comes_later(tmp_path, ab, monkeypatch):
    monkeypatch.setattr(preparation, "DocumentEncoder", Unreliable)
    parts = [Part(f"corpus/{n}", "corpus", {"text": text}) for n, text in enumerate(["aa", "ba"])]

    def give(part, _on_skip):
        return [(s, Document(part.description["text"], "x:1")) for s in ("train", "validation")]

    for part in parts:  # two processes, each with an encoder of its own
        encode_part(tmp_path / "t", part, encoder=Unreliable(ab), read=give)
    prepare(tmp_path / "t", ab, parts, read=give)

    facts = [
        read_manifest(tmp_path / "t" / "parts" / part.name, kind="tokens part") for part in parts
    ]
    assert [fact["encoder"] for fact in facts] == ["slow 1.0", "slow 1.0"]


def test_a_part_begun_by_a_library_that_fell_out_of_trust_is_no_result(tmp_path, ab):
    part = Part("corpus/0", "corpus", {})
    readings = []

    def give(part, _on_skip):
        readings.append(part)
        if len(readings) == 2:
            raise DataError("the machine stops.")
        return [(split, Document("ba", "x:1")) for split in ("train", "validation")]

    with pytest.raises(DataError, match="stops"):
        encode_part(tmp_path / "t", part, encoder=Unreliable(ab), read=give)

    assert encode_part(tmp_path / "t", part, encoder=Unreliable(ab), read=give)
    assert not encode_part(tmp_path / "t", part, encoder=Unreliable(ab), read=give)


def test_a_part_of_another_corpus_turns_no_library_off(tmp_path, ab):
    def give(part, _on_skip):
        text = part.description["text"]
        return [(split, Document(text, "x:1")) for split in ("train", "validation")]

    encoder = Unreliable(ab)
    for text, reader in (("ba", Unreliable(ab)), ("aa", encoder)):
        part = Part("corpus/0", "corpus", {"text": text})
        assert encode_part(tmp_path / "t", part, encoder=reader, read=give)

    assert encoder.name == "fast 1.0"


def test_documents_without_tokens_are_left_out_and_counted(tmp_path):
    backend = Tokenizer(models.WordLevel({"?": 0, "a": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")

    def give(_part, _on_skip):
        for split in ("train", "validation"):
            for text in (" \n", "a a a", " ", "", "a"):
                yield split, Document(text, "x:1")

    stores = prepare(tmp_path / "t", bare, [Part("corpus/0", "corpus", {})], read=give)

    assert stores.train.read(0, 4).tolist() == [1] * 4
    assert stores.train.document_starts(0, 4).tolist() == [0, 3]
    assert stores.train.num_bytes == 6
    assert stores.facts["splits"]["train"]["empty_documents"] == 3
    assert stores.facts["sources"]["corpus"]["train"]["empty_documents"] == 3


def test_a_file_whose_name_is_not_utf8_can_be_skipped(tmp_path, ab):
    place = "caf\udce9.txt:1"

    def give(part, on_skip):
        on_skip(Skipped(place, "글 is broken."))
        return read(part, on_skip)

    prepare(tmp_path / "t", ab, read=give)

    written = (tmp_path / "t" / "skipped.jsonl").read_text(encoding="utf-8")
    assert len(written.splitlines()) == len(make_parts())
    assert json.loads(written.splitlines()[0]) == {"place": place, "reason": "글 is broken."}
    assert "글" in written


SLOW_SCRIPT = """
import sys, time
from pathlib import Path
from test_preparation import make_parts, prepare, read
from hf_tinyformer.data.tokenization.tokenizer import load_tokenizer

def slowly(part, _on_skip):
    with open("log", "a") as stream:
        print(part.name, file=stream)
    for pair in read(part):
        time.sleep(0.01)
        yield pair

prepare(Path("t"), load_tokenizer(Path("tokenizer")), read=slowly)
"""


@pytest.mark.slow
def test_killed_processes_are_gone_on_with(tmp_path, ab):
    from hf_tinyformer.data.tokenization.tokenizer import save_tokenizer

    prepare(tmp_path / "whole", ab)
    save_tokenizer(ab, tmp_path / "tokenizer", facts={})
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}",
    }
    draw = random.Random(0)
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_SCRIPT], cwd=tmp_path, env=environment
        )
        log, before = tmp_path / "log", 0
        if log.exists():
            before = len(log.read_text().splitlines())
        while process.poll() is None and kills < 3:
            if log.exists() and len(log.read_text().splitlines()) > before:
                time.sleep(draw.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1

    assert contents(tmp_path / "t") == contents(tmp_path / "whole")
    assert kills == 3
    # Every part once, and one more for each kill at most.
    assert len((tmp_path / "log").read_text().splitlines()) <= len(make_parts()) + kills


def test_the_manifest_names_no_folder_of_this_machine(tmp_path, ab):
    prepare(tmp_path / "t", ab)

    for name, content in contents(tmp_path / "t").items():
        assert str(tmp_path).encode() not in content, name
    assert json.loads((tmp_path / "t" / "manifest.json").read_text())["kind"] == "tokens"


def test_distrust_is_told_in_the_part(tmp_path, ab, caplog):
    with caplog.at_level(logging.WARNING):
        prepare(tmp_path / "t", ab)

    facts = read_manifest(tmp_path / "t" / "parts" / "wiki" / "00000", kind="tokens part")
    assert facts["distrusts"] is None
    assert facts["encoder"].startswith("tokenizers ")
    assert not caplog.records
