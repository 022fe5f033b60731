"""Two classic tests that need no training on the task, read from local files.

BLiMP (Warstadt et al. 2020): of two sentences that differ in one point of grammar, does the model
find the right one likelier? LAMBADA (Paperno et al. 2016): does it know the last word of a passage
that can only be guessed from the whole? Both are counted as lm-evaluation-harness counts them, but
that its BLiMP puts a space before each sentence, with which no document of ours begins.
"""

import gzip
import json
import lzma
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_tinyformer.errors import DataError
from hf_tinyformer.inference.generation import encode_prompt
from hf_tinyformer.inference.scoring import Row, context_length, score_rows


@dataclass(frozen=True, kw_only=True)
class BlimpResult:
    """Shares of pairs in which the grammatical sentence is the likelier one."""

    accuracy: float
    """Over all pairs. Guessing gives 0.5."""

    num_pairs: int
    """Pairs judged."""

    by_term: dict[str, float]
    """The same for each linguistic term, such as `island_effects`."""

    by_paradigm: dict[str, float]
    """The same for each paradigm (`UID`), such as `adjunct_island`."""


@dataclass(frozen=True, kw_only=True)
class LambadaResult:
    """How well the last word of a passage is guessed."""

    accuracy: float
    """Share of passages whose last word is what greedy decoding would write."""

    perplexity: float
    """exp of the mean negative log-likelihood of a whole last word, in nats."""

    num_passages: int
    """Passages judged."""


