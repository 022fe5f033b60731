from pathlib import Path

import pytest

from hf_tinyformer.errors import ConfigError
from hf_tinyformer.run_config import build_model_config, explain, load_run_config, to_yaml

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
BUILTIN = "data.builtin=python-stdlib"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_is_named_after_its_file(path: Path) -> None:
    config = load_run_config(path)

    assert config.name == path.stem.replace("_", "-")
    assert build_model_config(config, vocab_size=config.tokenizer.vocab_size)


def test_words_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: a\ndata:\n  builtin: python-stdlib\ntrain:\n  max_steps: 7\n  warmup_steps: 1\n"
    )

    config = load_run_config(path, ["train.max_steps=9", "model.hidden_size=64"])

    assert (config.name, config.train.max_steps, config.train.warmup_steps) == ("a", 9, 1)
    assert config.train.keep_last == 2
    assert config.model == {"hidden_size": 64}


def test_a_number_in_scientific_form_is_a_number() -> None:
    config = load_run_config(None, [BUILTIN, "train.learning_rate=3e-4"])

    assert config.train.learning_rate == 0.0003


def test_the_written_run_reads_back_equal(tmp_path: Path) -> None:
    config = load_run_config(None, ["data.files=[a/*.txt]", "model.rope_parameters.rope_theta=5.0"])
    path = tmp_path / "config.yaml"

    path.write_text(to_yaml(config))

    assert load_run_config(path) == config


def test_the_explained_run_reads_back_equal_and_explains_every_setting(tmp_path: Path) -> None:
    config = load_run_config(None, [BUILTIN, "model.hidden_size=64"])
    path = tmp_path / "config.yaml"

    path.write_text(explain(config))

    assert load_run_config(path) == config
    assert "# Peak rate of AdamW." in path.read_text()


def test_the_context_is_as_long_as_a_row_unless_the_model_says_otherwise() -> None:
    short = load_run_config(None, [BUILTIN, "data.sequence_length=48"])
    long = load_run_config(
        None, [BUILTIN, "data.sequence_length=48", "model.max_position_embeddings=96"]
    )

    assert build_model_config(short, vocab_size=512).max_position_embeddings == 48
    assert build_model_config(long, vocab_size=512).max_position_embeddings == 96


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.learning_rat=1"], r"train\.learning_rat is set.*Did you mean learning_rate\?"),
        (["trian.max_steps=1"], r"trian is set.*Did you mean train\?"),
        (["data.fils=[a]"], r"data\.fils is set.*Did you mean files\?"),
        (["model.hiden_size=8"], r"model\.hiden_size is 8.*Did you mean hidden_size\?"),
        (["model.vocab_size=8"], r"model\.vocab_size is 8.*follows from the tokenizer"),
        (["model.zzz=8"], r"model\.zzz is 8.*Known: .*hidden_size"),
        (["train.max_steps=many"], r"train\.max_steps: Value 'many'"),
        (["train.max_steps=1.5"], r"train\.max_steps: Value '1\.5'"),
        (["train.max_steps=null"], r"train\.max_steps"),
        (["train.optimizer=adm"], r"train\.optimizer: Invalid value 'adm'.*muon.*adamw"),
        (["train.max_steps=5", "train.warmup_steps=9"], r"train\.warmup_steps is 9.*\(5\)"),
        (["train.learning_rate=nan"], r"train\.learning_rate is nan"),
        (["train.global_batch_size=0"], r"train\.global_batch_size is 0.*at least 1"),
        (["model.hidden_size=30", "model.num_attention_heads=4"], r"model\..*30"),
        (["model.hidden_size=abc"], r"model\.hidden_size expected int, got str"),
        (
            ["model.position_embedding_type=rop"],
            r"model\.position_embedding_type expected one of.*rope.*got rop",
        ),
        (["model.max_position_embeddings=8"], r"data\.sequence_length is 256.*is 8"),
        (["tokenizer.vocab_size=100"], r"tokenizer\.vocab_size is 100.*259"),
        (
            ["data.files=[a.txt]"],
            r"2 of data\.files, data\.dataset, data\.builtin and data\.sources",
        ),
        (["data.validation_fraction=1.5"], r"data\.validation_fraction is 1\.5"),
        (["name=../up"], r"name is '\.\./up'"),
        (["seed=-1"], r"seed is -1"),
        (["seed=4294967296"], r"seed is 4294967296, but it must be .* below 4294967296"),
        (["train"], r"'train' is not a setting.*key=value"),
        (["train.max_steps=[1"], r"not valid YAML"),
        (["train=3"], r"train is 3, but it holds settings of its own\. Write train\.KEY=VALUE"),
        (["data.files=a.txt"], r"data\.files must be a list.*data\.files=\[first"),
    ],
)
def test_a_wrong_setting_is_one_line_with_key_value_and_rule(
    words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_run_config(None, [BUILTIN, *words])
    assert "\n" not in str(caught.value)


def test_no_corpus_is_an_error_that_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"0 of data\.files.*data\.files=\[my_texts"):
        load_run_config(None, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", r"run\.yaml:\d+ is not valid YAML"),
        ("", r"holds no settings"),
        ("- a\n- b\n", r"holds no settings"),
        ("name: a\nname: b\n", r"name"),
        ("train:\n  max_stps: 3\n", r"train\.max_stps is set.*Did you mean max_steps"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)

    with pytest.raises(ConfigError, match=message):
        load_run_config(path)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"name: \xff\n")

    with pytest.raises(ConfigError, match=r"run\.yaml cannot be read as text"):
        load_run_config(path)


