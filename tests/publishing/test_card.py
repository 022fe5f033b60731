import re

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_tinyformer import TinyFormerConfig
from hf_tinyformer.errors import ArtifactError
from hf_tinyformer.publishing import card
from hf_tinyformer.publishing.card import describe_hardware, find_template, render_card

from .conftest import make_facts

SAMPLE = {"text": "def main():", "tokens": 100, "seed": 0, "temperature": 0.8, "top_k": 50}


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

    assert "Licence of the model: not stated." in text
    assert ModelCard(text).data.license is None


def test_python_in_the_card_is_python():
    text = render(make_facts(sample_prompt='say "hi"\n'))

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
    assert re.fullmatch(r"CPU, \d+ threads", describe_hardware("cpu"))
