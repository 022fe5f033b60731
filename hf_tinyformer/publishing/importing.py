"""Read a stock checkpoint into ours, exactly: weights, tokenizer, chat template, settings.

The folder that is written loads like any of ours, can be generated from, evaluated, trained on and
exported again. It gets its name only after our model has given the stock model's logits and text.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hf_tinyformer.artifacts import check_replaceable, write_folder
from hf_tinyformer.errors import ArtifactError, ExportError
from hf_tinyformer.inference.loading import UNREADABLE, describe
from hf_tinyformer.publishing.card import describe_architecture
from hf_tinyformer.publishing.extras import require_libraries
from hf_tinyformer.publishing.final import verify_final, write_model_files
from hf_tinyformer.publishing.gguf_metadata import (
    GgufFile,
    read_gguf,
    read_gguf_tokenizer,
    read_stock_config,
)
from hf_tinyformer.publishing.native import compare_models
from hf_tinyformer.publishing.twins import from_native, our_config

logger = logging.getLogger(__name__)

GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True)
class _Source:
    """Where a stock checkpoint lies, in the words of `from_pretrained`."""

    place: str
    """A folder, or an id on the Hub."""

    gguf_file: str | None = None
    """Name of a GGUF file in it."""

    revision: str | None = None

    @property
    def words(self) -> dict[str, Any]:
        """Keyword arguments for every `from_pretrained`."""
        words = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {key: value for key, value in words.items() if value is not None}

    @property
    def name(self) -> str:
        """The last part of its path."""
        return Path(self.gguf_file).stem if self.gguf_file else Path(self.place).resolve().name

    @property
    def hub_id(self) -> str | None:
        """Its id, if it came from the Hub."""
        return None if Path(self.place).is_dir() else self.place

    def file(self, name: str) -> Path | None:
        """Find one of its files, if there is such a one."""
        from transformers.utils import cached_file

        found = cached_file(
            self.place,
            name,
            revision=self.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return Path(found) if found else None


def _compare_in_float32(stock: Any, ours: Any, tokenizer: Any) -> dict[str, Any]:
    dtype = ours.dtype
    if dtype != torch.float32:
        stock, ours = stock.float(), ours.float()
    record = compare_models(stock, ours, tokenizer)
    ours.to(dtype)
    return record


def _locate(source: str, revision: str | None) -> _Source:
    path = Path(source)
    if path.suffix == GGUF_SUFFIX:
        require_libraries(["gguf"], extra="gguf", purpose=f"{path.name}")
        return _Source(str(path.parent), path.name, revision)
    if path.is_file():
        raise ArtifactError(
            f"{source} is a file, but only a {GGUF_SUFFIX} file is a model by itself. "
            "Point to the folder that holds it with its config.json."
        )
    return _Source(source, None, revision)


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise ArtifactError(
            f"{source} cannot be loaded: {describe(error)}. Point to a folder with config.json and "
            "*.safetensors, to a .gguf file, or to USER/NAME on the Hub."
        ) from None


def _load_tokenizer(source: _Source, gguf: GgufFile | None) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = read_gguf_tokenizer(gguf) if gguf is not None else None
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(
            source.place, trust_remote_code=False, **source.words
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ExportError(
            f"{source.place} has a {type(tokenizer).__name__}, but only a tokenizer that fits into "
            "one tokenizer.json can be read exactly. Convert it to a fast tokenizer first."
        )
    # What our trainer puts around a document; a checkpoint from elsewhere does not say.
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.init_kwargs.setdefault("documents_begin_with_bos", begins)
    return tokenizer


def _words_for_weights(source: _Source, gguf: GgufFile | None) -> dict[str, Any]:
    if gguf is None:
        return {**source.words, "dtype": "auto"}
    import transformers

    # What the blocks of a GGUF file stand for is float32. Newer versions could also leave them be.
    words = {**source.words, "config": read_stock_config(gguf), "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):
        words["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return words


def _load_stock(source: _Source, gguf: GgufFile | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if gguf is None:
        config = AutoConfig.from_pretrained(source.place, trust_remote_code=False, **source.words)
        if config.model_type == "tinyformer":
            raise ExportError(f"{source.place} is one of ours already. Use it as it is.")
        our_config(config)  # refuses before the weights are read
    model, report = AutoModelForCausalLM.from_pretrained(
        source.place,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **_words_for_weights(source, gguf),
    )
    lost = [str(name) for names in report.values() for name in names]
    if lost:
        raise ArtifactError(
            f"{source.place} has {len(lost)} weights too few or too many for its configuration, "
            f"{lost[0]} among them. Take both from the same model."
        )
    if gguf is not None and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain now
    return model.eval()


def _card_data(source: _Source, gguf: GgufFile | None) -> dict[str, Any]:
    """Keep of the source's card what is as true of the import."""
    from huggingface_hub import ModelCard

    said = gguf.fields if gguf is not None else {}

    card = None if source.gguf_file else source.file("README.md")
    known = ModelCard.load(card).data.to_dict() if card else {}
    data = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tinyformer"],
        "license": known.get("license", said.get("general.license")),
        "language": known.get("language", said.get("general.languages")),
        "datasets": known.get("datasets"),
        "base_model": source.hub_id or known.get("base_model"),
    }
    return {key: value for key, value in data.items() if value}


