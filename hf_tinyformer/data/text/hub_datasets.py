"""Data sets: folders saved by `datasets`, and the Hub's, whole or shard by shard.

A run reads one commit of a Hub data set from its first plan to its last token. `pin_revision` finds
that commit once; afterwards the settings name it, and nothing needs to ask the Hub again.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tinyformer.data.text.documents import Document, Refuse
from hf_tinyformer.data.text.sources import Source, describe_file, rule_of
from hf_tinyformer.data.text.tables import check_columns, read_rows
from hf_tinyformer.errors import DataError

if TYPE_CHECKING:
    import datasets

_ROWS_AT_ONCE = 256
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_saved(source: Source) -> bool:
    """Tell whether a source is a folder saved by `datasets`, and not on the Hub."""
    return source.dataset is not None and Path(source.dataset).expanduser().is_dir()


def _hub_errors() -> tuple[Any, ...]:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    http_error: Any = HfHubHTTPError.__bases__[0]  # httpx or httpx2, by version
    return (http_error, DatasetsError, OSError, ValueError, RuntimeError)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _cannot_load(source: Source, key: str, error: Exception) -> DataError:
    return DataError(
        f"{key}.dataset is {source.dataset}, but it cannot be loaded ({_first_line(error)}). "
        f"Check the name (a folder saved by `datasets`, or an id on the Hub), "
        f"{key}.dataset_config and {key}.dataset_split."
    )


def needs_pin(source: Source) -> bool:
    """Tell whether a source is a Hub data set whose revision is not a commit yet."""
    if source.dataset is None or is_saved(source):
        return False
    return not _COMMIT.fullmatch(source.dataset_revision or "")


def pin_revision(source: Source, key: str) -> str:
    """Ask the Hub for the commit that a data set's revision stands for now.

    Args:
        source: For which `needs_pin` is true.
        key: Where its settings stand.

    Returns:
        The commit, 40 hex digits.

    Raises:
        DataError: If the Hub cannot be reached or has no such data set.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(str(source.dataset), revision=source.dataset_revision)
    except _hub_errors() as error:
        raise DataError(
            f"{key}.dataset is {source.dataset}, but it cannot be loaded ({_first_line(error)}). "
            f"Check the name (a folder saved by `datasets`, or an id on the Hub) and "
            f"{key}.dataset_revision; without the Hub, name a commit that is in the cache."
        ) from error
    return str(info.sha)


def _open_saved(source: Source, key: str) -> "datasets.Dataset":
    import datasets

    folder = Path(str(source.dataset)).expanduser()
    if not any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        raise DataError(
            f"{key}.dataset is {source.dataset}, but that folder was not saved by `datasets`. "
            f"Set {key}.files to the files in it instead."
        )
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        raise _cannot_load(source, key, error) from error
    if isinstance(saved, datasets.Dataset):
        return saved
    if source.dataset_split not in saved:
        raise DataError(
            f"{key}.dataset_split is {source.dataset_split}, but {source.dataset} has "
            f"{', '.join(saved)}. Take one of them."
        )
    return saved[source.dataset_split]


@functools.lru_cache(maxsize=4)
def _load_commit(name: str, config: str | None, split: str, commit: str, streaming: bool) -> Any:
    """Load what never changes, once for all parts of it."""
    import datasets

    return datasets.load_dataset(name, config, split=split, revision=commit, streaming=streaming)


def _open(source: Source, key: str) -> Any:
    if is_saved(source):
        if source.streaming:
            raise DataError(
                f"{key}.streaming is true, but {source.dataset} is a folder on this machine, which "
                "is never read whole anyway. Leave it out."
            )
        return _open_saved(source, key)
    commit = source.dataset_revision
    if needs_pin(source) or commit is None:
        commit = pin_revision(source, key)
    try:
        return _load_commit(
            str(source.dataset),
            source.dataset_config,
            source.dataset_split,
            commit,
            source.streaming,
        )
    except _hub_errors() as error:
        raise _cannot_load(source, key, error) from error


def describe_dataset(source: Source) -> dict[str, Any]:
    """Describe a data set by its files, or its id and commit, without reading it."""
    if is_saved(source):
        folder = Path(str(source.dataset)).expanduser()
        saved = sorted(file for file in folder.rglob("*") if file.is_file())
        return {"saved": [describe_file(file) for file in saved], "split": source.dataset_split}
    return {
        "dataset": source.dataset,
        "config": source.dataset_config,
        "split": source.dataset_split,
        "revision": source.dataset_revision,
    }


