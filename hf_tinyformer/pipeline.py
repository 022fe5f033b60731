"""The whole walk in order: text, tokenizer, tokens, training, final folder.

A stage whose folder already holds the same inputs is skipped, so the same command goes on where the
last one stopped, whatever stopped it.
"""

import logging
import platform
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerFast

from hf_tinyformer.artifacts import fingerprint, hold_folder, write_text
from hf_tinyformer.data.store.tokens import TokenStores
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.sources import Source
from hf_tinyformer.data.tokenization.tokenizer import tokenizer_fingerprint
from hf_tinyformer.first_weights import build_model
from hf_tinyformer.inference.evaluation import Evaluation
from hf_tinyformer.model.modeling_tinyformer import TinyFormerForCausalLM
from hf_tinyformer.prepared import holds_inputs, open_text, pin_data, prepare_text, text_dir
from hf_tinyformer.publishing.card import (
    CardFacts,
    SplitFacts,
    TrainingFacts,
    describe_hardware,
)
from hf_tinyformer.publishing.final import write_final
from hf_tinyformer.run_config import RunConfig, model_keys, to_yaml
from hf_tinyformer.training.checkpoint import load_weights, verify_checkpoint
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.loop import train
from hf_tinyformer.training.metrics import FIGURE_NAME, Reporter
from hf_tinyformer.training.precision import build_accelerator, name_precision
from hf_tinyformer.training.processes import Processes
from hf_tinyformer.training.result import TrainingResult
from hf_tinyformer.training.step import fit_micro_batch, split_batch
from hf_tinyformer.training.validation import evaluate_split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    training: TrainingResult
    final_dir: Path | None
    """The folder to load, or `None` if the run was interrupted."""


def _weights(data: DataConfig) -> dict[str, Any]:
    weights = data.weights()
    if len(weights) == 1:
        return {}
    return {"sources": {name: {"weight": weight} for name, weight in weights.items()}}


def _identity(
    config: RunConfig, model: TinyFormerForCausalLM, tokenizer: Any, stores: TokenStores
) -> dict[str, Any]:
    """What must not change between two starts of a run, by the keys that the user would set."""
    model_settings = model.config.to_dict()
    return {
        "seed": config.seed,
        **({"init_from": config.init_from} if config.init_from else {}),
        "data": {
            "sequence_length": config.data.sequence_length,
            "mask_documents": config.data.mask_documents,
            "tokens": stores.fingerprint,
            **_weights(config.data),
        },
        "tokenizer": {"fingerprint": tokenizer_fingerprint(tokenizer)},
        "model": {key: model_settings[key] for key in model_keys()},
        "train": {
            "global_batch_size": config.train.global_batch_size,
            "optimizer": config.train.optimizer,
        },
    }


def _describe_corpus(config: RunConfig) -> str:
    data = config.data
    if config.card.corpus:
        return config.card.corpus
    if not data.sources:
        return _describe_source(data, data.prepared)
    total = sum(data.weights().values())
    return ", ".join(
        f"{_describe_source(source, None)} ({source.weight / total:.1%} of the rows)"
        for source in data.sources.values()
    )


def _describe_source(data: Source, prepared: str | None) -> str:
    if data.builtin:
        return f"{data.builtin} (the standard library of Python {platform.python_version()})"
    if data.dataset:
        parts = [data.dataset, data.dataset_config, data.dataset_split]
        return ", ".join(part for part in parts if part)
    if not data.files:
        return f"{Path(str(prepared)).name}, prepared before"
    # Names only: where they lay is nobody's business.
    return ", ".join(Path(pattern).name for pattern in data.files)


def _describe_split(data: DataConfig) -> str:
    if not data.is_named():
        return "Validation was set apart when the corpus was prepared."
    if data.validation_files:
        names = ", ".join(Path(pattern).name for pattern in data.validation_files)
        return f"Validation texts are files of their own: {names}."
    whole = "each source" if data.sources else "the corpus"
    share = f"{data.validation_fraction:.3g} of {whole}"
    if data.validation_split == "tail":
        return f"Validation is the last {share}."
    return f"Validation is about {share}, whole documents chosen by the hash of their text."


def _describe_optimizer(train_config: TrainConfig) -> tuple[str, str]:
    """Say in words how weights moved and how fast."""
    adamw = (
        f"AdamW, learning rate {train_config.learning_rate:g}, "
        f"betas {train_config.adam_beta1:g} and {train_config.adam_beta2:g}"
    )
    decay = f"weight decay {train_config.weight_decay:g} on matrices"
    optimizer = f"{adamw}, {decay}"
    if train_config.optimizer == "muon":
        muon = f"Muon, learning rate {train_config.muon_learning_rate:g}, for matrices in blocks"
        optimizer = f"{muon}; {adamw}, for the rest; {decay}"
    schedule = f"{train_config.warmup_steps} steps of warm-up, then "
    if train_config.schedule == "cosine":
        schedule += "a cosine"
    else:
        schedule += f"level, then linear over the last {train_config.decay_fraction:.0%}"
    return optimizer, f"{schedule}, to {train_config.min_learning_rate_ratio:g} of the peak"


def _origin(init_from: str | None) -> dict[str, str]:
    if init_from is None:
        return {}
    folder = Path(init_from)
    if not folder.exists():
        return {"begun_from": init_from, "base_model": init_from}
    folder = folder.resolve()
    return {"begun_from": folder.parent.name if folder.name == "final" else folder.name}


