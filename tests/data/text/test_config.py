import pytest

from hf_tinyformer.data.text.config import DataConfig
from hf_tinyformer.data.text.sources import WeightedSource
from hf_tinyformer.errors import ConfigError

BESIDE_SOURCES = {
    **{"dataset_config": "ko", "dataset_split": "test", "dataset_revision": "v1"},
    **{"streaming": True, "shard_seed": None, "max_shards": 2, "max_documents": 9},
    **{"text_field": "body", "template": "{body}"},
}


@pytest.mark.parametrize("name", BESIDE_SOURCES)
def test_a_setting_beside_sources_that_each_of_them_has_is_refused(name: str):
    sources = {"wiki": WeightedSource(files=["a.jsonl"])}
    value = BESIDE_SOURCES[name]

    with pytest.raises(ConfigError, match=rf"^data\.{name} is .*data\.sources\.NAME\.{name}"):
        DataConfig(sources=sources, **{name: value})

    # Files of validation that are no source's are read by what stands at the top.
    if name in ("text_field", "template"):
        DataConfig(sources=sources, validation_files=["v.jsonl"], **{name: value})


@pytest.mark.parametrize(("name", "value"), [("dataset_revision", "v1"), ("shard_seed", 7)])
def test_a_setting_of_hub_data_sets_is_refused_where_there_is_none(name: str, value: object):
    with pytest.raises(ConfigError, match=rf"^data\.{name} is {value!r}, but.*data\.dataset\.$"):
        DataConfig(files=["a.txt"], **{name: value})
    with pytest.raises(ConfigError, match=rf"^data\.sources\.code\.{name} is {value!r}, but"):
        DataConfig(sources={"code": WeightedSource(builtin="python-stdlib", **{name: value})})


def test_files_may_take_the_place_of_a_data_set_whose_configuration_stays_behind():
    DataConfig(files=["a.jsonl"], dataset_config="20231101.ko", dataset_split="train[:10%]")
