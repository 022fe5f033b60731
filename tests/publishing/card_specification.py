"""The Hub's published rules for a card's metadata, as its validator applies them on a push.

Written from https://github.com/huggingface/hub-docs/blob/main/modelcard.md (what is required, and
of which type), https://huggingface.co/docs/hub/repositories-licenses (licenses), the Hub's list of
tasks (pipeline tags), and the rule on languages that huggingface_hub issue 3862 quotes.
"""

import re
from typing import Any

import yaml

_LICENSE_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1
lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
unlicense zlib pddl lgpl-lr unknown other deepfloyd-if-license llama2 gemma
"""
LICENSES = set(_LICENSE_NAMES.split())
TASKS = {
    "text-generation",
    "fill-mask",
    "feature-extraction",
    "text-classification",
    "token-classification",
    "sentence-similarity",
}
DATASET_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
SPECIAL_LANGUAGES = ("code", "multilingual")


class Findings:
    """What is wrong (`errors` stop a push) and what only leaves the card poorer (`warnings`)."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def need(self, value: Any, kind: type | tuple[type, ...], name: str) -> bool:
        is_right = isinstance(value, kind) and not isinstance(value, bool) and value != ""
        if not is_right:
            self.errors.append(f'"{name}" is required and must be of another type than {value!r}')
        return is_right


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_result(found: Findings, result: Any, place: str) -> None:
    if not found.need(result, dict, place):
        return
    for part, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
        block = result.get(part)
        if found.need(block, dict, f"{place}.{part}"):
            for key in keys:
                found.need(block.get(key), str, f"{place}.{part}.{key}")
    dataset = result.get("dataset")
    if isinstance(dataset, dict) and not DATASET_ID.fullmatch(str(dataset.get("type", ""))):
        found.errors.append(f'"{place}.dataset.type" is not of the form of a data set\'s id')
    metrics = result.get("metrics")
    if found.need(metrics, list, f"{place}.metrics"):
        for number, metric in enumerate(metrics):
            name = f"{place}.metrics[{number}]"
            if found.need(metric, dict, name):
                found.need(metric.get("type"), str, f"{name}.type")
                found.need(metric.get("value"), (int, float, str, dict), f"{name}.value")


def _check_lists(found: Findings, data: dict[str, Any]) -> None:
    for language in _as_list(data.get("language") or []):
        is_code = isinstance(language, str) and re.fullmatch(r"[a-z]{2,3}", language)
        if not is_code and language not in SPECIAL_LANGUAGES:
            found.errors.append(
                f'"language" with value {language!r} is not valid. It must be an ISO 639-1, 639-2 '
                'or 639-3 code (two/three letters), or a special value like "code", "multilingual".'
            )
    for license_id in _as_list(data.get("license") or []):
        if license_id not in LICENSES:
            found.errors.append(f'"license" must be one of the known ones, not {license_id!r}')
    for dataset in _as_list(data.get("datasets") or []):
        if not isinstance(dataset, str) or not DATASET_ID.fullmatch(dataset):
            found.errors.append(f'"datasets" with value {dataset!r} is not valid')
    for name in ("tags", "metrics"):
        for value in _as_list(data.get(name) or []):
            if not isinstance(value, str):
                found.errors.append(f'"{name}" must be strings, not {value!r}')


def validate_card(content: str) -> Findings:
    """Judge a README.md."""
    found = Findings()
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?(?:\n|$)", content, re.DOTALL)
    if match is None:
        found.warnings.append("empty or missing yaml metadata in repo card")
        return found
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        found.errors.append(f"the metadata is no YAML: {error}")
        return found
    if not found.need(data, dict, "metadata"):
        return found
    _check_lists(found, data)
    for name in ("library_name", "pipeline_tag", "license_name", "model_name"):
        if name in data:
            found.need(data[name], str, name)
    if "pipeline_tag" in data and data["pipeline_tag"] not in TASKS:
        found.warnings.append(f'"pipeline_tag" {data["pipeline_tag"]!r} is not a known task')
    if "model-index" in data and found.need(data["model-index"], list, "model-index"):
        for number, model in enumerate(data["model-index"]):
            place = f"model-index[{number}]"
            if found.need(model, dict, place):
                found.need(model.get("name"), str, f"{place}.name")
                if found.need(model.get("results"), list, f"{place}.results"):
                    for index, result in enumerate(model["results"]):
                        _check_result(found, result, f"{place}.results[{index}]")
    return found