def _open_lines(path: Path) -> Any:
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def read_records(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Read a file of one JSON object a line, plain or packed as .gz or .xz.

    Args:
        path: The file.
        fields: Keys that each object must have, with text as value.

    Yields:
        The line's place, as `file:line`, and its object. Empty lines are passed over.

    Raises:
        DataError: If the file cannot be read, or a line is not as it should be.
    """
    try:
        with _open_lines(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parse_record(f"{path}:{number}", line, fields)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. Give a .jsonl file, plain or packed as .gz or .xz."
        ) from None


def _parse_record(place: str, line: bytes, fields: tuple[str, ...]) -> dict[str, str]:
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        raise DataError(f"{place} is not UTF-8. Convert the file or mend the line.") from None
    except ValueError as error:
        raise DataError(f"{place} is not JSON: {error}. Mend or remove the line.") from None
    for field in fields:
        value = record.get(field) if isinstance(record, dict) else None
        if not isinstance(value, str) or not value:
            raise DataError(
                f"{place} has no text under the key {field!r}, but each line needs "
                f"{', '.join(fields)}. Mend or remove the line, or give another file."
            )
    return dict(record)


def encode_with_start(tokenizer: Any, text: str) -> list[int]:
    """Encode a text so that one token stands before it, from which its first token is predicted.

    That is `<s>`, with which every document began in training, or what `encode_prompt` takes for
    it where the tokenizer was told to add none.
    """
    ids = encode_prompt(tokenizer, text)
    return ids if ids[0] == tokenizer.bos_token_id else encode_prompt(tokenizer, "")[:1] + ids


def _mean_by(groups: Mapping[str, list[bool]]) -> dict[str, float]:
    return {name: sum(hits) / len(hits) for name, hits in sorted(groups.items())}


def _refuse_empty(path: Path, count: int) -> None:
    if not count:
        raise DataError(f"{path} has 0 lines to judge, but 1 is needed. Give another file.")


def evaluate_blimp(
    model: Any,
    tokenizer: Any,
    path: Path,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> BlimpResult:
    """Judge minimal pairs by the summed log-probability of the whole sentences.

    Each sentence follows `<s>` (see `encode_with_start`), and `</s>` is not counted. The sum is not
    divided by length. A tie counts as a miss. A sentence longer than the context is judged by its
    last tokens, the only ones that fit beside each other.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        path: Lines with `sentence_good`, `sentence_bad`, `UID` and `linguistics_term`.
        limit: Judge only the first pairs of each paradigm, this many. Unset: all.
        batch_size: As for `score_rows`. Changes speed and memory only.
        on_progress: Told after each batch how many more sentences are done.

    Raises:
        DataError: If a line is not as it should be, with its `file:line`.
    """
    names: list[tuple[str, str]] = []
    rows: list[Row] = []
    seen: defaultdict[str, int] = defaultdict(int)
    context = context_length(model)
    fields = ("sentence_good", "sentence_bad", "UID", "linguistics_term")
    for _, record in read_records(path, fields):
        seen[record["UID"]] += 1
        if limit is not None and seen[record["UID"]] > limit:
            continue
        names.append((record["linguistics_term"], record["UID"]))
        for field in ("sentence_good", "sentence_bad"):
            rows.append(Row(encode_with_start(tokenizer, record[field])[-context - 1 :], 1))
    _refuse_empty(path, len(names))
    scores = score_rows(model, rows, batch_size=batch_size, on_progress=on_progress)
    by_term: defaultdict[str, list[bool]] = defaultdict(list)
    by_paradigm: defaultdict[str, list[bool]] = defaultdict(list)
    for (term, paradigm), good, bad in zip(names, scores[::2], scores[1::2], strict=True):
        by_term[term].append(good.loss_sum < bad.loss_sum)
        by_paradigm[paradigm].append(good.loss_sum < bad.loss_sum)
    return BlimpResult(
        accuracy=sum(map(sum, by_paradigm.values())) / len(names),
        num_pairs=len(names),
        by_term=_mean_by(by_term),
        by_paradigm=_mean_by(by_paradigm),
    )


def _last_word_row(tokenizer: Any, place: str, text: str, context: int) -> Row:
    passage, space, word = text.rpartition(" ")
    if not passage or not word:
        raise DataError(
            f"{place} ends in no word after a space, but the last word is what is judged. "
            "Mend or remove the line."
        )
    before = encode_with_start(tokenizer, passage)
    ids = encode_with_start(tokenizer, passage + space + word)
    num_context = 0
    # Most tokenizers cut at the space. Where one does not, the word begins at the first token
    # that is not the passage's own.
    while num_context < len(before) and before[num_context] == ids[num_context]:
        num_context += 1
    num_dropped = max(0, len(ids) - context - 1)
    if num_dropped >= num_context:
        raise DataError(
            f"{place} ends in a word of {len(ids) - num_context} tokens, but the model's "
            f"max_position_embeddings is {context}. Mend or remove the line."
        )
    return Row(ids[num_dropped:], num_context - num_dropped)


def evaluate_lambada(
    model: Any,
    tokenizer: Any,
    path: Path,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    on_progress: Callable[[int], None] | None = None,
) -> LambadaResult:
    """Judge the last word of each passage, given all before it.

    The last word is what follows the last space, with that space. The passage follows `<s>`; of one
    longer than the context, its end is read.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        path: Lines with `text`.
        limit: Judge only the first passages, this many. Unset: all.
        batch_size: As for `score_rows`. Changes speed and memory only.
        on_progress: Told after each batch how many more passages are done.

    Raises:
        DataError: If a line is not as it should be, with its `file:line`.
    """
    context = context_length(model)
    rows: list[Row] = []
    for place, record in read_records(path, ("text",)):
        if limit is not None and len(rows) == limit:
            break
        rows.append(_last_word_row(tokenizer, place, record["text"], context))
    _refuse_empty(path, len(rows))
    scores = score_rows(model, rows, batch_size=batch_size, on_progress=on_progress)
    mean_loss = sum(score.loss_sum for score in scores) / len(scores)
    return LambadaResult(
        accuracy=sum(score.is_greedy for score in scores) / len(scores),
        perplexity=math.inf if mean_loss > 709 else math.exp(mean_loss),
        num_passages=len(scores),
    )
