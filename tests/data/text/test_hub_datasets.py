"""Hub data sets, read by `datasets` itself from a small Hub on this machine."""

import io
import json
import threading
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_tinyformer.data.text import hub_datasets
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import (
    describe_inputs,
    iterate_documents,
    pin_revisions,
    plan_parts,
    read_part,
)
from hf_tinyformer.errors import ConfigError, DataError

from .dataset_hub import DatasetHub, DatasetRepo

NUM_SHARDS, ROWS = 4, 7


@pytest.fixture(autouse=True)
def _no_network():
    """In place of the room's own fixture: here a Hub on this machine may be asked."""


@pytest.fixture(scope="module")
def server():
    server = DatasetHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = {
        (huggingface_hub.constants, "ENDPOINT"): server.endpoint,
        (huggingface_hub.constants, "HF_HUB_OFFLINE"): False,
        (huggingface_hub.constants, "HF_HUB_CACHE"): str(tmp_path / "hub"),
        (datasets.config, "HF_ENDPOINT"): server.endpoint,
        (datasets.config, "HF_HUB_OFFLINE"): False,
        (datasets.config, "HF_DATASETS_OFFLINE"): False,
        (datasets.config, "HF_DATASETS_CACHE"): tmp_path / "cache",
        (datasets.config, "STREAMING_READ_MAX_RETRIES"): 1,
        (datasets.config, "STREAMING_READ_RETRY_INTERVAL"): 0,
    }
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    settings[huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE"] = template
    url = server.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"
    settings[datasets.config, "HUB_DATASETS_URL"] = url
    for (module, name), value in settings.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    datasets.disable_progress_bars()
    hub_datasets._load_commit.cache_clear()
    huggingface_hub.HfFileSystem.clear_instance_cache()
    server.repos.clear()
    server.requests.clear()
    server.broken = None
    server.repos["me/set"] = DatasetRepo()
    server.repos["me/set"].commit(shards("one"))
    yield server
    hub_datasets._load_commit.cache_clear()
    huggingface_hub.HfFileSystem.clear_instance_cache()
    datasets.enable_progress_bars()


def parquet(texts: list[str | None]) -> bytes:
    sink = io.BytesIO()
    table = {"title": [f"title {n}" for n in range(len(texts))], "text": pa.array(texts)}
    pq.write_table(pa.table(table), sink)
    return sink.getvalue()


def name_of(shard: int) -> str:
    return f"data/train-{shard:05d}-of-{NUM_SHARDS:05d}.parquet"


def shards(version: str) -> dict[str, bytes]:
    files = {
        name_of(shard): parquet([f"{version} {shard}.{row}" for row in range(ROWS)])
        for shard in range(NUM_SHARDS)
    }
    return {"README.md": b"---\nlicense: cc0-1.0\n---\n", **files}


def streamed(**settings) -> DataConfig:
    if not Path("v.jsonl").exists():
        Path("v.jsonl").write_text('{"text": "held out", "title": "of the corpus"}')
    defaults = {"dataset": "me/set", "streaming": True, "validation_files": ["v.jsonl"]}
    return DataConfig(**{**defaults, **settings})


def texts_of(config: DataConfig) -> list[str]:
    return [document.text for document in iterate_documents(config, "train")]


def every_text(version: str = "one") -> list[str]:
    return [f"{version} {shard}.{row}" for shard in range(NUM_SHARDS) for row in range(ROWS)]


def test_a_streamed_data_set_is_read_whole_shard_by_shard_and_nothing_is_kept(hub, tmp_path):
    config, _ = pin_revisions(streamed())

    found = texts_of(config)

    assert sorted(found) == every_text()
    order = [text.split(".")[0] for text in found[::ROWS]]
    assert [text.split(".")[0] for text in found] == [name for name in order for _ in range(ROWS)]
    assert not list(tmp_path.rglob("*.parquet"))
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_the_order_of_shards_is_a_function_of_the_seed(hub):
    orders = {}
    for seed in (0, 1, 2, None):
        config, _ = pin_revisions(streamed(shard_seed=seed))
        orders[seed] = [part.description["shard"][0] for part in plan_parts(config)[:-1]]
        assert sorted(orders[seed]) == [0, 1, 2, 3]

    assert orders[None] == [0, 1, 2, 3]
    assert orders[0] == [0, 2, 1, 3]  # written down once: the same for ever
    assert len({tuple(order) for order in orders.values()}) > 2


def test_a_part_is_read_alone_and_asks_for_no_other_shard(hub):
    config, _ = pin_revisions(streamed(shard_seed=None))
    part = plan_parts(config)[2]
    hub.requests.clear()

    found = [document for _, document in read_part(config, part)]

    assert [document.text for document in found] == [f"one 2.{row}" for row in range(ROWS)]
    assert found[0].source == "me/set:shard-00002:1"
    fetched = {path.rsplit("/", 1)[1] for path in hub.paths() if path.endswith(".parquet")}
    assert fetched == {"train-00002-of-00004.parquet"}


def test_reading_goes_on_at_the_commit_it_began_with_when_the_branch_moves(hub):
    config, known = pin_revisions(streamed())
    parts = plan_parts(config)
    first = [document.text for _, document in read_part(config, parts[0])]
    hub.repos["me/set"].commit(shards("two"))

    # A new start: the settings as the user wrote them, and the commits found before.
    hub_datasets._load_commit.cache_clear()
    again, pinned = pin_revisions(streamed(), json.loads(json.dumps(known)))

    assert (again, pinned) == (config, known)
    assert plan_parts(again) == parts
    rest = [document.text for part in parts[1:-1] for _, document in read_part(again, part)]
    assert sorted(first + rest) == every_text("one")
    fresh, _ = pin_revisions(streamed())
    assert sorted(texts_of(fresh)) == every_text("two")
    assert describe_inputs(fresh) != describe_inputs(config)


def test_a_commit_that_is_known_needs_no_hub_to_be_described(hub):
    config, known = pin_revisions(streamed())
    hub.requests.clear()

    again, _ = pin_revisions(streamed(), known)

    assert describe_inputs(again) == describe_inputs(config)
    assert describe_inputs(again)["corpus"]["revision"] == hub.repos["me/set"].main
    assert hub.requests == []


def test_only_so_many_shards_and_documents_are_taken_and_the_rest_is_never_asked_for(hub):
    config, _ = pin_revisions(streamed(shard_seed=None, max_shards=3, max_documents=8))

    # 8 documents of 3 shards: 3, 3 and 2.
    assert texts_of(config) == [
        *("one 0.0", "one 0.1", "one 0.2", "one 1.0", "one 1.1", "one 1.2", "one 2.0", "one 2.1")
    ]
    assert not [path for path in hub.paths() if path.endswith(name_of(3))]
    fewer, _ = pin_revisions(streamed(shard_seed=None, max_documents=2))
    assert texts_of(fewer) == ["one 0.0", "one 1.0"]


def test_a_template_joins_columns_of_a_streamed_data_set(hub):
    config, _ = pin_revisions(streamed(shard_seed=None, template="{title}: {text}", max_shards=1))

    assert texts_of(config)[:2] == ["title 0: one 0.0", "title 1: one 0.1"]


def test_a_whole_data_set_is_read_in_its_own_order_from_the_pinned_commit(hub):
    config, known = pin_revisions(streamed(streaming=False))
    hub.repos["me/set"].commit(shards("two"))

    assert texts_of(config) == every_text("one")
    assert list(known) == ["me/set@main"]


def test_other_kinds_of_files_are_streamed_too(hub):
    lines = "".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(5))
    hub.repos["me/lines"] = DatasetRepo()
    hub.repos["me/lines"].commit({"train.jsonl": lines.encode()})

    config, _ = pin_revisions(streamed(dataset="me/lines"))

    assert texts_of(config) == [f"line {n}" for n in range(5)]


