"""The training loop: batches and a model become checkpoints, whatever kills it on the way.

    resume ──> step ──> log ──> evaluate ──> save ──> step ...

Everything random or scheduled is a function of (seed, step), so the loop's whole state is the
weights, the optimizers' state and `TrainingState`. A run that was killed and started again with the
same command therefore ends in the same weights, bit for bit.
"""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_tinyformer.data.store.batches import TrainingBatches
from hf_tinyformer.data.store.tokens import TokenStores
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.errors import TrainingError
from hf_tinyformer.training.checkpoint import (
    TrainingState,
    load_optimizers,
    load_weights,
    model_tensors,
    optimizer_tensors,
    read_state,
)
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.interruption import Interruption
from hf_tinyformer.training.metrics import (
    MetricsLog,
    Reporter,
    name_epochs,
    without_odd_numbers,
)
from hf_tinyformer.training.precision import find_slow_precision, name_precision
from hf_tinyformer.training.preparation import compiles, prepare_model
from hf_tinyformer.training.processes import Processes
from hf_tinyformer.training.randomness import derive_seed
from hf_tinyformer.training.result import Status, TrainingResult
from hf_tinyformer.training.resume import find_start
from hf_tinyformer.training.rotation import Checkpoints
from hf_tinyformer.training.step import StepOutcome, StepRunner, fit_micro_batch
from hf_tinyformer.training.trackers import open_tracker
from hf_tinyformer.training.validation import continue_prompt, evaluate_split