def _card_facts(
    config: RunConfig,
    stores: TokenStores,
    result: TrainingResult,
    *,
    weights_step: int,
    evaluation: Evaluation,
    accelerator: Accelerator,
) -> CardFacts:
    data = config.data
    optimizer, schedule = _describe_optimizer(config.train)
    precision = name_precision(accelerator)
    sources = data.named_sources().values() if data.is_named() else ()
    named = [source.dataset for source in sources if source.dataset is not None]
    return CardFacts(
        name=config.name,
        corpus=_describe_corpus(config),
        splits={
            name: SplitFacts(
                num_documents=store.num_documents,
                num_bytes=store.num_bytes,
                num_tokens=store.num_tokens,
            )
            for name, store in (("train", stores.train), ("validation", stores.validation))
        },
        split_rule=_describe_split(data),
        training=TrainingFacts(
            steps=result.step,
            weights_step=weights_step,
            tokens_seen=result.tokens_seen,
            seconds=result.seconds,
            global_batch_size=config.train.global_batch_size,
            sequence_length=data.sequence_length,
            optimizer=optimizer,
            schedule=schedule,
            precision=precision if precision == "fp32" else f"{precision}, weights in fp32",
            hardware=describe_hardware(accelerator.device, accelerator.num_processes),
            seed=config.seed,
        ),
        evaluation=evaluation,
        run_config=to_yaml(config),
        **_origin(config.init_from),
        sample_prompt=config.train.sample_prompt,
        languages=config.card.languages,
        license=config.card.license,
        datasets=[name for name in dict.fromkeys(named) if not Path(name).exists()],
    )


def finish(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    stores: TokenStores,
    result: TrainingResult,
    accelerator: Accelerator,
) -> Path:
    """Write `<run_dir>/final` from the run's best or last checkpoint, unless it is there already.

    Call it on every process: they share the evaluation that the card reports.

    Args:
        config: The run.
        tokenizer: The run's tokenizer.
        stores: The run's tokens.
        result: Where training ended.
        accelerator: Device and processes.

    Returns:
        The final folder.
    """
    folder = config.run_dir / "final"
    best = config.train.final_weights == "best"
    checkpoint = result.best_checkpoint if best else result.checkpoint
    inputs = fingerprint([result.step, checkpoint.name, to_yaml(config)])
    processes = Processes(accelerator)
    holds = processes.main_first(
        lambda: int(holds_inputs(folder, kind="final", inputs=inputs)), what=f"look into {folder}"
    )
    if holds:
        return folder
    # A model of its own, whole on every process even where training had it in shards.
    model = build_model(config, tokenizer)
    load_weights(model, checkpoint)
    model.to(accelerator.device)
    train_config = fit_micro_batch(
        config.train,
        model,
        accelerator.device,
        processes=processes.count,
        sequence_length=config.data.sequence_length,
    )
    evaluation = evaluate_split(
        model,
        stores.validation,
        data=config.data,
        batch_size=split_batch(train_config, processes.count)[0],
        accelerator=accelerator,
    )
    hidden_bytes = stores.facts["splits"]["validation"]["hidden_bytes"]
    evaluation = replace(evaluation, hidden_bytes=hidden_bytes)

    def write() -> int:
        write_final(
            folder,
            model=model,
            tokenizer=tokenizer,
            card_facts=_card_facts(
                config,
                stores,
                result,
                weights_step=int(verify_checkpoint(checkpoint)["step"]),
                evaluation=evaluation,
                accelerator=accelerator,
            ),
            curve=config.run_dir / FIGURE_NAME,
            facts={"inputs": inputs},
        )
        return 0

    processes.main_first(write, what=f"write {folder}")
    return folder


def run_pipeline(config: RunConfig, *, reporter: Reporter, cpu: bool = False) -> RunResult:
    """Walk from raw text to a folder that `AutoModel` loads.

    Call it on every process of an `accelerate launch`; the first one prepares, the others wait.

    Args:
        config: The run.
        reporter: Shown the progress, on the main process.
        cpu: Stay on the CPU even if there is a GPU.

    Returns:
        Where training stands and, unless it was interrupted, the final folder.

    Raises:
        TinyFormerError: In one line, whatever the user can put right.
    """
    run_dir = config.run_dir
    accelerator = build_accelerator(config.train, cpu=cpu)
    processes = Processes(accelerator)

    with ExitStack() as stack:

        def prepare() -> int:
            stack.enter_context(hold_folder(run_dir))
            pinned = pin_data(config, text_dir(config))
            # How a start began is no part of the run: its own file goes on with it.
            own = replace(pinned, train=replace(pinned.train, resume="auto"))
            write_text(run_dir / "config.yaml", to_yaml(own))
            prepare_text(pinned)
            return 0

        processes.main_first(prepare, what="prepare the text")
        config = pin_data(config, text_dir(config))
        tokenizer, stores = open_text(config)
        model = build_model(config, tokenizer)
        result = train(
            model=model,
            tokenizer=tokenizer,
            stores=stores,
            run_dir=run_dir,
            config=config.train,
            data=config.data,
            seed=config.seed,
            identity=_identity(config, model, tokenizer, stores),
            accelerator=accelerator,
            reporter=reporter,
        )
        # `finish` builds its own: not both at a time.
        del model
        accelerator.free_memory()
        if result.status == "interrupted":
            return RunResult(result, None)
        return RunResult(result, finish(config, tokenizer, stores, result, accelerator))
