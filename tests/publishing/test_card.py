import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from hf_tinyformer import TinyFormerConfig
from hf_tinyformer.errors import ArtifactError, ConfigError
from hf_tinyformer.publishing import card
from hf_tinyformer.publishing.card import (
    CardConfig,
    describe_count,
    describe_hardware,
    find_template,
    render_card,
)
from hf_tinyformer.publishing.card_rules import LICENSES

from . import card_specification
from .card_specification import validate_card
from .conftest import make_facts

SAMPLE = {
    "start": "def ",
    "text": "def main():",
    "tokens": 100,
    "seed": 0,
    "temperature": 0.8,
    "top_k": 50,
}


def render(facts=None, sample=SAMPLE, has_curve=True, **settings):
    config = TinyFormerConfig(**{"num_key_value_heads": 2, **settings})
    return render_card(
        facts or make_facts(),
        config=config,
        num_parameters=1_234_567,
        sample=sample,
        has_curve=has_curve,
    )


def test_metadata_is_what_the_hub_reads():
    data = ModelCard(render(make_facts(datasets=["me/books"], languages=["en", "ko"]))).data

    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.license == "apache-2.0"
    assert data.language == ["en", "ko"]
    assert data.datasets == ["me/books"]
    assert data.model_name == "tiny"
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    assert figures["loss"] == 2.0
    assert figures["bits_per_byte"] == pytest.approx(1.41384, rel=1e-5)
    assert set(figures) == {"loss", "perplexity", "bits_per_byte"}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"license": None, "languages": (), "corpus": "`a b.txt`, `c/*.txt`"},
        {"license": "cc-by-sa-4.0", "languages": ("ko",), "corpus": "위키백과, 표본"},
        {"datasets": ["roneneldan/TinyStories"], "languages": ("en", "multilingual")},
    ],
)
def test_the_hub_s_rules_are_kept(facts):
    found = validate_card(render(make_facts(**facts)))

    assert (found.errors, found.warnings) == ([], [])


@pytest.mark.parametrize(
    ("line", "broken", "complaint"),
    [
        ("- code\n", "- Klingon\n", "ISO 639"),
        ("license: apache-2.0", "license: mine", '"license" must be one of'),
        ("type: text-generation", "type:", "results[0].task.type"),
        ("type: corpus-.txt", "type: my corpus", "dataset.type"),
        ("value: 2.0", "value:", "metrics[0].value"),
    ],
)
def test_the_rules_would_notice(line, broken, complaint):
    card = render()
    assert line in card

    found = validate_card(card.replace(line, broken, 1))

    assert any(complaint in error for error in found.errors), found.errors


def test_every_license_that_may_be_named_is_one_of_the_hub():
    # eupl-1.2 came after the list was copied.
    assert LICENSES - {"eupl-1.2"} <= card_specification.LICENSES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"license": "Apache 2.0"}, r"card\.license is 'Apache 2.0'.*Did you mean apache-2.0\?"),
        ({"license": "???"}, r"card\.license is '\?\?\?'.*Take other"),
        ({"languages": ["English"]}, r"card\.languages has 'English'.*English is en"),
    ],
)
def test_what_the_hub_would_refuse_is_refused_before_training(settings, message):
    with pytest.raises(ConfigError, match=message):
        CardConfig(**settings)


def test_how_much_was_read_is_told():
    text = render()

    # 9,600 tokens seen of 1,234, which spell 3,456 bytes.
    assert "| training text | 3,456 bytes, read 7.78 times over |" in text
    assert "which spell 2.80 bytes on average" in text


@pytest.mark.parametrize(
    ("count", "words"),
    [(999_999, "999,999"), (5_311_232, "5.31 million"), (1_500_000_000, "1.5 billion")],
)
def test_large_numbers_are_said_in_words(count, words):
    assert describe_count(count) == words


def test_paths_that_climb_out_of_the_working_directory_are_shortened():
    config = "data:\n  files:\n  - ../../mine/books/a.txt\n  - '../b.txt'\n  - in/../c.txt\n"

    text = render(make_facts(run_config=config))

    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert settings["data"]["files"] == ["path/to/a.txt", "path/to/b.txt", "in/../c.txt"]


def test_figures_and_sizes_stand_in_the_text():
    text = render()

    assert "| 2.0000 | 7.39 | 1.4138 | 49 | 100 |" in text
    assert "| train | 12 | 3,456 | 1,234 |" in text
    assert "| parameters | 1,234,567 |" in text
    assert "grouped-query, 4 heads of 64, 2 for keys and values" in text
    assert "4 sequences of 8 (32 tokens)" in text
    assert "![Loss over the steps of training](loss.png)" in text


def test_no_hole_is_left_unfilled():
    text = render()

    assert not re.search(r"\{\{|\}\}|\{%|None|\[More Information Needed\]", text)


def test_a_hole_that_nothing_fills_is_an_error(tmp_path, monkeypatch):
    template = tmp_path / "model_card.md"
    template.write_text(find_template().read_text(encoding="utf-8") + "{{ carbon_footprint }}\n")
    monkeypatch.setattr(card, "find_template", lambda: template)

    with pytest.raises(ArtifactError, match="'carbon_footprint' is undefined"):
        render()


def test_the_settings_in_the_card_are_yaml_without_absolute_paths():
    text = render()

    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert settings["data"]["files"] == ["corpus/*.txt", "path/to/*.txt"]
    assert "somebody" not in text


def test_a_sample_cannot_break_out_of_its_fence_or_act_on_a_terminal():
    text = render(sample={**SAMPLE, "text": "```\n# Not a heading\x1b[31m"})

    assert "````text\n```\n# Not a heading\ufffd[31m\n````" in text


def test_a_licence_that_was_not_stated_is_said_to_be_missing():
    text = render(make_facts(license=None))

    assert "Its author states no license." in text
    assert "| license | not stated |" in text
    assert ModelCard(text).data.license is None


def test_python_in_the_card_is_python():
    prompt = 'say "hi"\n'
    text = render(make_facts(sample_prompt=prompt), sample={**SAMPLE, "start": prompt})

    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


def test_a_template_that_is_nowhere_is_an_error(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "hf_tinyformer"
    package.mkdir(parents=True)
    monkeypatch.setattr(card.importlib.resources, "files", lambda name: package)

    with pytest.raises(ArtifactError, match=r"has no model_card\.md"):
        find_template()
    (package / "model_card.md").write_text("x")
    assert find_template() == package / "model_card.md"


def test_hardware_is_described_by_class():
    assert re.fullmatch(r"CPU, (1 thread|\d+ threads)", describe_hardware("cpu", 1))


def test_only_the_gpus_that_trained_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")

    assert describe_hardware("cuda", 2) == "2 x NVIDIA H200"