class _Run:
    """One start of a run, between loading its state and leaving."""

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        stores: TokenStores,
        config: TrainConfig,
        data: DataConfig,
        seed: int,
        identity: Mapping[str, Any],
        accelerator: Accelerator,
        reporter: Reporter,
        checkpoints: Checkpoints,
        resumed_from: Path | None,
    ) -> None:
        self.bare_model = model
        self.tokenizer = tokenizer
        self.stores = stores
        self.config = config
        self.data = data
        self.seed = seed
        self.identity = identity
        self.accelerator = accelerator
        self.reporter = reporter
        self.checkpoints = checkpoints
        self.processes = Processes(accelerator)
        self.log: MetricsLog | None = None
        self.interruption = Interruption()
        self.state = TrainingState()
        if resumed_from is not None:
            self.state = read_state(resumed_from, identity)
            best_step = self.state.best_step
            if best_step is not None and not checkpoints.path(best_step).exists():
                # Its weights are gone (find_start said so): the best is sought among what is here.
                self.state.best_step = self.state.best_loss = None
            load_weights(model, resumed_from)
        self.runner = self._build_runner(resumed_from)
        self.tokens_per_step = config.global_batch_size * data.sequence_length
        self._seconds_before = self.state.seconds
        self._started = self._saved_at = time.monotonic()

    def _build_runner(self, resumed_from: Path | None) -> StepRunner:
        model, config, accelerator = self.bare_model, self.config, self.accelerator
        length = self.data.sequence_length
        self.is_compiled = compiles(model, config, accelerator, sequence_length=length)
        called, optimizers = prepare_model(model, config, accelerator, sequence_length=length)
        if resumed_from is not None:
            load_optimizers(model, optimizers, resumed_from)
            if accelerator.scaler is not None and self.state.scaler:
                accelerator.scaler.load_state_dict(self.state.scaler)
        self.batches = TrainingBatches(
            self.stores.train,
            sequence_length=self.data.sequence_length,
            global_batch_size=config.global_batch_size,
            seed=self.seed,
            mask_documents=self.data.mask_documents,
            sources=self.stores.sources,
            weights=self.data.weights(),
        )
        return StepRunner(
            model=called,
            bare_model=model,
            optimizers=optimizers,
            batches=self.batches,
            config=config,
            seed=self.seed,
            accelerator=accelerator,
        )

    def facts(self) -> dict[str, Any]:
        """Say what a reader of the progress display wants to know at the start."""
        parameters = sum(p.numel() for p in self.bare_model.parameters())
        return {
            "parameters": parameters,
            "device": self.processes.device.type,
            "processes": self.processes.count,
            **({"weights": self.processes.sharing} if self.processes.count > 1 else {}),
            "precision": name_precision(self.accelerator),
            **({"compiled": "yes; the first step takes a while"} if self.is_compiled else {}),
            "optimizer": self.config.optimizer,
            "tokens_per_step": self.tokens_per_step,
            "micro_batch_size": self.runner.micro_batch_size,
            "accumulation": self.runner.num_micro_batches,
            **name_epochs(self.epochs(self.config.max_steps)),
        }

    def epochs(self, step: int) -> dict[str, float]:
        """How many times each source has been read when `step` steps are done."""
        return self.batches.epochs(step)

    def go(self) -> Status:
        """Train until the last step, an early stop or a signal."""
        state, config = self.state, self.config
        save_due = False
        while True:
            improved = self._evaluate() if self._evaluation_is_due() else False
            status: Status | None = None
            if self._is_out_of_patience():
                status = "early_stopped"
            elif state.step >= config.max_steps:
                status = "finished"
            if status or improved or save_due:
                self._save()
            if status:
                return status
            outcome = self._take_step()
            if outcome.stop:
                # Before an evaluation that may be due: a scheduler's patience is short. The state
                # says that it is not done, so the next start begins with it.
                self._save()
                return "interrupted"
            by_steps = config.save_every_steps
            save_due = outcome.save or bool(by_steps and state.step % by_steps == 0)

    def _is_out_of_patience(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.state.evaluations_without_improvement >= patience

    def _requests(self) -> tuple[bool, bool]:
        minutes = self.config.save_every_minutes
        waited = time.monotonic() - self._saved_at
        return self.interruption.requested, minutes is not None and waited >= 60 * minutes

    def _take_step(self) -> StepOutcome:
        started = time.monotonic()
        state = self.state
        outcome = self.runner.run(state.step, self._requests)
        state.step += 1
        now = time.monotonic()
        state.seconds = self._seconds_before + now - self._started
        if self.log is not None:
            metrics: dict[str, Any] = {
                "step": state.step,
                "loss": outcome.loss,
                "learning_rate": outcome.learning_rate,
                "grad_norm": outcome.grad_norm,
                "tokens": state.step * self.tokens_per_step,
                "tokens_per_second": round(self.tokens_per_step / (now - started), 1),
                "seconds": round(state.seconds, 3),
                **name_epochs(self.epochs(state.step)),
            }
            if not outcome.taken:
                metrics["skipped"] = True
            self.log.write(metrics)
            self.reporter.on_step(without_odd_numbers(metrics))
        self._count_bad_step(outcome)
        return outcome

    def _count_bad_step(self, outcome: StepOutcome) -> None:
        state, config = self.state, self.config
        if outcome.taken or outcome.overflowed:
            state.bad_steps_in_a_row = 0
            return
        state.bad_steps_in_a_row += 1
        state.bad_steps.append(state.step)
        found = f"loss {outcome.loss}, gradient norm {outcome.grad_norm}"
        if state.bad_steps_in_a_row > config.max_bad_steps:
            raise TrainingError(
                f"step {state.step} has {found}: {state.bad_steps_in_a_row} steps in a row are not "
                f"finite, but train.max_bad_steps is {config.max_bad_steps}. The weights are still "
                f"finite; start again with a lower train.learning_rate "
                f"({config.learning_rate}) or train.muon_learning_rate "
                f"({config.muon_learning_rate}), a longer train.warmup_steps "
                f"({config.warmup_steps}) or train.mixed_precision=fp32."
            )
        if self.processes.is_main:
            self.reporter.on_message(f"Step {state.step} was skipped: {found}.")

    def _evaluation_is_due(self) -> bool:
        step, config = self.state.step, self.config
        at_interval = step > 0 and step % config.evaluate_every == 0
        return (at_interval or step == config.max_steps) and self.state.evaluated_step < step

    def _evaluate(self) -> bool:
        """Evaluate on the whole validation split; say whether this is the best loss so far."""
        state = self.state
        evaluation = evaluate_split(
            self.bare_model,
            self.stores.validation,
            data=self.data,
            batch_size=self.runner.micro_batch_size,
            accelerator=self.accelerator,
        )
        best, loss = state.best_loss, evaluation.loss
        # What is not finite is no improvement, and whatever is finite improves on it.
        improved = math.isfinite(loss) and not (best is not None and loss >= best)
        if improved:
            state.best_step, state.best_loss = state.step, loss
        state.evaluations_without_improvement = (
            0 if improved else state.evaluations_without_improvement + 1
        )
        state.evaluated_step = state.step
        sample = None
        if math.isfinite(evaluation.loss):  # else there is nothing to draw from
            sample = continue_prompt(
                self.bare_model,
                self.tokenizer,
                self.config,
                seed=derive_seed(self.seed, "sample", state.step),
                accelerator=self.accelerator,
            )
        if self.log is not None:
            metrics = {
                "step": state.step,
                "validation_loss": evaluation.loss,
                "perplexity": evaluation.perplexity,
                "bits_per_byte": evaluation.bits_per_byte,
                **name_epochs(self.epochs(state.step)),
                "sample": sample,
            }
            self.log.write(metrics)
            self.log.draw()
            self.reporter.on_evaluation(metrics)
        return improved

    def _save(self) -> None:
        state = self.state
        scaler = self.accelerator.scaler
        state.scaler = scaler.state_dict() if scaler is not None else {}
        # Outside the main process's part: gathering a sharded model needs every process.
        weights = model_tensors(self.bare_model)
        optimizer_state = optimizer_tensors(self.bare_model, self.runner.optimizers)

        def write() -> int:
            assert self.log is not None
            self.log.sync()
            self.checkpoints.save(
                state,
                weights=weights,
                optimizer_state=optimizer_state,
                identity=self.identity,
                keep_last=self.config.keep_last,
            )
            return 0

        self.processes.main_first(write, what=f"write the checkpoint of step {state.step}")
        self._saved_at = time.monotonic()


def train(
    *,
    model: Any,
    tokenizer: Any,
    stores: TokenStores,
    run_dir: Path,
    config: TrainConfig,
    data: DataConfig,
    seed: int,
    identity: Mapping[str, Any],
    accelerator: Accelerator,
    reporter: Reporter,
) -> TrainingResult:
    """Train a model, going on from the run's newest checkpoint if it has one.

    Call it on every process of an `accelerate launch`; they must share `run_dir`, and nobody else
    may write there meanwhile (`artifacts.hold_folder`).

    Args:
        model: A causal language model with fresh float32 weights, the same on every process.
        tokenizer: For the sample at each evaluation.
        stores: The train and validation tokens.
        run_dir: The run's folder: metrics.jsonl, loss.png and checkpoints/ go there.
        config: How to train.
        data: How rows are cut.
        seed: Decides batches, dropout and samples.
        identity: JSON values that must be equal for two starts to be the same run.
        accelerator: Device, processes and precision, see `precision.build_accelerator`.
        reporter: Shown the progress, on the main process.

    Returns:
        Where the run stands. The model holds the weights of the last step.

    Raises:
        ConfigError: If the global batch does not divide evenly, or a tracker is not installed.
        ArtifactError: If a checkpoint named by `config.resume` is damaged, or the newest one is of
            another run.
        TrainingError: If too many steps in a row were not finite.
    """
    processes = Processes(accelerator)
    config = fit_micro_batch(
        config,
        model,
        accelerator.device,
        processes=processes.count,
        sequence_length=data.sequence_length,
    )
    checkpoints = Checkpoints(run_dir)
    with ExitStack() as stack:
        resumed_from = find_start(config, checkpoints, identity, processes, reporter)
        run = _Run(
            model=model,
            tokenizer=tokenizer,
            stores=stores,
            config=config,
            data=data,
            seed=seed,
            identity=identity,
            accelerator=accelerator,
            reporter=reporter,
            checkpoints=checkpoints,
            resumed_from=resumed_from,
        )

        def open_log() -> int:
            run_dir.mkdir(parents=True, exist_ok=True)
            run.log = stack.enter_context(_open_log(run, run_dir))
            return 0

        processes.main_first(open_log, what="open the metrics and the tracker")
        if processes.is_main:
            reporter.on_start(
                total_steps=config.max_steps, start_step=run.state.step, facts=run.facts()
            )
            if warning := find_slow_precision(accelerator):
                reporter.on_message(warning)
        with run.interruption:
            status = run.go()
        if run.log is not None and status == "interrupted":
            run.log.draw()  # the other endings drew it at their last evaluation
        return _result(run, status)


def _open_log(run: _Run, run_dir: Path) -> MetricsLog:
    state = run.state
    tracker = open_tracker(
        run.config.tracker, run_dir=run_dir, start_step=state.step, facts=run.facts()
    )
    return MetricsLog(
        run_dir, step=state.step, evaluated_step=state.evaluated_step, tracker=tracker
    )


def _result(run: _Run, status: Status) -> TrainingResult:
    state = run.state
    last = run.checkpoints.path(state.step)
    best = last if state.best_step is None else run.checkpoints.path(state.best_step)
    return TrainingResult(
        step=state.step,
        best_step=state.best_step,
        best_loss=state.best_loss,
        tokens_seen=state.step * run.tokens_per_step,
        status=status,
        checkpoint=last,
        best_checkpoint=best if best.exists() else last,
        seconds=state.seconds,
        epochs=run.epochs(state.step),
    )