def test_a_null_in_a_shard_is_named_and_may_be_skipped(hub):
    files = shards("one") | {name_of(1): parquet(["a", None, "c"])}
    hub.repos["me/set"].commit(files)
    config, _ = pin_revisions(streamed(shard_seed=None))

    with pytest.raises(DataError, match=r"me/set:shard-00001:2 has null in field 'text'"):
        texts_of(config)
    config, _ = pin_revisions(streamed(shard_seed=None, on_error="skip"))
    skipped = []
    found = [
        d.text for part in plan_parts(config) for _, d in read_part(config, part, skipped.append)
    ]
    assert found[ROWS : ROWS + 2] == ["a", "c"]
    assert [place for place, _ in skipped] == ["me/set:shard-00001:2"]


def test_a_shard_that_cannot_be_fetched_is_named(hub):
    config, _ = pin_revisions(streamed(shard_seed=None))
    parts = plan_parts(config)
    hub.broken = name_of(2)

    with pytest.raises(
        DataError, match=r"me/set:shard-00002:1 cannot be read \(Bad request"
    ) as error:
        list(read_part(config, parts[2]))
    assert "\n" not in str(error.value)
    hub.broken = None
    assert len(list(read_part(config, parts[2]))) == ROWS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "me/none"}, r"data\.dataset is me/none, but it cannot be loaded"),
        ({"dataset_revision": "v9"}, r"data\.dataset is me/set, but it cannot be loaded \(404"),
        ({"dataset_split": "dev"}, r"data\.dataset is me/set, but it cannot be loaded \(Bad split"),
        ({"text_field": "body"}, r"text_field is 'body', but me/set:shard-\d+ has no such field"),
    ],
)
def test_what_is_not_on_the_hub_is_one_line(hub, settings, message):
    with pytest.raises(DataError, match=message) as error:
        texts_of(pin_revisions(streamed(**settings))[0])

    assert "\n" not in str(error.value)


def test_a_tail_of_a_stream_is_refused():
    with pytest.raises(ConfigError, match=r"validation_split is tail, but data\.streaming is true"):
        DataConfig(dataset="me/set", streaming=True, validation_split="tail")


def test_streaming_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk("saved")

    with pytest.raises(DataError, match=r"data\.streaming is true, but saved is a folder"):
        texts_of(DataConfig(dataset="saved", streaming=True))
