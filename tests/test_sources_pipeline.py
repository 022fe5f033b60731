"""Several sources, faults and pins, through the whole walk."""

import json
from pathlib import Path

import pytest
from tiny_run import words_for, write_corpus

from hf_tinyformer.data.store.tokens import open_token_store
from hf_tinyformer.errors import ArtifactError, DataError
from hf_tinyformer.pipeline import run_pipeline
from hf_tinyformer.prepared import pin_data, prepare_corpus
from hf_tinyformer.run_config import load_run_config
from hf_tinyformer.training.metrics import NullReporter


def mixed_words(folder: Path, *more: str) -> list[str]:
    write_corpus(folder / "texts")
    lines = [json.dumps({"title": f"n{n}", "body": f"some body {n} " * 30}) for n in range(60)]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    words = [word for word in words_for(folder) if not word.startswith("data.files")]
    return [
        *words,
        f"data.sources.texts.files=[{folder}/texts]",
        "data.sources.texts.weight=1",
        f"data.sources.records.files=[{folder}/records.jsonl]",
        "data.sources.records.template='{title}: {body}'",
        "data.sources.records.weight=3",
        *more,
    ]


def run(words: list[str]):
    config = load_run_config(None, words)
    return config, run_pipeline(config, reporter=NullReporter(), cpu=True)


def read_metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_sources_are_mixed_by_weight_and_their_epochs_counted(tmp_path: Path):
    config, result = run(mixed_words(tmp_path))

    stores = open_token_store(config.run_dir / "tokens")
    texts, records = stores.sources["texts"], stores.sources["records"]
    assert (texts[0], texts[1], records[1]) == (0, records[0], stores.train.num_tokens)
    rows = {name: stop - start for name, (start, stop) in stores.sources.items()}
    drawn = {name: result.training.epochs[name] * (rows[name] // 32 - 1) for name in rows}
    assert sum(drawn.values()) == pytest.approx(12 * 8)
    assert drawn["records"] > drawn["texts"]
    last = [line for line in read_metrics(config.run_dir) if "loss" in line][-1]
    assert last["epochs/texts"] == pytest.approx(result.training.epochs["texts"], abs=1e-6)
    assert last["epochs/records"] == pytest.approx(result.training.epochs["records"], abs=1e-6)
    card = (result.final_dir / "README.md").read_text()
    assert "texts (25.0% of the rows), records.jsonl (75.0% of the rows)" in card


def test_a_changed_weight_cuts_no_text_anew_but_is_another_run(tmp_path: Path):
    words = mixed_words(tmp_path)
    config, _ = run(words)
    store = config.run_dir / "tokens"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}

    changed = r"data\.sources\.texts\.weight is 2\.0, but .* was written with 1\.0"
    with pytest.raises(ArtifactError, match=changed):
        run([*words, "data.sources.texts.weight=2"])

    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_what_is_skipped_is_counted_and_listed_with_the_tokens(tmp_path: Path, caplog):
    words = mixed_words(tmp_path, "data.on_error=skip")
    with (tmp_path / "records.jsonl").open("a") as stream:
        stream.write('{"title": "n", "body": null}\nbroken\n')
    (tmp_path / "texts" / "bad.txt").write_bytes(b"caf\xe9")
    config = load_run_config(None, words)

    stores = prepare_corpus(config, tmp_path / "prepared")

    lines = (tmp_path / "prepared" / "tokens" / "skipped.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert [Path(entry["place"]).name for entry in listed] == [
        *("bad.txt:1", "records.jsonl:61", "records.jsonl:62")
    ]
    assert "bad.txt:1:4 is the byte 0xe9" in listed[0]["reason"]
    assert stores.facts["skipped"] == 3
    assert "Skipped 3 (data.on_error is skip), first: " in caplog.text
    with pytest.raises(DataError, match=r"bad\.txt:1:4 is the byte 0xe9"):
        prepare_corpus(load_run_config(None, words[:-1]), tmp_path / "strict")


def test_the_commits_a_run_began_with_are_kept_in_its_folder(tmp_path: Path, monkeypatch):
    commits = iter(["a" * 40, "b" * 40])
    monkeypatch.setattr("hf_tinyformer.data.text.corpus.pin_revision", lambda *_: next(commits))
    config = load_run_config(None, ["data.dataset=some/set", f"output_dir={tmp_path}"])

    first = pin_data(config, config.run_dir)
    again = pin_data(config, config.run_dir)

    assert first.data.dataset_revision == again.data.dataset_revision == "a" * 40
    path = config.run_dir / "revisions.json"
    assert json.loads(path.read_text()) == {"some/set@main": "a" * 40}
    path.unlink()
    assert pin_data(config, config.run_dir).data.dataset_revision == "b" * 40
    path.write_text("{")
    with pytest.raises(ArtifactError, match=r"revisions\.json is not as it was written"):
        pin_data(config, config.run_dir)
