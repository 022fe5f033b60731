"""Text to token store, and training a tokenizer, beside the libraries that do the same work.

python benchmarks/tokenization.py encode --corpus DIR   text file to token store, and `datasets.map`
python benchmarks/tokenization.py train --corpus DIR    32,000 tokens of BPE, and its peers
python benchmarks/tokenization.py store                 open and read a store of a billion tokens
python benchmarks/tokenization.py memory --corpus DIR   memory of preparing 10 MB and 500 MB

DIR has `en_simplewiki/train.jsonl.xz`, `ko_wikipedia/train.jsonl.xz` and so on: JSON lines with a
`text`. Every measurement is a process of its own, which imports and loads its texts before the
clock runs; the two sides take turns, and the median of the pairs' ratios counts. Ids and merges of
both sides are compared too. Other programs disturb all of it: the load is looked at first.
`--write docs/benchmarks.md` puts the figures there.
"""

import argparse
import gc
import hashlib
import importlib.util
import json
import lzma
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE = 32_000
CORPORA = {
    "English": ["en_simplewiki/train.jsonl.xz"],
    "Korean": ["ko_wikipedia/train.jsonl.xz"],
    "English, long": [
        "en_simplewiki/*.jsonl.xz",
        "en_standard_ebooks/*.jsonl.xz",
        "en_tinystories/*.jsonl.xz",
    ],
    "Korean, long": ["ko_wikipedia/*.jsonl.xz", "ko_nsmc/*.jsonl.xz"],
    "both": ["en_*/*.jsonl.xz", "ko_wikipedia/*.jsonl.xz", "ko_nsmc/*.jsonl.xz"],
}
SPECIAL = ["<pad>", "<s>", "</s>"]


def unpack(corpus: Path, patterns: list[str], file: Path) -> None:
    """Write a corpus as one plain .jsonl file."""
    with file.open("wb") as stream:
        for source in sorted(path for pattern in patterns for path in corpus.glob(pattern)):
            with lzma.open(source, "rt", encoding="utf-8") as lines:
                for line in lines:
                    if text := json.loads(line).get("text"):
                        record = json.dumps({"text": text}, ensure_ascii=False)
                        stream.write(record.encode() + b"\n")


def read_texts(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def digest_of(parts: Iterator[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


# Children: each measures one thing once and prints a line of JSON.


def child_encode_ours(file: str, tokenizer: str, folder: str) -> dict[str, Any]:
    import awkward  # noqa: F401 - what the libraries import when first used, as `datasets` below
    import gigatoken  # noqa: F401
    import pyarrow.ipc  # noqa: F401

    from hf_tinyformer.data.store.preparation import prepare_token_store
    from hf_tinyformer.data.store.tokens import open_token_store
    from hf_tinyformer.data.text.config import DataConfig
    from hf_tinyformer.data.text.corpus import plan_parts, read_part
    from hf_tinyformer.data.tokenization.tokenizer import load_tokenizer

    loaded = load_tokenizer(Path(tokenizer))
    # A validation file of its own leaves every text of the corpus in training.
    held_out = Path(folder, "validation.txt")
    held_out.write_text("Not in the corpus.", encoding="utf-8")
    config = DataConfig(files=[file], validation_files=[str(held_out)])
    begin = time.perf_counter()
    prepare_token_store(
        Path(folder, "tokens"),
        tokenizer=loaded,
        parts=plan_parts(config),
        read=partial(read_part, config),
        facts={},
    )
    seconds = time.perf_counter() - begin
    store = open_token_store(Path(folder, "tokens")).train
    step = 1 << 22
    ids = (
        store.read(start, min(start + step, store.num_tokens)).astype("<u2")
        for start in range(0, store.num_tokens, step)
    )
    return {"seconds": seconds, "digest": digest_of(ids), "tokens": store.num_tokens}


def child_encode_datasets(file: str, tokenizer: str, folder: str) -> dict[str, Any]:
    import datasets

    from hf_tinyformer.data.tokenization.tokenizer import load_tokenizer

    datasets.disable_progress_bars()
    loaded = load_tokenizer(Path(tokenizer))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = loaded(batch["text"], add_special_tokens=False, split_special_tokens=True)
        return {"input_ids": [[1, *ids, 2] for ids in encoded["input_ids"]]}

    begin = time.perf_counter()
    texts = datasets.load_dataset(
        "json", data_files=file, split="train", cache_dir=folder, verification_mode="no_checks"
    )
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("uint16"))})
    store = texts.map(encode, batched=True, num_proc=2, remove_columns=["text"], features=features)
    seconds = time.perf_counter() - begin
    ids = (
        np.ascontiguousarray(chunk.flatten().to_numpy(zero_copy_only=False), dtype="<u2")
        for chunk in store.data.column("input_ids").chunks
    )
    tokens = sum(len(chunk.flatten()) for chunk in store.data.column("input_ids").chunks)
    return {"seconds": seconds, "digest": digest_of(ids), "tokens": tokens}


