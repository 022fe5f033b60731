"""Write the model card: what the model is, what it was made from, how good it is, how to load it.

The words stand in `model_card.md`, the numbers come from here. A number without a place, or a place
without a number, is an error.
"""

import importlib.metadata
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tinyformer.errors import ArtifactError
from hf_tinyformer.inference.evaluation import Evaluation
from hf_tinyformer.publishing.card_rules import check_languages, check_license, slug
from hf_tinyformer.publishing.privacy import scrub

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TEMPLATE_NAME = "model_card.md"

TAGS = ["tinyformer", "from-scratch", "small-language-model"]


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """What only the author knows of a model, for its card."""

    corpus: str | None = None
    """Name of the corpus in words. Unset: the names of the files or of the data set."""

    languages: list[str] = field(default_factory=list)
    """Languages of the text as ISO 639 codes, such as [en, ko]; `code` for programs."""

    license: str | None = None
    """License of the model as the Hub names it, such as apache-2.0."""

    def __post_init__(self) -> None:
        """Refuse what the Hub would refuse, before the model is trained."""
        check_license(self.license)
        check_languages(self.languages)


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """How much text a split has."""

    num_documents: int
    num_bytes: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """How the weights were found."""

    steps: int
    """Optimizer steps taken."""

    weights_step: int
    """The step whose weights these are."""

    tokens_seen: int
    """Tokens read in training, repeated ones counted again."""

    seconds: float
    """Time spent in training."""

    global_batch_size: int
    """Sequences in a step."""

    sequence_length: int
    """Tokens in a sequence."""

    optimizer: str
    """Its name, with whatever settings are worth telling."""

    schedule: str
    """How the learning rate went, in words."""

    precision: str
    """Such as `float32` or `bfloat16 with float32 weights`."""

    hardware: str
    """The class of machine, such as `2 CPU cores`. Never its name."""

    seed: int
    """Seed of the run."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Everything the card says that is not in the model's configuration."""

    name: str
    """The model's name."""

    corpus: str
    """What it was trained on, in words or as the user named it."""

    splits: Mapping[str, SplitFacts]
    """`train` and `validation`."""

    split_rule: str
    """How the splits were made, as a sentence."""

    training: TrainingFacts

    evaluation: Evaluation
    """On the whole validation split, with the weights of this card."""

    run_config: str
    """The run's resolved settings, as YAML."""

    begun_from: str | None = None
    """The model whose weights training began with. None: random weights."""

    base_model: str | None = None
    """Its id on the Hub, if it has one."""

    sample_prompt: str = ""
    """What the sample begins with."""

    languages: Sequence[str] = ()
    """ISO 639 codes; `code` for programs. Empty: not stated."""

    license: str | None = None
    """Identifier as the Hub knows it, such as `apache-2.0`. None: not stated."""

    datasets: Sequence[str] = ()
    """Ids of data sets on the Hub."""


def describe_hardware(device: Any, num_processes: int) -> str:
    """Name the class of a machine and nothing that tells it from others of its class.

    Args:
        device: A torch device, or its name.
        num_processes: Processes that trained, each on a device of its own if that is a GPU.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return f"{num_processes} x {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        count = torch.get_num_threads()
        return f"CPU, {count} {'thread' if count == 1 else 'threads'}"
    return f"one {device.type} device"


def find_template() -> Path:
    """Find `model_card.md`: inside an installed package, or at the root of a checkout.

    Raises:
        ArtifactError: If it is in neither place.
    """
    package = Path(str(importlib.resources.files("hf_tinyformer")))
    for folder in (package, package.parent):
        if (folder / TEMPLATE_NAME).is_file():
            return folder / TEMPLATE_NAME
    raise ArtifactError(
        f"{package} has no {TEMPLATE_NAME}, nor has the folder above it, but the model card is "
        "made from it. Install hf-tinyformer again."
    )


def _describe_attention(config: Any) -> str:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    kind = "multi-head" if heads == groups else "multi-query" if groups == 1 else "grouped-query"
    norm = ", RMSNorm on queries and keys" if config.use_qk_norm else ""
    return f"{kind}, {heads} heads of {config.head_dim}, {groups} for keys and values{norm}"


def describe_architecture(config: Any, num_parameters: int) -> list[tuple[str, str]]:
    """Lay a TinyFormerConfig out for a table.

    Args:
        config: The model's configuration.
        num_parameters: All weights, tied ones once.
    """
    biases = [
        part
        for part, present in (("attention", config.attention_bias), ("mlp", config.mlp_bias))
        if present
    ]
    return [
        ("parameters", f"{num_parameters:,}"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("layers", f"{config.num_hidden_layers}"),
        ("width", f"{config.hidden_size}"),
        ("attention", _describe_attention(config)),
        ("feed-forward", f"{config.mlp_type}, {config.intermediate_size} wide"),
        ("positions", config.position_embedding_type),
        ("norm", f"{config.norm_type}, {config.norm_placement}-norm"),
        ("biases", " and ".join(biases) or "none"),
        ("output head", "tied to the token table" if config.tie_word_embeddings else "its own"),
        ("context", f"{config.max_position_embeddings:,} tokens"),
    ]


def _format_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{minutes} minutes" if minutes < 120 else f"{seconds / 3600:.1f} hours"


def describe_count(count: int) -> str:
    """Say a large number as people do: `5.3 million`; a small one in full."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,}"


def _passes(facts: CardFacts) -> float:
    return facts.training.tokens_seen / max(1, facts.splits["train"].num_tokens)


