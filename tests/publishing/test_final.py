import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    pipeline,
)

import hf_tinyformer
from hf_tinyformer.artifacts import read_manifest
from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.errors import ArtifactError
from hf_tinyformer.publishing import final
from hf_tinyformer.publishing.final import list_code_files, model_room, verify_final, write_final
from hf_tinyformer.publishing.privacy import find_private

from .conftest import TEXT, make_facts, make_model

IDS = torch.arange(30)[None]

WITHOUT_THE_PACKAGE = """
import json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_tinyformer":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
folder, out = sys.argv[1:]
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

ids = torch.arange(30)[None]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert not any(name.partition(".")[0] == "hf_tinyformer" for name in sys.modules)
with torch.inference_mode():
    tensors = {"logits": model(ids).logits, "hidden": base(ids).last_hidden_state}
save_file({name: value.contiguous() for name, value in tensors.items()}, out)
generate = pipeline("text-generation", folder, trust_remote_code=True)
text = generate("def ", do_sample=False, max_new_tokens=9)[0]["generated_text"]
print(json.dumps({"ids": tokenizer("def read")["input_ids"], "text": text}))
"""


def test_the_folder_holds_everything_and_is_whole(final_dir):
    names = {path.name for path in final_dir.iterdir()}

    assert {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "README.md", "loss.png", "modeling_tinyformer.py"),
        *("configuration_tinyformer.py", "manifest.json"),
    } <= names
    read_manifest(final_dir, kind="final", check_hashes=True)
    assert (final_dir / "model.safetensors").stat().st_mode == (
        (final_dir / "config.json").stat().st_mode
    )


