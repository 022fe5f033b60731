"""Score any text: how likely the model finds some tokens after the tokens before them.

Everything here is made of rows. A row is a list of tokens, of which the first few are only read
and the rest are predicted. A long document becomes several rows whose windows overlap, so that
each token is predicted exactly once and, but for the first window, with much to look back on
(Press et al. 2021, Shortformer, section 3: sliding window evaluation).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_tinyformer.data.tokenization.tokenizer import (
    count_hidden_bytes,
    document_frame,
    encode_documents,
)
from hf_tinyformer.errors import ConfigError
from hf_tinyformer.inference.evaluation import (
    Evaluation,
    evaluation_mode,
    summarize_losses,
    token_losses,
)
from hf_tinyformer.inference.sizes import context_of

LOGITS_IN_BATCH = 2**28
"""Logits of one forward pass at most: 1 GiB in float32. Large vocabularies get smaller batches."""

ROWS_AT_ONCE = 1024
"""Rows sorted by length together, so that little is spent on padding."""


@dataclass(frozen=True)
class Row:
    """Tokens of which those from `num_context` on are predicted; one token at least is context."""

    ids: list[int]
    num_context: int


@dataclass(frozen=True)
class RowScore:
    """What the model made of a row."""

    loss_sum: float
    """Sum of the predicted tokens' negative log-likelihoods, in nats."""

    num_tokens: int
    """Tokens predicted."""

    is_greedy: bool
    """Whether each predicted token was the likeliest one."""


def context_length(model: Any) -> int:
    """Return how many tokens the model reads at once; see `context_of`."""
    return context_of(model.config)


def cut_windows(ids: Sequence[int], context: int, stride: int) -> Iterator[Row]:
    """Cut a document into rows that predict each token but the first exactly once.

    Args:
        ids: The document's tokens.
        context: Most tokens that the model reads at once.
        stride: Tokens predicted by each window but the first, at most `context`. Fewer look back
            further and take longer.
    """
    done = 1
    while done < len(ids):
        # A window that ends at token `stop` reads the tokens before its last.
        stop = min(len(ids), context + 1 if done == 1 else done + stride)
        start = max(0, stop - context - 1)
        yield Row(list(ids[start:stop]), done - start)
        done = stop


def batch_by_length(rows: Sequence[Row], tokens_at_once: int) -> Iterator[list[int]]:
    """Group row numbers, longest first, so that little of a batch is padding.

    Args:
        rows: What to group.
        tokens_at_once: Most tokens that a batch reads, padding included; one row at least.
    """
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number].ids), number))
    start = 0
    while start < len(order):
        size = max(1, tokens_at_once // (len(rows[order[start]].ids) - 1))
        yield order[start : start + size]
        start += size


def _pad_rows(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    # On the right, and without a mask: a causal model cannot look there.
    length = max(len(row.ids) for row in rows) - 1
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    for number, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        input_ids[number, : len(ids) - 1] = ids[:-1]
        labels[number, row.num_context - 1 : len(ids) - 1] = ids[row.num_context :]
    return input_ids, labels


def _score_batch(model: Any, rows: Sequence[Row]) -> list[RowScore]:
    input_ids, labels = _pad_rows(rows)
    is_target = labels != -100
    logits = model(input_ids=input_ids.to(model.device), use_cache=False).logits
    chosen = logits[is_target.to(logits.device)]  # (targets of all rows, vocab_size)
    targets = labels[is_target].to(logits.device)
    losses = token_losses(chosen, targets).cpu().double()
    hits = (chosen.argmax(dim=-1) == targets).cpu()
    counts = is_target.sum(dim=1).tolist()
    return [
        RowScore(float(row_losses.sum()), count, bool(row_hits.all()))
        for row_losses, row_hits, count in zip(
            losses.split(counts), hits.split(counts), counts, strict=True
        )
    ]


def score_rows(
    model: Any,
    rows: Sequence[Row],
    *,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> list[RowScore]:
    """Score rows in batches of similar length.

    Args:
        model: A causal language model; its training mode is the same afterwards.
        rows: None longer than the model's context and one.
        batch_size: Rows of full length at once; of shorter ones, as many as take their room.
            Results do not depend on it.
        on_progress: Told after each batch how many more rows are done.

    Returns:
        One score a row, in the order of the rows.
    """
    scores: dict[int, RowScore] = {}
    room = min(batch_size * context_length(model), LOGITS_IN_BATCH // model.config.vocab_size)
    with evaluation_mode(model):
        for numbers in batch_by_length(rows, room):
            found = _score_batch(model, [rows[number] for number in numbers])
            scores.update(zip(numbers, found, strict=True))
            if on_progress:
                on_progress(len(numbers))
    return [scores[number] for number in range(len(rows))]


def _check_stride(stride: int, context: int) -> None:
    if not 1 <= stride <= context:
        raise ConfigError(
            f"stride is {stride}, but it must lie between 1 and the model's "
            f"max_position_embeddings ({context}), or tokens would be left out. Change stride."
        )


def _frame_like_lm_eval(tokenizer: Any, ids: list[int]) -> list[int]:
    """Put the harness's one token to begin with before a document, and nothing behind it."""
    prefix, suffix = document_frame(tokenizer)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [begin, *ids[len(prefix) : len(ids) - len(suffix)]]


def evaluate_texts(
    model: Any,
    tokenizer: Any,
    documents: Iterable[str],
    *,
    stride: int | None = None,
    like_lm_eval: bool = False,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluate a model on any text.

    Documents are encoded as for training, so `</s>` counts as a token to predict (and as no byte),
    and `<s>` is only read. Each document is judged alone, by windows that overlap. The figure is
    therefore a little better than that of a validation split read in windows side by side.

    Args:
        model: A causal language model; its training mode is the same afterwards.
        tokenizer: Its tokenizer.
        documents: Texts, read one after another and never all at once.
        stride: Tokens that each window adds. Unset: half of the model's context.
        like_lm_eval: Count as lm-evaluation-harness does in `loglikelihood_rolling`, so that its
            bits per byte compare: windows side by side, `</s>` not predicted.
        batch_size: As for `score_rows`. Changes speed and memory only.
        on_progress: Told now and then how many more tokens are done.

    Returns:
        Loss, perplexity and bits per byte over all documents together.

    Raises:
        ConfigError: If `stride` is not between 1 and the context.
        DataError: If there is nothing to predict.
    """
    context = context_length(model)
    if stride is None:
        stride = context if like_lm_eval else max(1, context // 2)
    _check_stride(stride, context)
    loss_sum, num_tokens, num_bytes, hidden_bytes = 0.0, 0, 0, 0
    rows: list[Row] = []

    def score_pending() -> None:
        nonlocal loss_sum, num_tokens
        scores = score_rows(model, rows, batch_size=batch_size)
        count = sum(score.num_tokens for score in scores)
        loss_sum += sum(score.loss_sum for score in scores)
        num_tokens += count
        rows.clear()
        if on_progress:
            on_progress(count)

    for document in documents:
        num_bytes += len(document.encode("utf-8"))
        hidden_bytes += count_hidden_bytes(tokenizer, [document])[0]
        ids = encode_documents(tokenizer, [document])[0]
        if like_lm_eval:
            ids = _frame_like_lm_eval(tokenizer, ids)
        for row in cut_windows(ids, context, stride):
            rows.append(row)
            if len(rows) == ROWS_AT_ONCE:
                score_pending()
    if rows:
        score_pending()
    return summarize_losses(loss_sum, num_tokens, num_bytes, hidden_bytes)
