"""Train, save, load and use tokenizers; the kinds themselves are in tokenizer_training.py.

A special token is made in two places only: `encode_documents` puts `<s>` and `</s>` around a
document, and the post-processor inside tokenizer.json puts `<s>` before a prompt. A corpus that
contains the letters `<s>` gets the tokens of those letters. In a prompt, as everywhere in
transformers, the letters `<s>` are the special token; pass `split_special_tokens=True` for letters.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from hf_tinyformer.artifacts import fingerprint, read_manifest, write_folder
from hf_tinyformer.data.text.documents import check_text
from hf_tinyformer.data.tokenization.chat_template import (
    check_chat_template,
    read_chat_template,
)
from hf_tinyformer.data.tokenization.jamo import decompose_syllables, has_jamo_normalizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.data.tokenization.tokenizer_training import (
    BOS_TOKEN,
    EOS_TOKEN,
    PAD_TOKEN,
    UNK_TOKEN,
    list_special_tokens,
    train_backend,
)
from hf_tinyformer.data.tokenization.training_texts import choose_texts
from hf_tinyformer.errors import ArtifactError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

JAMO_CODE, JAMO_CLASS = "tokenization_tinyformer", "TinyFormerTokenizer"
"""Module and class, in the model's room, that write syllables again when they decode."""


def _checked(texts: Iterable[str]) -> Iterator[str]:
    num_characters = 0
    for index, text in enumerate(texts):
        check_text(text, f"training text {index}")
        num_characters += len(text)
        yield text
    if not num_characters:
        raise DataError(
            "The training split has 0 characters, but a tokenizer is learned from its text. "
            "Point data.files, data.dataset or data.builtin to a corpus with text."
        )


