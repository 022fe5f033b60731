"""A run that goes on from another model: its weights, its shape, its tokenizer."""

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import train_tiny_tokenizer, write_tiny_checkpoint
from tiny_run import words_for, write_corpus
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.first_weights import build_model
from hf_tinyformer.pipeline import run_pipeline
from hf_tinyformer.publishing.importing import import_checkpoint
from hf_tinyformer.run_config import RunConfig, load_run_config, to_yaml
from hf_tinyformer.training.metrics import NullReporter


@pytest.fixture(scope="module")
def tiny_tokenizer():
    return train_tiny_tokenizer()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("source") / "elder"
    write_tiny_checkpoint(folder, tiny_tokenizer)
    return folder


def config_for(source: Path, *words: str) -> RunConfig:
    return load_run_config(
        None,
        ["data.builtin=python-stdlib", f"init_from={source}", "data.sequence_length=32", *words],
    )


def words_from(folder: Path, source: Path, *more: str) -> list[str]:
    kept = [w for w in words_for(folder) if not w.startswith(("model.", "tokenizer."))]
    return [*kept, f"init_from={source}", "train.sample_tokens=0", *more]


def test_the_run_begins_with_the_other_models_weights(source, tiny_tokenizer):
    model = build_model(config_for(source), tiny_tokenizer)

    expected = AutoModelForCausalLM.from_pretrained(source)
    assert model.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_dropout_may_change(source, tiny_tokenizer):
    model = build_model(config_for(source, "model.hidden_dropout=0.25"), tiny_tokenizer)

    assert model.model.layers[0].dropout.p == 0.25


def test_the_shape_may_not_change(source):
    with pytest.raises(ConfigError, match=r"model.hidden_size is 64, but init_from is .*elder"):
        config_for(source, "model.hidden_size=64")


def test_the_tokenizer_is_the_other_models(source):
    config = config_for(source)

    assert config.tokenizer.path == str(source)
    assert f"path: {source}" in to_yaml(config)


def test_rows_longer_than_its_context_are_refused(source, tiny_tokenizer):
    config = config_for(source, "data.sequence_length=65")

    with pytest.raises(ConfigError, match=r"data.sequence_length is 65, but the context .* is 64"):
        build_model(config, tiny_tokenizer)


def test_other_tokens_are_refused(source):
    with pytest.raises(ConfigError, match="the tokens of the run are not those of init_from"):
        build_model(config_for(source), train_tiny_tokenizer(vocab_size=300))


def test_a_stock_model_is_sent_to_import(tmp_path, tiny_tokenizer):
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")

    with pytest.raises(ConfigError, match=r"a llama, but .* tinyformer import .*llama FOLDER"):
        build_model(config_for(tmp_path / "llama"), tiny_tokenizer)


def test_new_tokens_get_weights_and_the_old_ones_keep_theirs(source, tiny_tokenizer):
    longer = AutoTokenizer.from_pretrained(source)
    longer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})

    model = build_model(config_for(source), longer)

    before = AutoModelForCausalLM.from_pretrained(source).get_input_embeddings().weight
    after = model.get_input_embeddings().weight
    assert model.config.vocab_size == len(after) == len(longer) == len(before) + 1
    assert torch.equal(after[:-1], before)


def test_an_imported_model_is_tuned_from_text_to_final_folder(tmp_path, tiny_tokenizer):
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=tiny_tokenizer.pad_token_id,
        )
    )
    llama.save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    import_checkpoint(str(tmp_path / "llama"), tmp_path / "ours")
    write_corpus(tmp_path / "texts")
    words = words_from(tmp_path, tmp_path / "ours", "train.learning_rate=0.003")

    result = run_pipeline(load_run_config(None, words), reporter=NullReporter(), cpu=True)

    assert result.final_dir is not None
    tuned = AutoModelForCausalLM.from_pretrained(result.final_dir)
    text = (result.final_dir / "README.md").read_text()
    ids = torch.tensor([tiny_tokenizer("alpha beta gamma delta epsilon zeta eta")["input_ids"]])
    with torch.no_grad():
        before, after = (m.eval()(ids, labels=ids).loss.item() for m in (llama, tuned))
    assert after < before - 0.3
    assert tuned.config.use_qk_norm is False
    assert AutoTokenizer.from_pretrained(result.final_dir).get_vocab() == tiny_tokenizer.get_vocab()
    assert "trained from the weights of ours" in text
    assert "from-scratch" not in text