def test_with_the_package_every_auto_class_gives_the_same_numbers(final_dir, model, tokenizer):
    causal = AutoModelForCausalLM.from_pretrained(final_dir)
    base = AutoModel.from_pretrained(final_dir)
    loaded_tokenizer = AutoTokenizer.from_pretrained(final_dir, trust_remote_code=False)

    assert type(causal) is hf_tinyformer.TinyFormerForCausalLM
    with torch.inference_mode():
        assert torch.equal(causal(IDS).logits, model(IDS).logits)
        assert torch.equal(base(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    assert loaded_tokenizer("def read")["input_ids"] == tokenizer("def read")["input_ids"]


@pytest.mark.slow
def test_without_the_package_the_folder_gives_the_same_numbers(
    final_dir, model, tokenizer, tmp_path
):
    out = tmp_path / "out.safetensors"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(final_dir), str(out)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    found = load_file(out)
    generate = pipeline("text-generation", str(final_dir), trust_remote_code=False)
    here = generate("def ", do_sample=False, max_new_tokens=9)[0]["generated_text"]
    with torch.inference_mode():
        assert torch.equal(found["logits"], model(IDS).logits)
        assert torch.equal(found["hidden"], model.model(IDS).last_hidden_state)
    assert said == {"ids": tokenizer("def read")["input_ids"], "text": here}


def test_code_files_are_the_room_s_own_byte_for_byte(final_dir):
    carried = {path.name: path.read_bytes() for path in final_dir.glob("*.py")}

    room = {path.name: path.read_bytes() for path in model_room().glob("*.py")}
    del room["__init__.py"]
    del room["tokenization_tinyformer.py"]  # which only a tokenizer of jamo needs
    assert carried == room


def test_needed_files_are_followed_through_imports():
    assert [path.name for path in list_code_files(["feed_forward"])] == [
        "configuration_tinyformer.py",
        "feed_forward.py",
    ]


def test_a_missing_code_file_is_named():
    with pytest.raises(ArtifactError, match=r"nowhere\.py is missing"):
        list_code_files(["nowhere"])


def test_the_generation_settings_fit_the_model_and_the_tokenizer(final_dir):
    settings = GenerationConfig.from_pretrained(final_dir)

    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (1, 2, 0)
    assert settings.do_sample is True
    assert settings.max_new_tokens == 16  # half of the context of 32


def test_a_learned_table_is_long_enough_for_the_pipeline_s_defaults(tokenizer, tmp_path):
    model = make_model(tokenizer, position_embedding_type="learned")
    write_final(tmp_path / "final", model=model, tokenizer=tokenizer, card_facts=make_facts())

    generate = pipeline("text-generation", str(tmp_path / "final"), trust_remote_code=False)

    assert generate("def ")[0]["generated_text"].startswith("def ")


def test_no_trace_of_the_machine_is_in_any_text(final_dir):
    for path in final_dir.iterdir():
        if path.suffix in (".json", ".md", ".py"):
            text = path.read_text(encoding="utf-8")
            assert list(find_private(text)) == [], path.name
            assert str(final_dir.parent) not in text
            assert "_name_or_path" not in text


def test_a_model_loaded_from_a_path_is_saved_without_it(final_dir, tokenizer, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(final_dir)
    assert loaded.config._name_or_path == str(final_dir)

    write_final(tmp_path / "again", model=loaded, tokenizer=tokenizer, card_facts=make_facts())

    for path in (tmp_path / "again").glob("*.json"):
        assert str(final_dir) not in path.read_text(encoding="utf-8")


def test_a_tokenizer_of_another_model_is_refused(model, tokenizer, tmp_path):
    smaller = make_model(tokenizer)
    smaller.config.vocab_size = 10

    with pytest.raises(ArtifactError, match=r"ids up to \d+, but its model.s vocab_size is 10"):
        write_final(tmp_path / "f", model=smaller, tokenizer=tokenizer, card_facts=make_facts())
    other = make_model(tokenizer)
    other.config.eos_token_id = 7
    with pytest.raises(ArtifactError, match=r"model\.eos_token_id is 7, but the tokenizer's"):
        write_final(tmp_path / "f", model=other, tokenizer=tokenizer, card_facts=make_facts())
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("what", ["logits", "source files"])
def test_a_folder_that_is_not_the_model_is_not_published(
    final_dir, model, tokenizer, tmp_path, what
):
    folder = shutil.copytree(final_dir, tmp_path / "final")
    if what == "logits":
        weights = load_file(folder / "model.safetensors")
        weights["model.embed_tokens.weight"][3] += 1e-6
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        with (folder / "block.py").open("a") as stream:
            stream.write("# changed\n")

    with pytest.raises(ArtifactError, match=f"gives other {what} than the model"):
        verify_final(folder, model, tokenizer)


def test_a_failure_leaves_the_older_folder_as_it_was(model, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "old").write_text("old")

    def fail(*args, **kwargs):
        raise ArtifactError("disk full")

    monkeypatch.setattr(final, "verify_final", fail)
    with pytest.raises(ArtifactError, match="disk full"):
        write_final(folder, model=model, tokenizer=tokenizer, card_facts=make_facts())

    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (folder / "old").read_text() == "old"


@pytest.mark.parametrize(
    ("prompt", "add_bos", "start"), [("", False, "</s>"), ("", True, ""), ("def ", False, "def ")]
)
def test_the_card_s_code_begins_with_a_token(tmp_path, prompt, add_bos, start):
    config = TokenizerConfig(vocab_size=300, add_bos_token=add_bos)
    tokenizer = train_tokenizer(config, [TEXT] * 8, sequence_length=32)
    model = make_model(tokenizer)
    facts = make_facts(sample_prompt=prompt)

    write_final(tmp_path / "final", model=model, tokenizer=tokenizer, card_facts=facts)

    card = (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    assert f'tokenizer("{start}", return_tensors="pt")' in card
    assert f'generate("{start}")' in card
    assert ("It was given nothing." in card) == (not prompt)
    inputs = tokenizer(start, return_tensors="pt")
    assert inputs["input_ids"].shape[1] > 0
    model.generate(**inputs, max_new_tokens=1)


def test_the_card_has_no_curve_where_there_is_no_picture(model, tokenizer, tmp_path):
    write_final(
        tmp_path / "final",
        model=model,
        tokenizer=tokenizer,
        card_facts=make_facts(),
        curve=Path(tmp_path / "none.png"),
        facts={"inputs": "abc"},
    )

    assert "loss.png" not in (tmp_path / "final" / "README.md").read_text(encoding="utf-8")
    assert read_manifest(tmp_path / "final", kind="final")["inputs"] == "abc"