def _class_named(auto_map: Mapping[str, Any] | None) -> type["PreTrainedTokenizerFast"]:
    """Find the class that a tokenizer's `auto_map` names, if it is one that we registered.

    The room of the model is no business of this one, hence the way round through transformers.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    for reference in (auto_map or {}).get("AutoTokenizer") or ():
        if reference and reference.endswith(f"{JAMO_CODE}.{JAMO_CLASS}"):
            return tokenizer_class_from_name(JAMO_CLASS)
    return PreTrainedTokenizerFast


def train_tokenizer(
    config: TokenizerConfig, texts: Iterable[str], *, sequence_length: int
) -> "PreTrainedTokenizerFast":
    """Learn a tokenizer. The same texts in the same order give the same tokenizer.

    Args:
        config: Which kind, how large, and what stands around a document.
        texts: The training split's documents, read once.
        sequence_length: Tokens the model reads at once, stored as `model_max_length`.

    Returns:
        A tokenizer with ids 0 `<pad>`, 1 `<s>`, 2 `</s>` and, where a text can be outside the
        vocabulary, 3 `<unk>`; then the special tokens of the chat template and of the user.

    Raises:
        DataError: If there is no text, or a text has a lone surrogate.
        ConfigError: If the pattern or the chat template does not work.
    """
    from tokenizers.processors import TemplateProcessing

    more = config.list_extra_tokens()
    special = list_special_tokens(config, more)
    template = config.chat_template and read_chat_template(
        config.chat_template, begins_with_bos=config.add_bos_token
    )
    chosen = choose_texts(_checked(texts), config.train_bytes)
    backend = train_backend(config, special, chosen)
    if config.add_bos_token:
        backend.post_processor = TemplateProcessing(
            single=f"{BOS_TOKEN} $A",
            pair=f"{BOS_TOKEN} $A {BOS_TOKEN}:1 $B:1",
            special_tokens=[(BOS_TOKEN, backend.token_to_id(BOS_TOKEN))],
        )
    settings: dict[str, Any] = {"unk_token": UNK_TOKEN} if UNK_TOKEN in special else {}
    if more:
        settings["extra_special_tokens"] = more
    if config.kind == "jamo":
        settings["auto_map"] = {"AutoTokenizer": [None, f"{JAMO_CODE}.{JAMO_CLASS}"]}
    tokenizer = _class_named(settings.get("auto_map"))(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        **settings,
        padding_side="left",
        model_max_length=sequence_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        # Not `add_eos_token`: under that name transformers would end prompts with </s>.
        documents_begin_with_bos=config.add_bos_token,
        documents_end_with_eos=config.add_eos_token,
    )
    if template:
        tokenizer.chat_template = template
        check_chat_template(tokenizer)
    return tokenizer


def document_frame(tokenizer: "PreTrainedTokenizerFast") -> tuple[list[int], list[int]]:
    """Return the ids that stand before and after every document, such as `<s>` and `</s>`."""
    # A tokenizer from elsewhere does not say; then a document gets what the tokenizer has.
    begin = tokenizer.init_kwargs.get("documents_begin_with_bos", True)
    end = tokenizer.init_kwargs.get("documents_end_with_eos", True)
    prefix = [tokenizer.bos_token_id] if begin and tokenizer.bos_token_id is not None else []
    suffix = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    return prefix, suffix


@contextmanager
def _plain_backend(tokenizer: "PreTrainedTokenizerFast") -> Iterator["Tokenizer"]:
    """Lend the tokenizer inside, set to take text for nothing but text."""
    backend = tokenizer.backend_tokenizer
    parses_special_tokens = not backend.encode_special_tokens
    # Padding or truncation left over from a call would otherwise apply here.
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    try:
        yield backend
    finally:
        backend.encode_special_tokens = not parses_special_tokens


@contextmanager
def _normalized(backend: "Tokenizer", texts: Sequence[str]) -> Iterator[list[str]]:
    """Spell syllables by their jamo here, where the tokenizer inside would take ten times as long.

    Meanwhile it does not.
    """
    if not has_jamo_normalizer(backend):
        yield list(texts)
        return
    normalizer, backend.normalizer = backend.normalizer, None
    try:
        yield [decompose_syllables(text) for text in texts]
    finally:
        backend.normalizer = normalizer


def encode_documents(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[list[int]]:
    """Encode whole documents for training, on all cores.

    Nothing in a text becomes a special token. `<s>` and `</s>` are put around each document as
    `TokenizerConfig.add_bos_token` and `add_eos_token` said when the tokenizer was trained.

    Args:
        tokenizer: From `train_tokenizer` or `load_tokenizer`.
        texts: Documents without lone surrogates (see `check_text`).

    Returns:
        Token ids, one list a document.
    """
    prefix, suffix = document_frame(tokenizer)
    with _plain_backend(tokenizer) as backend, _normalized(backend, texts) as normalized:
        encodings = backend.encode_batch_fast(normalized, add_special_tokens=False)
    return [prefix + encoding.ids + suffix for encoding in encodings]


def count_hidden_bytes(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[int]:
    """Count the bytes of each text that stand behind an unknown token, and are lost with it.

    A model is not asked for them, so its bits per byte look better than they are.

    Args:
        tokenizer: Any fast tokenizer; one without an unknown token hides nothing.
        texts: Documents without lone surrogates.

    Returns:
        UTF-8 bytes, one number a text.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return [0] * len(texts)
    with _plain_backend(tokenizer) as backend:
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    return [
        sum(
            len(text[start:stop].encode())
            for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
            if index == unknown
        )
        for text, encoding in zip(texts, encodings, strict=True)
    ]


