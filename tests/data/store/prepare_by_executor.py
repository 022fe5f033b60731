"""Prepare a store as a datatrove task on some machine would, in a process that may be killed.

Words: folder of texts, folder to write into, executor, and the executor's options as JSON.
"""

import json
import sys
from pathlib import Path

from hf_tinyformer.data.store.distributed_preparation import build_executor, run_executor
from hf_tinyformer.data.store.store_job import StoreJob
from hf_tinyformer.data.text import parts
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.corpus import plan_parts


def plan_job(texts: Path, folder: Path) -> StoreJob:
    """The job that all ways of doing it share, of small parts, so that there are several."""
    parts.PART_BYTES = 40_000
    config = DataConfig(files=[str(texts / "*.jsonl")], validation_fraction=0.1)
    return StoreJob(
        folder=folder / "tokens",
        tokenizer_dir=folder / "tokenizer",
        config=config,
        parts=plan_parts(config),
        rules=None,
        facts={"inputs": "these"},
    )


if __name__ == "__main__":
    texts, folder, executor, options = sys.argv[1:]
    job = plan_job(Path(texts), Path(folder))
    # Two tasks of several parts each: starting Python is the slow part here.
    built = build_executor(executor, job, workers=2, tasks=2, options=json.loads(options))
    run_executor(executor, built)