def _training_table(facts: TrainingFacts) -> list[tuple[str, str]]:
    tokens = facts.global_batch_size * facts.sequence_length
    return [
        ("steps", f"{facts.steps:,} (these are the weights of step {facts.weights_step:,})"),
        ("tokens seen", f"{facts.tokens_seen:,}"),
        (
            "batch",
            f"{facts.global_batch_size} sequences of {facts.sequence_length} ({tokens:,} tokens)",
        ),
        ("optimizer", facts.optimizer),
        ("schedule", facts.schedule),
        ("precision", facts.precision),
        ("hardware", facts.hardware),
        ("time", _format_time(facts.seconds)),
        ("seed", f"{facts.seed}"),
    ]


def _card_data(facts: CardFacts) -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    figures = {
        "loss": ("Loss (nats per token)", facts.evaluation.loss),
        "perplexity": ("Perplexity", facts.evaluation.perplexity),
        "bits_per_byte": ("Bits per byte", facts.evaluation.bits_per_byte),
    }
    corpus = scrub(facts.corpus).replace("`", "")
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=facts.datasets[0] if facts.datasets else slug(corpus),
            dataset_name=corpus,
            dataset_split="validation",
            metric_type=metric,
            metric_name=metric_name,
            metric_value=value,
        )
        for metric, (metric_name, value) in figures.items()
    ]
    return ModelCardData(
        model_name=facts.name,
        library_name="transformers",
        pipeline_tag="text-generation",
        language=list(facts.languages) or None,
        license=facts.license,
        datasets=list(facts.datasets) or None,
        base_model=facts.base_model,
        tags=[tag for tag in TAGS if tag != "from-scratch" or facts.begun_from is None],
        metrics=["perplexity"],
        eval_results=results,
    )


def _shorten_paths(settings: str) -> str:
    """Leave of a path that climbs out of the working directory its last part only."""
    return re.sub(r"(?<=[\s'\"\[,])(?:\.\./)+(?:[^\s'\",\]/]+/)*", "path/to/", settings)


def _make_visible(text: str) -> str:
    # A young model writes any byte, and a control character could act on whoever prints the card.
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _fence_for(text: str) -> str:
    # A fence must be longer than any run of backticks inside it.
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _quote(text: str) -> str:
    return json.dumps(scrub(text), ensure_ascii=False)


LANGUAGE_NAMES = {"en": "English", "ko": "Korean", "code": "source code"}


def _describe_languages(languages: Sequence[str]) -> str:
    names = [LANGUAGE_NAMES.get(language, f"`{language}`") for language in languages]
    return ", ".join(names) or "not stated"


def _at_a_glance(facts: CardFacts, config: Any, num_parameters: int) -> list[tuple[str, str]]:
    train = facts.splits["train"]
    bytes_per_token = train.num_bytes / max(1, train.num_tokens)
    return [
        ("what it does", "continues text"),
        ("languages", _describe_languages(facts.languages)),
        ("parameters", f"{num_parameters:,}"),
        ("reads at once", f"{config.max_position_embeddings:,} tokens"),
        (
            "tokenizer",
            f"{config.vocab_size:,} tokens, which spell {bytes_per_token:.2f} bytes on average",
        ),
        (
            "training text",
            f"{describe_count(train.num_bytes)} bytes, read {_passes(facts):.2f} times over",
        ),
        ("bits per byte", f"{facts.evaluation.bits_per_byte:.4f} on validation text"),
        ("license", facts.license or "not stated"),
    ]


def _versions() -> str:
    names = ("hf-tinyformer", "transformers", "torch", "tokenizers")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def render_card(
    facts: CardFacts,
    *,
    config: Any,
    num_parameters: int,
    sample: Mapping[str, Any],
    has_curve: bool,
) -> str:
    """Fill the template.

    Args:
        facts: What the run knows.
        config: The model's configuration.
        num_parameters: All weights, tied ones once.
        sample: What `write_final` generated: `text`, `tokens`, `seed`, `temperature`, `top_k`; and
            `start`, a text of at least one token, for the card's code to go on with.
        has_curve: Whether a `loss.png` lies beside the card.

    Returns:
        The card, metadata included, free of absolute paths and secrets.

    Raises:
        ArtifactError: If the template asks for something that is not known.
    """
    from huggingface_hub import ModelCard
    from jinja2 import Environment, StrictUndefined, UndefinedError

    text = _make_visible(scrub(sample["text"]))
    template = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    try:
        content = template.from_string(find_template().read_text(encoding="utf-8")).render(
            card_data=_card_data(facts).to_yaml(),
            name=facts.name,
            corpus=scrub(facts.corpus),
            splits=facts.splits,
            split_rule=facts.split_rule,
            training=facts.training,
            training_table=_training_table(facts.training),
            glance=_at_a_glance(facts, config, num_parameters),
            begun_from=scrub(facts.begun_from or ""),
            parameters_in_words=describe_count(num_parameters),
            is_code="code" in facts.languages,
            evaluation=facts.evaluation,
            architecture=describe_architecture(config, num_parameters),
            num_parameters=num_parameters,
            context=config.max_position_embeddings,
            prompt=_quote(facts.sample_prompt) if facts.sample_prompt else None,
            start=_quote(sample["start"]),
            sample=text,
            sample_fence=_fence_for(text),
            sample_tokens=sample["tokens"],
            sample_seed=sample["seed"],
            temperature=sample["temperature"],
            top_k=sample["top_k"],
            has_curve=has_curve,
            run_config=_shorten_paths(scrub(facts.run_config)).strip(),
            license=facts.license,
            versions=_versions(),
        )
    except UndefinedError as error:
        raise ArtifactError(
            f"{TEMPLATE_NAME} asks for something that no run knows: {error}. Mend the template."
        ) from None
    return str(ModelCard(content))
