"""The sides that benchmarks/speed.py compares; each is one process and prints one line of JSON.

python benchmarks/speed_sides.py SIDE '{"argument": ...}'
"""

import gc
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).parent.parent
SKIPPED_STEPS = 4
"""First steps that do not count: memory is fresh, compilers are at work."""


def peak_megabytes() -> float:
    """Read the most memory this process has held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e3
    return float("nan")


def encode_characters(text: str) -> tuple[np.ndarray, int]:
    """Number the characters of a text as nanoGPT does."""
    alphabet = {character: index for index, character in enumerate(sorted(set(text)))}
    return np.array([alphabet[character] for character in text], dtype=np.int64), len(alphabet)


def validation_loss(logits_of: Any, ids: np.ndarray, context: int) -> float:
    """Judge any model by the same rule: every token of the last tenth, in rows of the context.

    Each row's tokens are predicted from those before them in the row.
    """
    ids = ids[int(0.9 * len(ids)) :]
    starts = range(0, len(ids) - 1, context)
    total = 0.0
    with torch.inference_mode():
        for at in range(0, len(starts), 64):
            group: dict[int, list[np.ndarray]] = {}
            for start in starts[at : at + 64]:
                row = ids[start : start + context + 1]
                group.setdefault(len(row), []).append(row)
            for rows in group.values():
                batch = torch.from_numpy(np.stack(rows))
                logits = logits_of(batch[:, :-1].contiguous()).float().flatten(0, 1)
                targets = batch[:, 1:].flatten()
                total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    return total / (len(ids) - 1)


class Recorder:
    """Hears of a run of ours and notes when things happened."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.evaluations: list[tuple[float, float]] = []
        self.begin = 0.0
        self.facts: dict[str, Any] = {}

    def on_start(self, *, facts: Any, **_: Any) -> None:
        self.begin, self.facts = time.perf_counter(), dict(facts)

    def on_step(self, _metrics: Any) -> None:
        self.steps.append(time.perf_counter())

    def on_evaluation(self, metrics: Any) -> None:
        self.evaluations.append((time.perf_counter(), metrics["validation_loss"]))

    def on_message(self, _text: str) -> None:
        """Nothing of it is measured."""


def _seconds_a_step(times: list[float]) -> float:
    return statistics.median(np.diff(times[SKIPPED_STEPS:]).tolist())


def _run_ours(
    config: str, text: str | None, overrides: list[str], folder: str
) -> tuple[Any, Recorder]:
    from hf_tinyformer.pipeline import run_pipeline
    from hf_tinyformer.run_config import load_run_config

    files = [] if text is None else [f"data.files=[{text}]"]
    words = [*files, f"output_dir={folder}", "name=run", *overrides]
    recorder = Recorder()
    result = run_pipeline(load_run_config(Path(config), words), reporter=recorder)
    return result, recorder


def _shape_words(shape: dict[str, int]) -> list[str]:
    return [
        f"data.sequence_length={shape['context']}",
        f"model.hidden_size={shape['width']}",
        f"model.num_hidden_layers={shape['layers']}",
        f"model.num_attention_heads={shape['heads']}",
        f"train.global_batch_size={shape['batch']}",
    ]


def train_ours(text: str, shape: dict[str, int], steps: int, overrides: list[str]) -> Any:
    """Take steps of `tinyformer train`, all that belongs to them included."""
    words = [
        *_shape_words(shape),
        f"train.max_steps={steps}",
        "train.warmup_steps=1",
        f"train.evaluate_every={steps}",
        "train.save_every_steps=0",
        "train.sample_tokens=0",
        *overrides,
    ]
    config = str(REPOSITORY / "configs" / "shakespeare_char.yaml")
    with tempfile.TemporaryDirectory() as folder:
        _, recorder = _run_ours(config, text, words, folder)
    peak = peak_megabytes()
    return {
        "tokens_per_second": shape["batch"] * shape["context"] / _seconds_a_step(recorder.steps),
        "peak_mb": peak,
        "parameters": recorder.facts["parameters"],
        "precision": recorder.facts["precision"],
    }


