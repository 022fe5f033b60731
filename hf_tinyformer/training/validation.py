"""What is done at each evaluation: exact figures of a split, and a sample of text."""

from typing import Any

from accelerate import Accelerator

from hf_tinyformer.data.store.batches import validation_batches
from hf_tinyformer.data.store.tokens import TokenStore
from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.inference.evaluation import Evaluation, sum_losses, summarize_losses
from hf_tinyformer.inference.generation import generate_text
from hf_tinyformer.training.config import TrainConfig
from hf_tinyformer.training.processes import Processes


def evaluate_split(
    model: Any,
    store: TokenStore,
    *,
    data: DataConfig,
    batch_size: int,
    accelerator: Accelerator,
) -> Evaluation:
    """Evaluate a model on every token of a split.

    Args:
        model: The bare model; its training mode is the same afterwards.
        store: The split.
        data: How rows are cut.
        batch_size: Rows at once on each process; no figure depends on it.
        accelerator: Device, processes and precision. Every process must call this.

    Returns:
        The figures, the same on every process.
    """
    processes = Processes(accelerator)
    batches = validation_batches(
        store,
        sequence_length=data.sequence_length,
        batch_size=batch_size,
        mask_documents=data.mask_documents,
        rank=processes.rank,
        num_ranks=processes.count,
    )
    loss_sum, num_tokens = sum_losses(
        model, batches, processes.device, autocast=accelerator.autocast
    )
    loss_sum, total = processes.sum([loss_sum, num_tokens])
    return summarize_losses(loss_sum, int(total), store.num_bytes)


def continue_prompt(
    model: Any, tokenizer: Any, config: TrainConfig, *, seed: int, accelerator: Accelerator
) -> str | None:
    """Let the model go on with `train.sample_prompt`; nothing that is random elsewhere moves.

    Args:
        model: The bare model; its training mode is the same afterwards.
        tokenizer: Its tokenizer.
        config: The prompt and the length.
        seed: Decides the text.
        accelerator: Device, processes and precision.

    Returns:
        The text on the main process; `None` on others, and where no sample is wanted.
    """
    processes = Processes(accelerator)
    # A sharded model is run by all processes at once, so each of them draws the same text.
    if not config.sample_tokens or not (processes.is_main or processes.shards_model):
        return None
    with accelerator.autocast():
        return generate_text(
            model,
            tokenizer,
            config.sample_prompt,
            max_new_tokens=config.sample_tokens,
            seed=seed,
        )
