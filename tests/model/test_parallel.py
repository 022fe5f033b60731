"""More than one device: weights spread by accelerate, layers split among processes."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from tiny_models import SCHEMES, random_tokens, tiny_model
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from hf_tinyformer import TinyFormerForCausalLM

EXACT = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_accelerate_spreads_a_checkpoint_over_memory_and_disk(scheme, tmp_path):
    model = tiny_model(position_embedding_type=scheme)
    model.save_pretrained(tmp_path / "model")
    tokens = random_tokens(2, 9)

    with init_empty_weights():
        empty = TinyFormerForCausalLM(model.config)
    empty.tie_weights()
    spread = load_checkpoint_and_dispatch(
        empty.eval(),
        str(tmp_path / "model" / "model.safetensors"),
        device_map={
            "model.embed_tokens": "cpu",
            "model.embeddings": "cpu",
            **({"model.rotary_emb": "cpu"} if scheme == "rope" else {}),
            **({"model.score_bias": "cpu"} if scheme in ("alibi", "relative") else {}),
            "model.layers.0": "cpu",
            "model.layers.1": "disk",
            "model.norm": "cpu",
            "lm_head": "cpu",
        },
        offload_folder=str(tmp_path / "offload"),
        no_split_module_classes=empty._no_split_modules,
    )

    assert spread.model.layers[1].mlp.up_proj.weight.device.type == "meta"  # it waits on the disk
    with torch.no_grad():
        torch.testing.assert_close(spread(tokens).logits, model(tokens).logits, **EXACT)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(spread.generate(tokens, **settings), model.generate(tokens, **settings))


def test_accelerate_finds_places_for_the_layers_by_itself(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    tokens = random_tokens(2, 9)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="auto")

    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, **EXACT)


def check_split(rank, port, folder):
    """In one of two processes: a split model gives logits, text and gradients of a whole one."""
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    try:
        split = AutoModelForCausalLM.from_pretrained(
            folder, distributed_config=DistributedConfig(tp_size=2)
        )
        whole = AutoModelForCausalLM.from_pretrained(folder)
        assert split.model.layers[0].self_attn.q_proj.weight.to_local().shape == (16, 32)
        torch.manual_seed(0)
        tokens = random_tokens(2, 9)
        torch.testing.assert_close(split(tokens).logits, whole(tokens).logits, **EXACT)

        settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
        assert torch.equal(split.generate(tokens, **settings), whole.generate(tokens, **settings))

        for model in (split, whole):
            model(tokens, labels=tokens).loss.backward()
        ours, theirs = (model.model.layers[0] for model in (split, whole))
        # The norms are held whole by each process; their gradients come from half of the heads.
        torch.testing.assert_close(
            ours.self_attn.q_norm.weight.grad, theirs.self_attn.q_norm.weight.grad, **EXACT
        )
        torch.testing.assert_close(
            ours.mlp.down_proj.weight.grad.full_tensor(), theirs.mlp.down_proj.weight.grad, **EXACT
        )
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["rope", "learned"])
def test_two_processes_hold_half_of_each_layer(scheme, tmp_path):
    tiny_model(position_embedding_type=scheme).save_pretrained(tmp_path)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]

    mp.spawn(check_split, args=(port, str(tmp_path)), nprocs=2)


def test_the_schemes_that_cannot_be_split_say_so_before_they_are_wrong():
    for scheme in ("alibi", "relative"):
        assert tiny_model(position_embedding_type=scheme).config.base_model_tp_plan is None