def count_ids(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Count the ids that a model needs rows for: the highest one and all below it.

    A tokenizer from elsewhere may leave ids out; then it has fewer tokens than this.
    """
    return max(tokenizer.get_vocab().values()) + 1


def check_ids(tokenizer: "PreTrainedTokenizerFast", vocab_size: int, source: str) -> None:
    """Check that a model has a row for every id of its tokenizer; more rows are no harm.

    Args:
        tokenizer: Any fast tokenizer.
        vocab_size: The model's.
        source: Where they come from, for the message.

    Raises:
        ArtifactError: If an id is too high.
    """
    if (needed := count_ids(tokenizer)) > vocab_size:
        raise ArtifactError(
            f"{source} has a tokenizer with ids up to {needed - 1}, but its model's vocab_size is "
            f"{vocab_size}. Use the tokenizer that the model was trained with."
        )


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return 16 hex digits that change whenever a document would be encoded differently.

    The same after saving and loading, in another folder and on another machine. How prompts are
    framed, padded or cut has no part in it.
    """
    return fingerprint_rules(tokenizer, orjson.loads(tokenizer.backend_tokenizer.to_str()))


def fingerprint_rules(tokenizer: "PreTrainedTokenizerFast", rules: Mapping[str, Any]) -> str:
    """Return `tokenizer_fingerprint` for rules that were read from the tokenizer already.

    Args:
        tokenizer: Any fast tokenizer.
        rules: What its tokenizer.json says.
    """
    parts = ("added_tokens", "normalizer", "pre_tokenizer", "model")
    return fingerprint([{part: rules[part] for part in parts}, document_frame(tokenizer)])


def write_tokenizer_files(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Write the plain Hugging Face files, fit for every version and free of local traces.

    transformers 5 writes a class name that version 4 and other programs refuse, and, after an
    offline load, notes that the files were local; both are put right here.

    Args:
        tokenizer: Any fast tokenizer.
        folder: An existing folder; gets tokenizer.json and tokenizer_config.json (and
            chat_template.jinja if the tokenizer has one).
    """
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for trace in ("is_local", "local_files_only", "name_or_path"):
        settings.pop(trace, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in settings:  # by the name that version 4 knows too
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def save_tokenizer(
    tokenizer: "PreTrainedTokenizerFast", folder: Path, *, facts: Mapping[str, Any]
) -> None:
    """Write the tokenizer's folder of a run, whole or not at all.

    Args:
        tokenizer: From `train_tokenizer`.
        folder: Where it will stand; an older one is replaced.
        facts: JSON values for the manifest: what the tokenizer was trained from.
            `vocab_size` and `fingerprint` are added.
    """
    counted = {"vocab_size": len(tokenizer), "fingerprint": tokenizer_fingerprint(tokenizer)}
    with write_folder(folder, kind="tokenizer", facts={**facts, **counted}) as staging:
        write_tokenizer_files(tokenizer, staging)


def read_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Read plain Hugging Face files, with the class of ours that they name if they name one.

    Code that lies beside them is not run.

    Args:
        folder: A folder with tokenizer_config.json: a tokenizer's or a whole model's.

    Raises:
        ValueError: If a file is damaged. Files that are missing are transformers' OSError.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        chosen = _class_named(settings.get("auto_map"))
        if chosen is PreTrainedTokenizerFast and (folder / "config.json").is_file():
            # Another model's tokenizer may be of a class that only its config.json tells.
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # Not AutoTokenizer, which may ask about remote code on the way.
        return chosen.from_pretrained(folder)
    except Exception as error:
        if type(error) not in (Exception, TypeError):  # tokenizers raises no narrower one
            raise
        raise ValueError(str(error)) from error


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Load the folder that `save_tokenizer` wrote.

    Raises:
        ArtifactError: If the folder is missing, damaged, or not a tokenizer's.
    """
    facts = read_manifest(folder, kind="tokenizer", check_hashes=True)
    tokenizer = read_tokenizer(folder)
    found = tokenizer_fingerprint(tokenizer)
    if found != facts["fingerprint"]:
        raise ArtifactError(
            f"{folder} encodes as tokenizer {found}, but was saved as {facts['fingerprint']}: the "
            "installed transformers or tokenizers reads it differently. Train the tokenizer again."
        )
    return tokenizer