def plan_dataset(source: Source, key: str, bytes_a_part: int) -> list[dict[str, Any]]:
    """Divide a data set into parts that can be read alone.

    Args:
        source: A data set; if it is on the Hub, at a commit.
        key: Where its settings stand.
        bytes_a_part: How large a range of rows may be, about.

    Returns:
        What `read_dataset_part` needs for each: `rows`, or `shard` and `limit`.
    """
    if source.streaming:
        return _plan_shards(source, _open(source, key).num_shards)
    dataset = _open(source, key)
    check_columns(dataset.features.arrow_schema, rule_of(source, key), str(source.dataset))
    row_bytes = max(1, dataset.data.nbytes // max(1, len(dataset)))
    rows = max(1, bytes_a_part // row_bytes)
    starts = range(0, max(1, len(dataset)), rows)
    return [{"rows": [start, min(start + rows, len(dataset))]} for start in starts]


def _plan_shards(source: Source, num_shards: int) -> list[dict[str, Any]]:
    import numpy as np

    order = list(range(num_shards))
    if source.shard_seed is not None:
        # Raw words and a stable sort can never change with numpy's version, see batches.py.
        words = np.random.Philox(
            key=np.array([source.shard_seed % (1 << 64), 0], dtype=np.uint64)
        ).random_raw(num_shards)
        order = np.argsort(words, kind="stable").tolist()
    order = order[: source.max_shards]
    limit = source.max_documents
    if limit is None:
        return [{"shard": [shard, num_shards], "limit": None} for shard in order]
    order = order[:limit]
    quotas = [limit // len(order) + (place < limit % len(order)) for place in range(len(order))]
    return [
        {"shard": [shard, num_shards], "limit": quota}
        for shard, quota in zip(order, quotas, strict=True)
    ]


def _read_rows_of(source: Source, key: str, rows: list[int], refuse: Refuse) -> Iterator[Document]:
    dataset = _open(source, key)
    rule = rule_of(source, key)
    name = str(source.dataset)
    check_columns(dataset.features.arrow_schema, rule, name)
    start, stop = rows
    columns = dataset.select(range(start, stop)).select_columns(list(rule.fields))
    row = start + 1
    for table in columns.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        yield from read_rows(table, rule, name, row, refuse)
        row += table.num_rows


def _read_shard(
    source: Source, key: str, description: dict[str, Any], refuse: Refuse
) -> Iterator[Document]:
    rule = rule_of(source, key)
    shard, num_shards = description["shard"]
    left = description["limit"]
    name = f"{source.dataset}:shard-{shard:05d}"
    dataset = _open(source, key)
    if dataset.num_shards != num_shards:
        raise DataError(
            f"{source.dataset} has {dataset.num_shards} shards, but was planned with {num_shards}. "
            "Another version of `datasets` may divide it in another way: prepare it again."
        )
    row = 1
    try:
        tables = dataset.shard(num_shards, shard).with_format("arrow")
        for table in tables.iter(batch_size=_ROWS_AT_ONCE):
            check_columns(table.schema, rule, name)
            table = table if left is None else table.slice(0, left)
            yield from read_rows(table, rule, name, row, refuse)
            row += table.num_rows
            if left is not None:
                left -= table.num_rows
                if left == 0:
                    return
    except _hub_errors() as error:
        raise DataError(
            f"{name}:{row} cannot be read ({_first_line(error)}). "
            "Run the same command to go on from this shard."
        ) from error


def read_dataset_part(
    source: Source, key: str, description: dict[str, Any], refuse: Refuse
) -> Iterator[Document]:
    """Read what one element of `plan_dataset` describes.

    Args:
        source: The settings it was planned with.
        key: Where they stand.
        description: The element.
        refuse: Told of rows that cannot be used.

    Yields:
        Documents, in the data set's order.

    Raises:
        DataError: If the data set cannot be loaded or has no such column.
    """
    if "shard" in description:
        return _read_shard(source, key, description, refuse)
    return _read_rows_of(source, key, description["rows"], refuse)
