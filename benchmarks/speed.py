"""Training and writing beside nanoGPT, transformers and llama.cpp, on this machine, in one run.

python benchmarks/speed.py all --text input.txt --nanogpt DIR --write docs/benchmarks.md

    roofline   matrix products and memory traffic: what the machine can do at most
    train      tokens a second and peak memory, at nanoGPT's CPU shape and at its 10.7M shape
    loss       seconds to validation loss 1.8857, against the CPU run of nanoGPT's README
    headline   seconds to 1.4697, which nanoGPT's README reports for an A100; one run
    decode     tokens a second written, one text and sixteen
    startup    process start to the first optimizer step

`--text` is Tiny Shakespeare (github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt),
`--nanogpt` a checkout of github.com/karpathy/nanoGPT; without it nanoGPT is left out, and without
xllamacpp llama.cpp is. Every measurement is a process of its own; the sides take turns, and the
medians over the rounds and of the ratios within a round count. A peer has its best flags: all its
variants run in the first round, and the fastest of them in all others.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import roofline

HERE = Path(__file__).parent
SHAPES = {
    "0.8M": {"layers": 4, "heads": 4, "width": 128, "context": 64, "batch": 12},
    "10.7M": {"layers": 6, "heads": 6, "width": 384, "context": 256, "batch": 16},
}
TARGET = 1.8857
HEADLINE = 1.4697
README_RUN = {"context": 64, "batch": 12, "layers": 4, "heads": 4, "width": 128, "steps": 2000}

Measurement = dict[str, Any]


@dataclass
class Bench:
    """Settings of a run, and what it has found so far."""

    args: argparse.Namespace
    work: Path
    printed: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def say(self, line: str = "") -> None:
        """Print a line and keep it for the document."""
        print(line, flush=True)
        self.printed.append(line)


def run_process(command: list[str], folder: Path | None = None) -> tuple[str, float, float]:
    """Run a command; return what it printed, its seconds, and its peak memory in MB."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": str(HERE.parent),
        "BENCH_STARTED": str(time.perf_counter()),
    }
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    return text, seconds, usage.ru_maxrss / 1e3


def run_side(name: str, **arguments: Any) -> Measurement:
    """Run one side of speed_sides.py."""
    command = [sys.executable, str(HERE / "speed_sides.py"), name, json.dumps(arguments)]
    text, seconds, _ = run_process(command)
    return {**json.loads(text.splitlines()[-1]), "process_seconds": seconds}


def prepare_nanogpt(bench: Bench) -> Path:
    """Copy the checkout and let it prepare the text as its README says."""
    folder = bench.work / "nanoGPT"
    if not folder.exists():
        shutil.copytree(bench.args.nanogpt, folder, ignore=shutil.ignore_patterns(".git"))
        prepared = folder / "data" / "shakespeare_char"
        shutil.copy(bench.args.text, prepared / "input.txt")
        run_process([sys.executable, "prepare.py"], prepared)
    return folder


def run_nanogpt(
    folder: Path, shape: Mapping[str, int], steps: int, *, compiled: bool, evaluate: bool
) -> Measurement:
    """Run nanoGPT's train.py, with the flags of its README for a CPU."""
    command = [
        sys.executable,
        "train.py",
        "config/train_shakespeare_char.py",
        "--device=cpu",
        f"--compile={compiled}",
        f"--eval_iters={20 if evaluate else 1}",
        "--log_interval=1",
        f"--block_size={shape['context']}",
        f"--batch_size={shape['batch']}",
        f"--n_layer={shape['layers']}",
        f"--n_head={shape['heads']}",
        f"--n_embd={shape['width']}",
        f"--max_iters={steps}",
        f"--lr_decay_iters={steps}",
        "--dropout=0.0",
        "--out_dir=out-bench",
        *([] if evaluate else [f"--eval_interval={10 * steps}"]),
    ]
    text, seconds, peak = run_process(command, folder)
    times = [float(ms) / 1e3 for ms in re.findall(r"^iter \d+: .*time ([\d.]+)ms", text, re.M)]
    step = statistics.median(times[4:])
    return {
        "tokens_per_second": shape["batch"] * shape["context"] / step,
        "peak_mb": peak,
        # Iteration 0 and each evaluation are in the time of the iteration that they come with.
        "warm_seconds": sum(times[1:]) + min(times[0], 2 * times[250]) if evaluate else None,
        "process_seconds": seconds,
    }


