"""Train, save, load and show tokenizers.

`bpe` is byte-level byte-pair encoding: Sennrich et al. 2016, section 3.2, over bytes as in
Radford et al. 2019, section 2.2. `char` gives every character of the training text a token.

A special token is made in two places only: `encode_documents` puts `<s>` and `</s>` around a
document, and the post-processor inside tokenizer.json puts `<s>` before a prompt. A corpus that
contains the letters `<s>` gets the tokens of those letters. In a prompt, as everywhere in
transformers, the letters `<s>` are the special token; pass `split_special_tokens=True` for letters.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_tinyformer.artifacts import fingerprint, read_manifest, write_folder
from hf_tinyformer.errors import ArtifactError, ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN = "<pad>", "<s>", "</s>", "<unk>"

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the one space or sign before it
    r"|\p{N}{1,3}"  # digits, at most three at a time
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs, with the line ends after them
    r"|\s*[\r\n]+"  # blank lines
    r"|\s+(?!\S)"  # a run of spaces (indentation), less the one that begins the next word
    r"|\s+"
)
"""Where a merge may not cross: GPT-4's pattern in the spelling of Llama 3, letter for letter,
since other programs (llama.cpp among them) know the pattern by its text."""

_LONGEST_SPACE_RUN = 5_000_000
# Oniguruma, the regex engine of `tokenizers`, gives up (as a panic) after ten million steps back,
# and the pattern steps back once for each white-space character of a run.
_SPACE_RUN = re.compile(rf"\s{{{_LONGEST_SPACE_RUN}}}")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text is cut into tokens."""

    kind: Literal["bpe", "char"] = "bpe"
    """`bpe`: byte-level byte-pair encoding, lossless on every text. `char`: one token a character
    of the training text, `<unk>` for any other."""

    vocab_size: int = 4096
    """Tokens in all, special ones included. Used by `bpe`; `char` takes what the text has."""

    add_bos_token: bool = True
    """Begin every document, and every prompt, with `<s>`."""

    add_eos_token: bool = True
    """End every document with `</s>`. Prompts never get one."""

    def __post_init__(self) -> None:
        """Reject a vocabulary that cannot hold the bytes."""
        if self.kind == "bpe" and self.vocab_size < 259:
            raise ConfigError(
                f"tokenizer.vocab_size is {self.vocab_size}, but byte-level BPE needs 259: "
                "256 bytes and 3 special tokens. Take 1024 or more."
            )


def check_text(text: str, source: str) -> None:
    """Refuse the texts that cannot be tokenized: lone surrogates, endless white space.

    Args:
        text: A document.
        source: Where it comes from, for the message.

    Raises:
        DataError: If the text has a lone surrogate, or a run of more than five million spaces.
    """
    # isascii() reads a flag; only other texts are scanned.
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{source} has the lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start}, but half a character has no UTF-8 form. Repair or remove it."
            ) from None
    if len(text) >= _LONGEST_SPACE_RUN and _SPACE_RUN.search(text):
        raise DataError(
            f"{source} has a run of white space of {_LONGEST_SPACE_RUN:,} characters or more, "
            "but the tokenizer cannot cut so long a run. Shorten it."
        )


def _train_bpe(config: TokenizerConfig, texts: Iterator[str]) -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,  # what was seen once is a memory of one text, not a unit
        special_tokens=[PAD_TOKEN, BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte: lossless on all text
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < config.vocab_size:
        logger.warning(
            "tokenizer.vocab_size is %d, but the training text has pairs for %d tokens only; "
            "the tokenizer has that many.",
            config.vocab_size,
            backend.get_vocab_size(),
        )
    return backend


def _train_char(_config: TokenizerConfig, texts: Iterator[str]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models

    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    special = [PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(characters)])}
    # BPE without merges leaves characters apart, ten times as fast as cutting with a pattern.
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNK_TOKEN))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    return backend


_TRAINERS: dict[str, Callable[[TokenizerConfig, Iterator[str]], "Tokenizer"]] = {
    "bpe": _train_bpe,
    "char": _train_char,
}
"""One function a kind. A new kind is a function here and a word in `TokenizerConfig.kind`."""


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