def _finish_training(begin: float, merges: list[Any]) -> dict[str, Any]:
    seconds = time.perf_counter() - begin
    pairs = (json.dumps(list(pair)).encode() for pair in merges)
    return {"seconds": seconds, "digest": digest_of(pairs), "merges": len(merges)}


def _empty_backend() -> Any:
    from tokenizers import Tokenizer, models

    from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
    from hf_tinyformer.data.tokenization.tokenizer_training import _build_cutter

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = _build_cutter(TokenizerConfig())
    return backend


def child_train_ours(file: str) -> dict[str, Any]:
    import gigabpe  # noqa: F401 - without it, the two sides would be one
    import pyarrow.compute  # noqa: F401

    from hf_tinyformer.data.tokenization.bpe_training import train_bpe
    from hf_tinyformer.data.tokenization.training_texts import choose_texts

    texts, backend = read_texts(Path(file)), _empty_backend()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    chosen = choose_texts(iter(texts), 256_000_000)
    train_bpe(backend, chosen, vocab_size=VOCAB_SIZE, special_tokens=SPECIAL)
    result = _finish_training(begin, json.loads(backend.to_str())["model"]["merges"])
    return {
        **result,
        "added_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
    }


def child_train_tokenizers(file: str) -> dict[str, Any]:
    from tokenizers import pre_tokenizers, trainers

    texts, backend = read_texts(Path(file)), _empty_backend()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    result = _finish_training(begin, json.loads(backend.to_str())["model"]["merges"])
    return {
        **result,
        "added_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3,
    }


def child_train_rustbpe(file: str) -> dict[str, Any]:
    import rustbpe

    from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
    from hf_tinyformer.data.tokenization.tokenizer_training import split_pattern

    texts = read_texts(Path(file))
    trainer = rustbpe.Tokenizer()
    begin = time.perf_counter()
    trainer.train_from_iterator(
        iter(texts), VOCAB_SIZE - len(SPECIAL), pattern=split_pattern(TokenizerConfig())
    )
    # It numbers bytes otherwise and so breaks ties otherwise: its merges are no others' merges.
    return {"seconds": time.perf_counter() - begin}