def take_turns(
    sides: Mapping[str, Callable[[], Measurement]], rounds: int
) -> dict[str, list[Measurement]]:
    """Run all sides in turn, backwards in every other round.

    Sides whose names are equal up to the first comma are one program's variants: after the first
    round only the fastest of a peer's goes on. Ours, the first side's, all do.
    """
    found: dict[str, list[Measurement]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(sides[name]())
            print(f"    round {number + 1}: {name}: {found[name][-1]}", file=sys.stderr, flush=True)
        if number == 0:
            names = keep_fastest(found)
    return found


def keep_fastest(found: Mapping[str, list[Measurement]]) -> list[str]:
    """Name all variants of ours and the fastest of each peer's."""
    programs = {name: name.split(",")[0] for name in found}
    ours = next(iter(programs.values()))
    kept = []
    for name, [measurement] in found.items():
        rivals = [other for other in found if programs[other] == programs[name]]
        speed = measurement.get("tokens_per_second", 0.0)
        best = max(found[rival][0].get("tokens_per_second", 0.0) for rival in rivals)
        if programs[name] == ours or speed == best:
            kept.append(name)
    return kept


def medians(found: Mapping[str, list[Measurement]], key: str) -> dict[str, float]:
    """Return each side's median of one figure."""
    return {
        name: statistics.median(measurement[key] for measurement in measurements)
        for name, measurements in found.items()
        if all(measurement.get(key) is not None for measurement in measurements)
    }


def ratios(found: Mapping[str, list[Measurement]], key: str, ours: str, peer: str) -> list[float]:
    """Divide our figure by a peer's, round by round, in the rounds that the peer took part in."""
    pairs = zip(found[ours], found[peer], strict=False)
    return [mine[key] / theirs[key] for mine, theirs in pairs]


def show_rates(bench: Bench, title: str, found: Mapping[str, list[Measurement]], ours: str) -> None:
    """Print tokens per second, memory, and our ratio to each side."""
    bench.say()
    bench.say(title)
    speeds, peaks = medians(found, "tokens_per_second"), medians(found, "peak_mb")
    for name, speed in speeds.items():
        line = f"  {name:44} {speed:9,.0f} tokens/s"
        if name in peaks:
            line += f" {peaks[name]:7,.0f} MB"
        if name != ours:
            each = ratios(found, "tokens_per_second", ours, name)
            spread = f"{min(each):.2f} to {max(each):.2f}" if len(each) > 1 else "one round"
            line += f"   ours {statistics.median(each):5.2f}x ({spread})"
        bench.say(line)


def bench_roofline(bench: Bench) -> None:
    """Measure the machine alone."""
    bench.found["roofline"] = roofline.measure()
    bench.say()
    bench.say("Roofline")
    for name, value in bench.found["roofline"].items():
        bench.say(f"  {name:44} {value:9.2f}")


def bench_train(bench: Bench) -> None:
    """Compare training steps at both shapes."""
    for name in bench.args.shapes:
        shape, steps = SHAPES[name], 30 if name == "0.8M" else 14
        common = {"text": str(bench.args.text), "shape": shape, "steps": steps}
        ours = "hf_tinyformer"
        # What a run of this shape does by itself once it is as long as a real one.
        alone = ["train.mixed_precision=auto", "train.compile=true"] if name == "10.7M" else []
        settings = [*alone, *bench.args.overrides]
        sides: dict[str, Callable[[], Measurement]] = {
            ours: partial(run_side, "train_ours", overrides=settings, **common)
        }
        for extra in ["train.optimizer=adamw", *bench.args.variants]:
            sides[f"{ours}, {extra}"] = partial(
                run_side, "train_ours", overrides=[*settings, *extra.split()], **common
            )
        if bench.args.nanogpt is not None:
            run = partial(run_nanogpt, prepare_nanogpt(bench), shape, steps, evaluate=False)
            sides["nanoGPT"] = partial(run, compiled=False)
            sides["nanoGPT, compiled"] = partial(run, compiled=True)
        for program, side in (
            ("Qwen3 + Trainer", "train_qwen3_trainer"),
            ("Qwen3 in a plain loop", "train_qwen3_loop"),
        ):
            for bf16, compiled in ((False, False), (True, False), (True, True)):
                words = [*(["bf16"] if bf16 else []), *(["compiled"] if compiled else [])]
                label = ", ".join([program, "fused AdamW", *words])
                sides[label] = partial(run_side, side, bf16=bf16, compiled=compiled, **common)
        found = take_turns(sides, bench.args.rounds)
        bench.found[f"train {name}"] = found
        rows = f"{shape['batch']} rows of {shape['context']}"
        show_rates(bench, f"Training, {name} parameters, {rows}, {steps} steps", found, ours)
        speeds, peaks = (medians(found, key) for key in ("tokens_per_second", "peak_mb"))
        peer = max((key for key in speeds if "Trainer" in key), key=lambda key: speeds[key])
        bench.say(f"  peak memory: {peaks[ours] / peaks[peer]:.2f} of that of {peer}")


def bench_loss(bench: Bench) -> None:
    """Compare the time to a validation loss."""
    sides: dict[str, Callable[[], Measurement]] = {
        "hf_tinyformer": partial(
            run_side,
            "reach_loss_ours",
            text=str(bench.args.text),
            config=str(bench.args.config),
            context=README_RUN["context"],
            target=TARGET,
            overrides=bench.args.overrides,
        )
    }
    if bench.args.nanogpt is not None:
        folder = prepare_nanogpt(bench)

        def nanogpt() -> Measurement:
            run = run_nanogpt(
                folder, README_RUN, README_RUN["steps"], compiled=False, evaluate=True
            )
            judged = run_side(
                "judge_nanogpt",
                folder=str(folder),
                text=str(bench.args.text),
                context=README_RUN["context"],
            )
            return {**run, "judged_loss": judged["judged_loss"]}

        sides["nanoGPT, README's CPU run"] = nanogpt
    found = take_turns(sides, bench.args.rounds)
    bench.found["loss"] = found
    bench.say()
    bench.say(f"Time to validation loss {TARGET}, rows of 64, at most 1M parameters")
    for name, measurements in found.items():
        losses = [round(measurement["judged_loss"], 4) for measurement in measurements]
        warm = medians(found, "warm_seconds").get(name)
        cold = medians(found, "cold_seconds" if name == "hf_tinyformer" else "process_seconds")
        bench.say(
            f"  {name:28} warm {warm or float('nan'):6.1f} s   cold {cold[name]:6.1f} s   "
            f"judged at {min(losses)} to {max(losses)}"
        )
    if len(found) == 2:
        ours, peer = found.values()
        for key, other in (("warm_seconds", "warm_seconds"), ("cold_seconds", "process_seconds")):
            each = [b[other] / a[key] for a, b in zip(ours, peer, strict=True)]
            spread = f"{min(each):.1f} to {max(each):.1f}"
            bench.say(f"  {key.split('_')[0]}: {statistics.median(each):.1f} times ({spread})")


def bench_headline(bench: Bench) -> None:
    """Time our run to the loss that nanoGPT reports for an A100."""
    measured = run_side(
        "reach_loss_ours",
        text=str(bench.args.text),
        config=str(HERE.parent / "configs" / "shakespeare_256.yaml"),
        context=256,
        target=HEADLINE,
        overrides=bench.args.overrides,
    )
    bench.found["headline"] = measured
    bench.say()
    size = f"{measured['parameters']:,} parameters"
    bench.say(f"Time to validation loss {HEADLINE}, rows of 256, {size}")
    warm, cold = measured["warm_seconds"], measured["cold_seconds"]
    reached = "not reached" if warm is None else f"warm {warm:6.1f} s   cold {cold:6.1f} s"
    bench.say(f"  hf_tinyformer                {reached}   judged at {measured['judged_loss']:.4f}")


def bench_decode(bench: Bench) -> None:
    """Compare writing."""
    shape, count = SHAPES["10.7M"], 200
    for batch in (1, 16):
        common = {"shape": shape, "batch": batch, "count": count}
        ours = "hf_tinyformer"
        sides: dict[str, Callable[[], Measurement]] = {
            ours: partial(run_side, "decode_ours", **common)
        }
        for cache in ("dynamic", "static"):
            sides[f"Qwen3, generate, {cache} cache"] = partial(
                run_side, "decode_generate", cache=cache, ours=False, **common
            )
        sides["our model, generate"] = partial(
            run_side, "decode_generate", cache="dynamic", ours=True, **common
        )
        if bench.args.nanogpt is not None:
            folder = str(prepare_nanogpt(bench))
            sides["nanoGPT"] = partial(run_side, "decode_nanogpt", folder=folder, **common)
        has_llama_cpp = all(map(importlib.util.find_spec, ("gguf", "xllamacpp")))
        if batch == 1 and has_llama_cpp:
            text = str(bench.args.text)
            sides["llama.cpp, our GGUF, float32"] = partial(
                run_side, "decode_llama_cpp", text=text, shape=shape, count=count
            )
        found = take_turns(sides, bench.args.rounds)
        bench.found[f"decode {batch}"] = found
        title = f"Writing {count} tokens, 10.7M parameters, float32, {batch} at once"
        show_rates(bench, title, found, ours)


def bench_startup(bench: Bench) -> None:
    """Measure how soon the demo takes its first step, and how soon help is there."""
    command = [sys.executable, "-m", "hf_tinyformer", "--help"]
    sides: dict[str, Callable[[], Measurement]] = {
        "demo, to the first optimizer step": partial(run_side, "first_step"),
        "--help": lambda: {"seconds": run_process(command)[1]},
    }
    found = take_turns(sides, bench.args.rounds)
    bench.found["startup"] = found
    bench.say()
    bench.say("Start-up, median")
    for name, value in medians(found, "seconds").items():
        bench.say(f"  {name:44} {value:9.2f} s")


COMMANDS = {
    "roofline": bench_roofline,
    "train": bench_train,
    "loss": bench_loss,
    "headline": bench_headline,
    "decode": bench_decode,
    "startup": bench_startup,
}


def describe_machine() -> list[str]:
    """Say what the figures were measured on, and of which commit."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    flags = Path("/proc/cpuinfo").read_text().split()
    units = [unit for unit in ("avx512f", "avx512_bf16", "amx_bf16") if unit in flags]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    import torch
    import transformers

    return [
        f"{os.cpu_count()} cores, {model.group(1) if model else platform.machine()}"
        f" ({', '.join(units) or 'no AVX-512'}); {time.strftime('%Y-%m-%d')}, commit {commit}",
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.2f} at the start",
    ]


def write_figures(document: Path, lines: list[str]) -> None:
    """Put what was printed between the two comments that name it."""
    begin, end = "<!-- speed -->", "<!-- end of speed -->"
    text = document.read_text(encoding="utf-8")
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    figures = "\n".join(["```text", *"\n".join(lines).strip().splitlines(), "```"])
    document.write_text(f"{head}{begin}\n{figures}\n{end}{tail}", encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=[*COMMANDS, "all"], nargs="+")
    parser.add_argument("--text", type=Path, required=True, help="Tiny Shakespeare, input.txt")
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--config",
        type=Path,
        default=HERE.parent / "configs" / "shakespeare_quick.yaml",
        help="run of ours that `loss` times",
    )
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="key=value for every run of ours"
    )
    parser.add_argument("--variants", nargs="*", default=[], help="more sides of ours in `train`")
    parser.add_argument("--json", type=Path, help="file that gets every measurement")
    parser.add_argument("--write", type=Path, help="document that gets the figures")
    parser.add_argument("--work", type=Path, help="folder for files (default: a temporary one)")
    return parser


def main() -> None:
    """Run what was asked for."""
    args = build_parser().parse_args()
    args.text = args.text.resolve()
    names = list(COMMANDS) if "all" in args.what else args.what
    work = Path(tempfile.mkdtemp(dir=args.work))
    bench = Bench(args, work)
    for line in describe_machine():
        bench.say(line)
    if os.getloadavg()[0] > 0.5:
        bench.say("other programs are running: expect slower and less even figures")
    try:
        for name in names:
            COMMANDS[name](bench)
            if args.json is not None:
                args.json.write_text(json.dumps(bench.found, indent=1), encoding="utf-8")
    finally:
        shutil.rmtree(work)
    if args.write is not None:
        write_figures(args.write, bench.printed)


if __name__ == "__main__":
    main()