def train_tokenizer(
    config: TokenizerConfig, texts: Iterable[str], *, sequence_length: int
) -> "PreTrainedTokenizerFast":
    """Learn a tokenizer. The same texts in the same order give the same tokenizer.

    Args:
        config: Which kind, how large, and what stands around a document.
        texts: The training split's documents, read once.
        sequence_length: Tokens the model reads at once, stored as `model_max_length`.

    Returns:
        A tokenizer with ids 0 `<pad>`, 1 `<s>`, 2 `</s>` and, for `char`, 3 `<unk>`.

    Raises:
        DataError: If there is no text, or a text has a lone surrogate.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = _TRAINERS[config.kind](config, _checked(texts))
    if config.add_bos_token:
        backend.post_processor = TemplateProcessing(
            single=f"{BOS_TOKEN} $A",
            pair=f"{BOS_TOKEN} $A {BOS_TOKEN}:1 $B:1",
            special_tokens=[(BOS_TOKEN, backend.token_to_id(BOS_TOKEN))],
        )
    unknown = {"unk_token": UNK_TOKEN} if backend.token_to_id(UNK_TOKEN) is not None else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        **unknown,
        padding_side="left",
        model_max_length=sequence_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        # Not `add_eos_token`: under that name transformers would end prompts with </s>.
        documents_begin_with_bos=config.add_bos_token,
        documents_end_with_eos=config.add_eos_token,
    )


def document_frame(tokenizer: "PreTrainedTokenizerFast") -> tuple[list[int], list[int]]:
    """Return the ids that stand before and after every document, such as `<s>` and `</s>`."""
    # A tokenizer from elsewhere does not say; then a document gets what the tokenizer has.
    begin = tokenizer.init_kwargs.get("documents_begin_with_bos", True)
    end = tokenizer.init_kwargs.get("documents_end_with_eos", True)
    prefix = [tokenizer.bos_token_id] if begin and tokenizer.bos_token_id is not None else []
    suffix = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    return prefix, suffix


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
    backend = tokenizer.backend_tokenizer
    prefix, suffix = document_frame(tokenizer)
    parses_special_tokens = not backend.encode_special_tokens
    # Padding or truncation left over from a call would otherwise apply here.
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    try:
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    finally:
        backend.encode_special_tokens = not parses_special_tokens
    return [prefix + encoding.ids + suffix for encoding in encodings]


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return 16 hex digits that change whenever a document would be encoded differently.

    The same after saving and loading, in another folder and on another machine. How prompts are
    framed, padded or cut has no part in it.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = ("added_tokens", "normalizer", "pre_tokenizer", "model")
    frame = document_frame(tokenizer)
    return fingerprint([{part: rules[part] for part in parts}, frame])


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


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Load the folder that `save_tokenizer` wrote.

    Raises:
        ArtifactError: If the folder is missing, damaged, or not a tokenizer's.
    """
    from transformers import PreTrainedTokenizerFast

    facts = read_manifest(folder, kind="tokenizer", check_hashes=True)
    # Not AutoTokenizer, which may ask about remote code on the way.
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    found = tokenizer_fingerprint(tokenizer)
    if found != facts["fingerprint"]:
        raise ArtifactError(
            f"{folder} encodes as tokenizer {found}, but was saved as {facts['fingerprint']}: the "
            "installed transformers or tokenizers reads it differently. Train the tokenizer again."
        )
    return tokenizer


def _bytes_of_letters() -> dict[str, int]:
    # GPT-2's table: a byte that prints stands for itself, the others for letters from U+0100 on.
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    letters = [chr(byte) for byte in printing] + [chr(256 + index) for index in range(len(others))]
    return dict(zip(letters, printing + others, strict=True))


def show_tokens(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[tuple[int, str]]:
    r"""Cut a text as a document's inside and make every piece readable.

    Args:
        tokenizer: Any fast tokenizer.
        text: What to cut.

    Returns:
        Pairs of id and piece. A piece that is a part of a character reads as its bytes: `\xed\x95`.
    """
    prefix, suffix = document_frame(tokenizer)
    ids = encode_documents(tokenizer, [text])[0]
    ids = ids[len(prefix) : len(ids) - len(suffix)]
    table = _bytes_of_letters()
    pieces = []
    for index in ids:
        piece = tokenizer.backend_tokenizer.decode([index], skip_special_tokens=False)
        if "�" in piece:
            letters = tokenizer.convert_ids_to_tokens(index)
            raw = bytes(table[letter] for letter in letters if letter in table)
            piece = "".join(f"\\x{byte:02x}" for byte in raw) or piece
        pieces.append((index, piece))
    return pieces