def _render_card(source: _Source, model: Any, record: dict[str, Any], data: dict[str, Any]) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    rows = "\n".join(
        f"| {label} | {value} |"
        for label, value in describe_architecture(model.config, model.num_parameters())
    )
    difference, tolerance = record["largest_difference"], record["tolerance"]
    return str(
        ModelCard(f"""\
---
{ModelCardData(**data).to_yaml()}
---

# {source.name}

The weights of {source.name}, a `{record["architecture"]}`, in the blocks of hf_tinyformer: renamed,
and otherwise as they were. Tokenizer, chat template and generation settings came along.

In float32 its logits differ from those of the original by {difference:.2g} at most, over
{record["positions"]} places of text and random tokens ({tolerance:.2g} would be rounding), and its
greedy text is the same.

## How to load it

```python
import hf_tinyformer  # makes the architecture known to transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{source.name}")  # this folder, or its id on the Hub
tokenizer = AutoTokenizer.from_pretrained("{source.name}")
```

Without the package, pass `trust_remote_code=True`: the model's own files lie in this folder.

## Architecture

| | |
|---|---|
{rows}

What it was trained on, what it can do and where its limits are is told by the original's card.
""")
    )


def _write_generation_config(source: _Source, stock: Any, folder: Path) -> None:
    found = None if source.gguf_file else source.file("generation_config.json")
    if found is not None:
        shutil.copyfile(found, folder / "generation_config.json")
    else:
        stock.generation_config.save_pretrained(folder)


def import_checkpoint(source: str, out: Path, *, revision: str | None = None) -> dict[str, Any]:
    """Read a stock checkpoint into ours, exactly, or write nothing.

    Args:
        source: Folder with config.json and *.safetensors, a .gguf file, or USER/NAME on the Hub.
        out: Where ours will stand; an older import is replaced.
        revision: Branch, tag or commit on the Hub.

    Returns:
        What is in `import.json`: the stock class, what was compared, the largest difference seen.

    Raises:
        ExportError: If our blocks cannot compute what the model computes; names the setting.
        ArtifactError: If the source cannot be loaded, or `out` holds something else.
    """
    check_replaceable(out, kind="final", fact="imported")
    place = _locate(source, revision)
    with _one_line(source):
        gguf = read_gguf(Path(place.place, place.gguf_file)) if place.gguf_file else None
        stock = _load_stock(place, gguf)
        tokenizer = _load_tokenizer(place, gguf)
    model = from_native(stock)
    if len(tokenizer) > model.config.vocab_size:
        raise ArtifactError(
            f"the tokenizer has {len(tokenizer)} tokens, but vocab_size is "
            f"{model.config.vocab_size}. Take both from the same model."
        )
    record = {
        "architecture": type(stock).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        **_compare_in_float32(stock, model, tokenizer),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    facts = {"imported": {"architecture": record["architecture"], "name": place.name}}
    with write_folder(out, kind="final", facts=facts) as staging:
        write_model_files(staging, model, tokenizer)
        _write_generation_config(place, stock, staging)
        text = json.dumps(record, indent=2) + "\n"
        (staging / "import.json").write_text(text, encoding="utf-8")
        card = _render_card(place, model, record, _card_data(place, gguf))
        (staging / "README.md").write_text(card, encoding="utf-8")
        verify_final(staging, model, tokenizer)
    return record