def test_a_missing_file_names_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(ConfigError, match=r"configs/dmeo\.yaml is not there.*configs/demo\.yaml"):
        load_run_config(Path("configs/dmeo.yaml"))


SOURCES = ["data.sources.wiki.files=[a.jsonl]", "data.sources.code.builtin=python-stdlib"]


def test_sources_are_settings_by_name_and_read_back_equal(tmp_path: Path) -> None:
    config = load_run_config(None, [*SOURCES, "data.sources.wiki.weight=3"])

    assert config.data.weights() == {"wiki": 3.0, "code": 1.0}
    for text in (to_yaml(config), explain(config)):
        (tmp_path / "config.yaml").write_text(text)
        assert load_run_config(tmp_path / "config.yaml") == config


def test_every_setting_of_a_source_is_explained() -> None:
    text = explain(load_run_config(None, [BUILTIN]))

    assert "# Joins several fields into one text" in text
    assert "# Share of each source kept for validation" in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "data.sources.wiki.wieght=1",
            r"data\.sources\.wiki\.wieght is set.*Did you mean weight\?",
        ),
        ("data.sources.wiki.weight=-1", r"data\.sources\.wiki\.weight is -1\.0, but it must be a"),
        ("data.sources.wiki=5", r"holds settings by name"),
        ("data.sources=[1]", r"settings by name"),
        ("data.sources.validation.files=[a]", r"data\.sources has 'validation', but"),
        ("data.sources.a/b.files=[a]", r"data\.sources has 'a/b', but a name has letters"),
        ("data.files=[b]", r"2 of data\.files, data\.dataset, data\.builtin and data\.sources"),
        ("data.sources.wiki.dataset=x", r"2 of data\.sources\.wiki\.files, data\.sources\.wiki"),
        ("data.sources.wiki.streaming=true", r"data\.sources\.wiki\.streaming is true, but it is"),
        ("data.sources.wiki.max_shards=2", r"data\.sources\.wiki\.max_shards is 2, but"),
        ("data.sources.wiki.template='{a.b}'", r"wiki\.template is '\{a\.b\}', but between braces"),
        ("data.sources.wiki.template='{a!r}'", r"only a column's plain name may stand"),
        ("data.sources.wiki.template='{a:>9}'", r"only a column's plain name may stand"),
        ("data.sources.wiki.template='{}'", r"only a column's plain name may stand"),
        ("data.sources.code.template='{a}'", r"but data\.sources\.code\.builtin has no columns"),
        ("data.sources.wiki.template='{a'", r"its braces do not match"),
        ("data.sources.wiki.template=fixed", r"it names no column"),
    ],
)
def test_a_source_that_is_set_wrongly_is_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(None, [*SOURCES, word])
