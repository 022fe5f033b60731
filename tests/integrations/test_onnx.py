"""ONNX: every kind of model, run by onnxruntime, and a failure that leaves nothing behind."""

import json

import pytest

pytest.importorskip("onnxscript", reason="needs hf-tinyformer[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs hf-tinyformer[onnx]")

import onnx
from tiny_checkpoints import train_tiny_tokenizer, write_tiny_checkpoint
from tiny_models import PLACEMENTS, SCHEMES

from hf_tinyformer.artifacts import read_manifest
from hf_tinyformer.errors import ExportError
from hf_tinyformer.publishing import onnx as onnx_export
from hf_tinyformer.publishing.onnx import export_onnx


@pytest.fixture(scope="module")
def tokenizer():
    return train_tiny_tokenizer()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("onnx")
    write_tiny_checkpoint(folder / "final", tokenizer)
    return export_onnx(folder / "final", folder / "exports" / "onnx"), folder / "exports" / "onnx"


def test_the_export_says_what_was_compared(exported):
    record, folder = exported

    assert json.loads((folder / "export.json").read_text()) == record
    assert record["format"] == "onnx"
    assert 0 < record["largest_difference"] <= record["tolerance"] < 1e-3
    assert record["greedy_tokens"] == 32
    read_manifest(folder, kind="export", check_hashes=True)


def test_both_graphs_have_the_names_of_the_field_and_share_their_weights(exported):
    _, folder = exported
    shapes = {}
    for name in ("model.onnx", "model_without_cache.onnx"):
        graph = onnx.load(folder / name, load_external_data=False).graph
        shapes[name] = {
            value.name: [
                axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim
            ]
            for value in [*graph.input, *graph.output]
        }
        locations = {
            entry.value
            for tensor in graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert locations == {"model.onnx.data"}
        onnx.checker.check_model(folder / name)

    tokens = {
        "input_ids": ["batch_size", "sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
    }
    past = ["batch_size", 2, "past_sequence_length", 8]
    present = ["batch_size", 2, "total_sequence_length", 8]
    assert shapes["model.onnx"] == {
        **tokens,
        "attention_mask": ["batch_size", "total_sequence_length"],
        "logits": ["batch_size", "sequence_length", 400],
        **{f"past_key_values.{n}.{part}": past for n in (0, 1) for part in ("key", "value")},
        **{f"present.{n}.{part}": present for n in (0, 1) for part in ("key", "value")},
    }
    assert set(shapes["model_without_cache.onnx"]) == {*tokens, "attention_mask", "logits"}


def test_nothing_of_this_machine_is_in_the_graphs(exported):
    _, folder = exported

    for path in folder.glob("*.onnx"):
        content = path.read_bytes()
        assert b".py" not in content
        assert b"stack_trace" not in content


def test_logits_that_differ_leave_nothing_behind(tmp_path, tokenizer, monkeypatch):
    write_tiny_checkpoint(tmp_path / "final", tokenizer, num_hidden_layers=1)
    monkeypatch.setattr(onnx_export, "TOLERANCE", 1e-12)

    with pytest.raises(ExportError, match=r"onnxruntime.* gives logits that differ by"):
        export_onnx(tmp_path / "final", tmp_path / "exports" / "onnx")

    assert not any((tmp_path / "exports").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_and_placement_runs_in_onnxruntime(tmp_path, tokenizer, scheme, placement):
    kind = {"position_embedding_type": scheme, "norm_placement": placement}
    other = {"norm_type": "layernorm", "mlp_type": "gelu", "mlp_bias": True, "attention_bias": True}
    settings = kind | {"num_hidden_layers": 1} | (other if placement == "post" else {})
    write_tiny_checkpoint(tmp_path / "final", tokenizer, **settings)

    record = export_onnx(tmp_path / "final", tmp_path / "onnx")

    assert record["largest_difference"] <= record["tolerance"]
    assert record["greedy_tokens"] > 0