class _FixedEncoder:
    """Gives ids without text, to make a large store in seconds."""

    tokenizer, name, vocab_size, dtype = "synthetic", "none", 50_000, "uint16"
    distrusted: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._ids = np.random.default_rng(0).integers(0, 50_000, 1 << 20).astype(np.uint16)

    def encode(self, texts: list[str], _utf8: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(self._ids, len(texts)), np.full(len(texts), len(self._ids), dtype=np.int64)

    def examine(self, _texts: list[str]) -> list[int]:
        return []

    def correct(self, ids: Any, lengths: Any, _texts: list[str], _strange: list[int]) -> Any:
        return ids, lengths

    def count_unknown(self, _ids: np.ndarray, _num_documents: int) -> int:
        return 0


def make_large_store(folder: Path) -> None:
    from hf_tinyformer.data.store import preparation
    from hf_tinyformer.data.text.documents import Document
    from hf_tinyformer.data.text.parts import Part

    def read(_part: Part, _on_skip: Any) -> Iterator[tuple[Any, Document]]:
        for _ in range(16):
            yield "train", Document("x" * 4_000_000, "x:1")
        yield "validation", Document("x", "x:1")

    preparation.DocumentEncoder = lambda _: _FixedEncoder()  # type: ignore[assignment]
    parts = [Part(f"corpus/{number:05d}", "corpus", {}) for number in range(60)]
    preparation.prepare_token_store(folder, tokenizer=None, parts=parts, read=read, facts={})


def child_open(folder: str) -> dict[str, Any]:
    import pyarrow.ipc  # noqa: F401

    from hf_tinyformer.data.store.tokens import open_token_store

    def memory() -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1e3
        return float("nan")

    before = memory()
    begin = time.perf_counter()
    store = open_token_store(Path(folder)).train
    opened = time.perf_counter()
    store.read(store.num_tokens - 1000, store.num_tokens)
    first = time.perf_counter()
    draw = np.random.default_rng(0)
    batches = [draw.integers(0, store.num_tokens - 1025, 32) for _ in range(200)]
    for starts in batches:
        store.read_rows(starts, 1025)
    cold = time.perf_counter()
    for starts in batches:
        store.read_rows(starts, 1025)
    warm = time.perf_counter()
    return {
        "tokens": store.num_tokens,
        "open_ms": (opened - begin) * 1e3,
        "first_read_ms": (first - opened) * 1e3,
        "batch_ms_first_time": (cold - first) / 200 * 1e3,
        "batch_ms": (warm - cold) / 200 * 1e3,
        "added_mb": memory() - before,
    }


def child_prepare_memory(file: str, tokenizer: str, folder: str) -> dict[str, Any]:
    result = child_encode_ours(file, tokenizer, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {**result, "peak_mb": peak}


# The parent: runs children in turn and prints what came of them.

PRINTED: list[str] = []


def say(line: str) -> None:
    print(line, flush=True)
    PRINTED.append(line)


def write_figures(document: Path, what: str) -> None:
    """Put what was printed between the two comments that name it."""
    begin, end = f"<!-- tokenization {what} -->", f"<!-- end of tokenization {what} -->"
    text = document.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    figures = "\n".join(["```text", *"\n".join(PRINTED).strip().splitlines(), "```"])
    document.write_text(f"{head}{begin}\n{figures}\n{end}{tail}", encoding="utf-8")


def run_child(name: str, *words: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "child", name, *map(str, words)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def take_turns(
    sides: dict[str, Callable[[], dict[str, Any]]], pairs: int
) -> dict[str, list[dict[str, Any]]]:
    """Run all sides in turn, the first of a round last in the next."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(pairs):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in names:
            found[name].append(sides[name]())
    return found


def report(what: str, num_bytes: int, found: dict[str, list[dict[str, Any]]], equal: str) -> None:
    """Print each side's median speed, and the ratios to the first side in the same round."""
    ours, *others = found
    seconds = {name: [result["seconds"] for result in results] for name, results in found.items()}
    say(f"\n{what}: {num_bytes / 1e6:.1f} MB, {len(seconds[ours])} rounds, 2 processes or threads")
    for name, times in seconds.items():
        speed = num_bytes / 1e6 / statistics.median(times)
        line = f"  {name:22} {statistics.median(times):8.2f} s {speed:8.1f} MB/s"
        if added := [result["added_mb"] for result in found[name] if "added_mb" in result]:
            line += f"   {statistics.median(added):,.0f} MB of memory added"
        say(line)
    for name in others:
        ratios = [slow / fast for slow, fast in zip(seconds[name], seconds[ours], strict=True)]
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        say(f"  {ours} is {statistics.median(ratios):.1f} times as fast as {name} ({spread})")
        digests = {result.get("digest") for side in (ours, name) for result in found[side]}
        if None not in digests:
            say(f"  {equal}: {'identical' if len(digests) == 1 else 'DIFFERENT'}")


def size_of_texts(file: Path) -> int:
    return sum(len(text.encode()) for text in read_texts(file))


def train_run_tokenizer(file: Path, folder: Path, vocab_size: int) -> Path:
    """Train the tokenizer that both sides encode with, in this process."""
    from hf_tinyformer.data.tokenization.tokenizer import save_tokenizer, train_tokenizer
    from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig

    config = TokenizerConfig(vocab_size=vocab_size)
    tokenizer = train_tokenizer(config, read_texts(file)[:10_000], sequence_length=1024)
    save_tokenizer(tokenizer, folder, facts={})
    return folder


def compare_encoding(args: argparse.Namespace, work: Path) -> None:
    for name in args.corpora or ["English", "Korean", "English, long"]:
        file = work / f"{name}.jsonl"
        unpack(args.corpus, CORPORA[name], file)
        tokenizer = train_run_tokenizer(file, work / f"tokenizer {name}", 16_000)

        def measure(child: str, file: Path = file, tokenizer: Path = tokenizer) -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                return run_child(child, file, tokenizer, folder)

        measure("encode_ours")  # the file is in the page cache for both
        sides = {
            "hf_tinyformer": partial(measure, "encode_ours"),
            "datasets.map": partial(measure, "encode_datasets"),
        }
        found = take_turns(sides, args.pairs)
        report(f"Text to token store, {name}", size_of_texts(file), found, "ids")


def compare_training(args: argparse.Namespace, work: Path) -> None:
    for name in args.corpora or ["English, long", "Korean, long", "both"]:
        file = work / f"{name}.jsonl"
        unpack(args.corpus, CORPORA[name], file)
        sides = {
            "hf_tinyformer": partial(run_child, "train_ours", file),
            "tokenizers": partial(run_child, "train_tokenizers", file),
        }
        if importlib.util.find_spec("rustbpe") is not None:
            sides["rustbpe"] = partial(run_child, "train_rustbpe", file)
        found = take_turns(sides, args.pairs)
        report(f"{VOCAB_SIZE:,} tokens of BPE, {name}", size_of_texts(file), found, "merges")


def measure_store(_args: argparse.Namespace, work: Path) -> None:
    make_large_store(work / "tokens")
    results = [run_child("open", work / "tokens") for _ in range(5)]
    say(f"\nA store of {results[0].pop('tokens'):,} tokens, median of 5 processes")
    for key in results[0]:
        if key != "tokens":
            say(f"  {key:22} {statistics.median(result[key] for result in results):8.2f}")


def measure_memory(args: argparse.Namespace, work: Path) -> None:
    source = work / "source.jsonl"
    unpack(args.corpus, CORPORA["English"], source)
    tokenizer = train_run_tokenizer(source, work / "tokenizer", 16_000)
    lines = source.read_bytes().splitlines(keepends=True)
    say("\nMemory of preparing a corpus")
    for megabytes in (10, 500):
        file, written, number = work / f"{megabytes}.jsonl", 0, 0
        with file.open("wb") as stream:
            while written < megabytes * 1_000_000:
                written += stream.write(lines[number % len(lines)])
                number += 1
        with tempfile.TemporaryDirectory(dir=work) as folder:
            result = run_child("prepare_memory", file, tokenizer, folder)
        say(f"  {megabytes:4} MB: peak {result['peak_mb']:.0f} MB, {result['seconds']:.1f} s")


COMMANDS = {
    "encode": compare_encoding,
    "train": compare_training,
    "store": measure_store,
    "memory": measure_memory,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=[*COMMANDS, "all"])
    parser.add_argument("--corpus", type=Path, help="folder of corpora")
    parser.add_argument("--corpora", nargs="*", choices=CORPORA, help="only these")
    parser.add_argument("--pairs", type=int, help="rounds; otherwise 5 for encode, 3 for train")
    parser.add_argument("--write", type=Path, help="document that gets the figures")
    parser.add_argument("--work", type=Path, help="folder for files (default: a temporary one)")
    return parser


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "child":
        gc.freeze()  # as the command line does
        print(json.dumps(globals()[f"child_{sys.argv[2]}"](*sys.argv[3:])))
        return
    parser = build_parser()
    args = parser.parse_args()
    names = list(COMMANDS) if args.what == "all" else [args.what]
    if names != ["store"] and args.corpus is None:
        parser.error(f"{args.what} needs --corpus")
    load = os.getloadavg()
    say(f"load {load[0]:.2f} {load[1]:.2f} {load[2]:.2f} on {os.cpu_count()} cores")
    if load[0] > 0.5:
        say("other programs are running: expect slower and less even figures")
    header = len(PRINTED)
    for name in names:
        settings = argparse.Namespace(**vars(args))
        settings.pairs = args.pairs or (3 if name == "train" else 5)
        folder = Path(tempfile.mkdtemp(dir=args.work))
        try:
            COMMANDS[name](settings, folder)
        finally:
            shutil.rmtree(folder)
        if args.write is not None:
            write_figures(args.write, name)
        del PRINTED[header:]


if __name__ == "__main__":
    main()
