"""Every position scheme x norm placement x norm type x feed-forward, from training to text.

Each kind is trained, saved and loaded once; the tests below look at what came out. The last one
loads all of them in a process that cannot import this package.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import EVERY_KIND, EVERY_NAME, random_tokens, tiny_model
from transformers import AutoModelForCausalLM

LOAD_WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["hf_tinyformer"] = None  # importing it now raises
import torch
import transformers
transformers.utils.logging.disable_progress_bar()
from transformers import AutoModel, AutoModelForCausalLM

tokens = torch.tensor(json.loads(sys.argv[2]))
results = {}
with torch.no_grad():
    for folder in json.loads(sys.argv[1]):
        causal = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        base = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert type(causal).__module__.startswith("transformers_modules."), type(causal)
        results[folder] = {
            "logits": causal(tokens).logits,
            "hidden": base(tokens).last_hidden_state,
        }
torch.save(results, sys.argv[3])
"""


def train(model, num_steps):
    """Learn one batch by heart; returns the loss of each step."""
    batch = random_tokens(4, 24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(num_steps):
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Name of each kind -> (losses, trained model, folder it was saved to)."""
    folder = tmp_path_factory.mktemp("every_kind")
    results = {}
    for name, kind in zip(EVERY_NAME, EVERY_KIND, strict=True):
        torch.manual_seed(0)
        model = tiny_model(**kind, initializer_range=0.05).train()
        losses = train(model, num_steps=5)
        # One last name and one source for all, so that the loader below imports the source once.
        model.eval().save_pretrained(folder / name / "final")
        results[name] = (losses, model, folder / name / "final")
    return results


@pytest.mark.parametrize("name", EVERY_NAME)
def test_training_lowers_the_loss(name, trained):
    losses, _, _ = trained[name]

    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", EVERY_NAME)
def test_the_saved_model_gives_the_same_logits_and_every_cache_the_same_text(name, trained):
    _, model, folder = trained[name]
    tokens = random_tokens(2, 10)
    tokens[0, :4] = 0
    inputs = {"input_ids": tokens, "attention_mask": (tokens != 0).long()}
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}

    loaded = AutoModelForCausalLM.from_pretrained(folder)

    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    with_cache = loaded.generate(**inputs, **settings)
    without_cache = loaded.generate(**inputs, **settings, use_cache=False)
    static_cache = loaded.generate(
        **inputs, **settings, cache_implementation="static", disable_compile=True
    )
    assert with_cache.shape == (2, 22)
    assert torch.equal(with_cache, without_cache)
    assert torch.equal(with_cache, static_cache)


@pytest.mark.slow
def test_every_kind_loads_without_the_package_bit_for_bit(trained, tmp_path):
    tokens = random_tokens(2, 9)
    folders = [str(folder) for _, _, folder in trained.values()]

    subprocess.run(
        [
            *(sys.executable, "-I", "-c", LOAD_WITHOUT_THE_PACKAGE),
            *(json.dumps(folders), json.dumps(tokens.tolist()), str(tmp_path / "results.pt")),
        ],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        check=True,
    )

    results = torch.load(tmp_path / "results.pt")
    assert len(results) == 72
    for _, model, folder in trained.values():
        with torch.no_grad():
            assert torch.equal(results[str(folder)]["logits"], model(tokens).logits)
            hidden = model.model(tokens).last_hidden_state
            assert torch.equal(results[str(folder)]["hidden"], hidden)


def test_a_checkpoint_carries_exactly_the_model_rooms_files(trained):
    # The tokenizer's class travels with a tokenizer that needs it.
    _, _, folder = next(iter(trained.values()))
    import hf_tinyformer.model

    room = Path(hf_tinyformer.model.__file__).parent
    sources = {path.name for path in room.glob("*.py")} - {
        "__init__.py",
        "tokenization_tinyformer.py",
    }

    assert {path.name for path in folder.glob("*.py")} == sources
    for name in sources:
        assert (folder / name).read_bytes() == (room / name).read_bytes()