def _random_batches(text: str, shape: dict[str, int]) -> Any:
    ids, _ = encode_characters(Path(text).read_text(encoding="utf-8"))
    draw = np.random.default_rng(0)
    while True:
        starts = draw.integers(0, len(ids) - shape["context"] - 1, shape["batch"])
        rows = np.stack([ids[start : start + shape["context"]] for start in starts])
        yield torch.from_numpy(rows)


def _build_qwen3(shape: dict[str, int], vocab_size: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=shape["width"],
        intermediate_size=-(-8 * shape["width"] // 192) * 64,  # as ours: the same parameters
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        head_dim=shape["width"] // shape["heads"],
        max_position_embeddings=max(1024, shape["context"]),
        tie_word_embeddings=True,
        use_cache=False,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def train_qwen3_loop(
    text: str, shape: dict[str, int], steps: int, bf16: bool, compiled: bool
) -> Any:
    """Take steps of transformers' Qwen3 in a loop of ten lines with fused AdamW."""
    model = _build_qwen3(shape, 65)
    called = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    times = []
    for batch, _ in zip(_random_batches(text, shape), range(steps), strict=False):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = called(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
    return {
        "tokens_per_second": shape["batch"] * shape["context"] / _seconds_a_step(times),
        "peak_mb": peak_megabytes(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def train_qwen3_trainer(
    text: str, shape: dict[str, int], steps: int, bf16: bool, compiled: bool
) -> Any:
    """Take steps of transformers' Qwen3 under its own Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ids, vocab_size = encode_characters(Path(text).read_text(encoding="utf-8"))
    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(ids) // shape["context"]

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            start = index * shape["context"]
            row = torch.from_numpy(ids[start : start + shape["context"]])
            return {"input_ids": row, "labels": row}

    model = _build_qwen3(shape, vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=shape["batch"],
            bf16=bf16,
            torch_compile=compiled,
            optim="adamw_torch_fused",
            learning_rate=1e-3,
            use_cpu=True,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
    return {
        "tokens_per_second": shape["batch"] * shape["context"] / _seconds_a_step(times),
        "peak_mb": peak_megabytes(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def reach_loss_ours(
    text: str, config: str, context: int, target: float, overrides: list[str]
) -> Any:
    """Train until an exact validation is at the target or better, and save what came of it."""
    text_read = Path(text).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        result, recorder = _run_ours(config, text, overrides, folder)
        cold_seconds = time.perf_counter() - float(os.environ["BENCH_STARTED"])
        # From here on nothing is timed: the checkpoint is judged as any other program's is.
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(result.final_dir)
        tokenizer = AutoTokenizer.from_pretrained(result.final_dir)
        ids = tokenizer(text_read, add_special_tokens=False, verbose=False)["input_ids"]
        judged = validation_loss(lambda rows: model(input_ids=rows).logits, np.array(ids), context)
    reached = [at for at, loss in recorder.evaluations if loss <= target]
    return {
        "warm_seconds": (reached[0] - recorder.begin) if reached else None,
        "cold_seconds": cold_seconds if reached else None,
        "validation_losses": [round(loss, 4) for _, loss in recorder.evaluations],
        "judged_loss": judged,
        "parameters": recorder.facts["parameters"],
        "steps": len(recorder.steps),
    }


def judge_nanogpt(folder: str, text: str, context: int) -> Any:
    """Judge nanoGPT's checkpoint by our rule."""
    sys.path.insert(0, folder)
    nanogpt = importlib.import_module("model")
    saved = torch.load(Path(folder, "out-bench", "ckpt.pt"), weights_only=True)
    model = nanogpt.GPT(nanogpt.GPTConfig(**saved["model_args"]))
    weights = {name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()}
    model.load_state_dict(weights)
    model.eval()
    ids, _ = encode_characters(Path(text).read_text(encoding="utf-8"))

    def logits_of(rows: torch.Tensor) -> torch.Tensor:
        return model(rows, targets=rows)[0]  # without targets it gives the last position only

    return {"judged_loss": validation_loss(logits_of, ids, context)}


PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]


def _tokens_per_second(write: Any, batch: int, count: int) -> dict[str, float]:
    write()  # memory, caches and kernels are there after this
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        write()
        seconds.append(time.perf_counter() - begin)
    return {"tokens_per_second": batch * count / statistics.median(seconds)}


def _build_ours(shape: dict[str, int]) -> Any:
    from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM

    torch.manual_seed(0)
    config = TinyFormerConfig(
        vocab_size=65,
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
    )
    return TinyFormerForCausalLM(config).eval()


def decode_ours(shape: dict[str, int], batch: int, count: int) -> Any:
    """Write tokens by the way that `tinyformer generate` takes."""
    from hf_tinyformer.inference.choosing import build_chooser
    from hf_tinyformer.inference.decoding import decode

    model, greedy = _build_ours(shape), build_chooser(0, 0, 1.0)
    return _tokens_per_second(
        lambda: decode(model, [PROMPT] * batch, max_new_tokens=count, choose=greedy), batch, count
    )


def decode_generate(shape: dict[str, int], batch: int, count: int, cache: str, ours: bool) -> Any:
    """Write tokens by `generate`, of transformers' Qwen3 or of our model."""
    model = _build_ours(shape) if ours else _build_qwen3(shape, 65).eval()
    inputs = torch.tensor([PROMPT] * batch)
    settings: dict[str, Any] = {
        "attention_mask": torch.ones_like(inputs),
        "max_new_tokens": count,
        "min_new_tokens": count,
        "do_sample": False,
        "pad_token_id": 0,
        "use_cache": True,
    }
    if cache != "dynamic":
        settings["cache_implementation"] = cache
    with torch.inference_mode():
        return _tokens_per_second(lambda: model.generate(inputs, **settings), batch, count)


def decode_nanogpt(folder: str, shape: dict[str, int], batch: int, count: int) -> Any:
    """Write tokens by nanoGPT's `generate`."""
    sys.path.insert(0, folder)
    nanogpt = importlib.import_module("model")
    torch.manual_seed(0)
    model = nanogpt.GPT(
        nanogpt.GPTConfig(
            block_size=shape["context"],
            vocab_size=65,
            n_layer=shape["layers"],
            n_head=shape["heads"],
            n_embd=shape["width"],
            dropout=0.0,
            bias=False,
        )
    ).eval()
    inputs = torch.tensor([PROMPT] * batch)
    return _tokens_per_second(lambda: model.generate(inputs, count, top_k=1), batch, count)


def decode_llama_cpp(text: str, shape: dict[str, int], count: int) -> Any:
    """Write tokens by llama.cpp from our own export of a model of this shape, in float32."""
    from hf_tinyformer.publishing.gguf import export_gguf
    from hf_tinyformer.publishing.llama_cpp import ask

    config = str(REPOSITORY / "configs" / "shakespeare_char.yaml")
    # The vocabulary of bytes is the smallest that llama.cpp knows.
    words = [
        *_shape_words(shape),
        "tokenizer.kind=bytes",
        "train.max_steps=1",
        "train.warmup_steps=0",
    ]
    with tempfile.TemporaryDirectory() as folder:
        result, _ = _run_ours(config, text, words, folder)
        export_gguf(result.final_dir, Path(folder, "gguf"), dtype="f32")
        [model] = Path(folder, "gguf").glob("*.gguf")
        vocab_size = json.loads(Path(result.final_dir, "config.json").read_text())["vocab_size"]
        answers = ask(
            model,
            context=shape["context"],
            vocab_size=vocab_size,
            prompt=PROMPT,
            max_new_tokens=count,
        )
    return {"tokens_per_second": answers.tokens_per_second}


def first_step() -> Any:
    """Say how long after the start of the process the demo's first optimizer step was done."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["train.max_steps=2", "train.warmup_steps=1"]
        _, recorder = _run_ours(str(REPOSITORY / "configs" / "demo.yaml"), None, words, folder)
    return {"seconds": recorder.steps[0] - float(os.environ["BENCH_STARTED"])}


SIDES = {
    side.__name__: side
    for side in (
        train_ours,
        train_qwen3_loop,
        train_qwen3_trainer,
        reach_loss_ours,
        judge_nanogpt,
        decode_ours,
        decode_generate,
        decode_nanogpt,
        decode_llama_cpp,
        first_step,
    )
}

if __name__ == "__main__":
    gc.freeze()
    print(json.dumps(SIDES[sys.argv[1]](**json.loads(sys.argv[2]))))
