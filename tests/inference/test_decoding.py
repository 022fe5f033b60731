import itertools
import platform
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.errors import ArtifactError
from hf_tinyformer.inference import decoder_kernel, decoding
from hf_tinyformer.inference.choosing import build_chooser
from hf_tinyformer.inference.decoding import TokenDecoder, can_decode, decode

SCHEMES = ["rope", "learned", "sinusoidal", "alibi", "relative", "none"]
PROMPTS = [[5, 6, 7, 8], [9, 3], [4, 4, 4, 8, 1, 2, 11]]


has_kernel = pytest.mark.skipif(
    decoder_kernel.load_library() is None, reason="no C++ compiler for the decoding kernel"
)


@pytest.fixture(params=["torch", pytest.param("kernel", marks=has_kernel)])
def way(request, monkeypatch):
    """Both ways to take a step on a CPU."""
    if request.param == "torch":
        monkeypatch.setattr(decoding, "can_run", lambda model, batch: False)
    return request.param


def build(**settings) -> TinyFormerForCausalLM:
    torch.manual_seed(0)
    config = TinyFormerConfig(
        **{
            "vocab_size": 61,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            **settings,
        }
    )
    model = TinyFormerForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases, which begin as ones and zeros
                parameter.add_(0.2 * torch.randn_like(parameter))
            assert parameter.abs().sum() > 0, name
    return model


def by_generate(model, prompts, count):
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    output = model.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        generation_config=GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0),
    )
    return output[:, longest:].tolist()


KINDS = [
    {"position_embedding_type": scheme, "norm_placement": placement, "use_qk_norm": qk_norm}
    for scheme, placement, qk_norm in itertools.product(SCHEMES, ["pre", "post"], [True, False])
] + [
    {"norm_type": "layernorm", "attention_bias": True, "mlp_bias": True, "mlp_type": "gelu"},
    {"norm_type": "layernorm", "norm_placement": "post", "position_embedding_type": "learned"},
    {"mlp_type": "relu2", "tie_word_embeddings": False},
    {"num_key_value_heads": 2, "head_dim": 16},
    {"hidden_size": 36, "head_dim": 10, "intermediate_size": 50},  # fills no vector
    {"num_key_value_heads": 1, "attention_bias": True, "position_embedding_type": "alibi"},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_greedy_text_is_that_of_generate(settings, way):
    model = build(**settings)
    greedy = build_chooser(0, 0, 1.0)

    together = decode(model, PROMPTS, max_new_tokens=20, choose=greedy)
    alone = [decode(model, [prompt], max_new_tokens=20, choose=greedy)[0] for prompt in PROMPTS]

    assert together == by_generate(model, PROMPTS, 20)
    assert alone == [by_generate(model, [prompt], 20)[0] for prompt in PROMPTS]


def logits_of_steps(model, ids, mask, decoder_class=TokenDecoder):
    """Read six tokens at once and ten one by one; `(batch, 11, vocab_size)`."""
    with torch.inference_mode():
        decoder = decoder_class(model, ids, 16)
        found = [decoder.read(ids[:, :6], mask[:, :6])]
        found += [decoder.step(ids[:, place]).clone() for place in range(6, 16)]
    return torch.stack(found, dim=1)


def check_steps(model, padding, decoder_class=TokenDecoder):
    ids = torch.randint(0, 61, (len(padding), 16))
    mask = (torch.arange(16) >= torch.tensor(padding)[:, None]).long()
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits[:, 5:]

    found = logits_of_steps(model, ids, mask, decoder_class)

    # Sums of float32 in another order.
    bound = 2e-5 * expected.abs().max()
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


class InFixedShapes(TokenDecoder):
    """Takes steps as a CUDA graph does, in which no shape depends on the slot."""

    def step(self, tokens):
        logits = self.compute(tokens, torch.tensor([self.slot]))
        self.slot += 1
        return logits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("padding", [[0], [0, 3]])
def test_logits_are_those_of_the_forward(scheme, padding, way):
    check_steps(build(position_embedding_type=scheme, num_key_value_heads=2), padding)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("padding", [[0], [0, 3]])
def test_so_are_those_of_fixed_shapes(scheme, padding, monkeypatch):
    monkeypatch.setattr(decoding, "can_run", lambda model, batch: False)
    model = build(position_embedding_type=scheme, num_key_value_heads=2)
    check_steps(model, padding, InFixedShapes)


@pytest.mark.parametrize("rows", [15, 17, 33])
def test_any_number_of_rows(rows, way):
    check_steps(build(), [row % 5 for row in range(rows)])


@has_kernel
@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_threads_share_the_work(threads, placement, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = build(norm_placement=placement)
    for _ in range(5):  # a missing barrier need not show at once
        check_steps(model, [0])
        check_steps(model, [row % 5 for row in range(20)])


@has_kernel
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86's instructions")
@pytest.mark.parametrize("instructions", ["x86-64", "x86-64-v3"])
def test_the_kernel_is_right_with_narrower_vectors(instructions, monkeypatch, tmp_path):
    flags = [flag.replace("native", instructions) for flag in decoder_kernel.FLAGS]
    monkeypatch.setattr(decoder_kernel, "FLAGS", flags)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = decoder_kernel.load_library.__wrapped__()
    assert library.decoder_lanes() == {"x86-64": 4, "x86-64-v3": 8}[instructions]
    monkeypatch.setattr(decoder_kernel, "load_library", lambda: library)

    for kind in KINDS[-7:]:
        check_steps(build(**kind), [0])
        check_steps(build(**kind), [0, 2, 5])


@has_kernel
def test_the_kernel_writes_nothing_beside_its_cache():
    decoder = TokenDecoder(build(), torch.tensor([[1, 2]]), 3)
    with torch.inference_mode():
        decoder.read(torch.tensor([[1, 2]]), None)
        decoder.step(torch.tensor([3]))
        with pytest.raises(IndexError, match="slot 3 of a cache with room for 3 tokens"):
            decoder.step(torch.tensor([4]))


def test_what_the_kernel_does_not_run():
    model = build()
    assert not decoder_kernel.can_run(model, decoder_kernel.MOST_ROWS + 1)
    assert not decoder_kernel.can_run(model.bfloat16(), 1)


@pytest.fixture
def no_library_yet(monkeypatch, tmp_path):
    """Find no compiled library, neither in this process nor on disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(decoder_kernel, "load_library", decoder_kernel.load_library.__wrapped__)
    return tmp_path


def test_without_a_compiler_text_is_written_all_the_same(no_library_yet, monkeypatch, caplog):
    model = build()
    monkeypatch.setenv("CXX", "no-such-compiler")

    written = decode(model, PROMPTS, max_new_tokens=8, choose=build_chooser(0, 0, 1.0))

    assert written == by_generate(model, PROMPTS, 8)
    assert not caplog.messages


def test_a_compiler_that_fails_is_named(no_library_yet, monkeypatch, caplog):
    compiler = no_library_yet / "compiler"
    compiler.write_text("#!/bin/sh\necho what is this >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))

    assert not decoder_kernel.can_run(build(), 1)

    assert caplog.messages == [f"The decoding kernel is not used: {compiler} cannot compile it."]
    assert list((no_library_yet / "hf_tinyformer").iterdir()) == []


@has_kernel
def test_a_folder_that_cannot_be_written_is_named(no_library_yet, monkeypatch, caplog):
    in_the_way = no_library_yet / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))

    assert not decoder_kernel.can_run(build(), 1)

    [message] = caplog.messages
    assert str(in_the_way) in message


@has_kernel
@pytest.mark.parametrize("words", ["", "env g++"])
def test_the_compiler_may_be_named_by_any_number_of_words(words, no_library_yet, monkeypatch):
    monkeypatch.setenv("CXX", words)

    assert decoder_kernel.load_library() is not None


def test_a_compiler_whose_quotes_do_not_close_is_no_error(no_library_yet, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "'g++")

    assert decoder_kernel.load_library() is None

    assert caplog.messages == ["The decoding kernel is not used: No closing quotation"]


@has_kernel
def test_a_damaged_library_is_compiled_again(no_library_yet, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ctypes.CDLL", mock.Mock())  # what was opened once is not opened again
        decoder_kernel.load_library()
    [path] = (no_library_yet / "hf_tinyformer").iterdir()
    path.write_bytes(b"")

    assert decoder_kernel.load_library() is not None


def test_a_library_is_on_disk_before_it_has_its_name(no_library_yet, monkeypatch):
    compiler = no_library_yet / "compiler"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\n: > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    named = []
    folder = no_library_yet / "hf_tinyformer"
    monkeypatch.setattr("os.fsync", lambda _: named.append(list(folder.glob("*.so"))))

    decoder_kernel.load_library()

    assert named == [[]]
    assert len(list(folder.glob("*.so"))) == 1


def test_a_step_is_recorded_on_the_models_device(monkeypatch):
    model = build()
    monkeypatch.setattr(decoding, "can_run", lambda model, batch: False)
    current, recorded = [], []

    @contextmanager
    def take(device):
        current.append(device)
        yield
        current.pop()

    @contextmanager
    def record(graph, *, stream, capture_error_mode):
        recorded.append((list(current), stream.device, capture_error_mode))
        yield

    def make_stream(device=None):
        return SimpleNamespace(device=device, wait_stream=lambda other: None)

    monkeypatch.setattr(torch.cuda, "device", take)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "Stream", make_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", make_stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)

    with torch.inference_mode():
        decoder = TokenDecoder(model, torch.tensor([[1, 2]]), 3)
        decoder.read(torch.tensor([[1, 2]]), None)
        decoding._Recording(decoder, torch.tensor([3]))

    place = torch.device("cpu")
    assert recorded == [([place], place, "thread_local")]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
def test_a_step_on_the_second_gpu_writes_what_the_cpu_writes():
    model = build()
    greedy = build_chooser(0, 0, 1.0)
    expected = decode(model, PROMPTS, max_new_tokens=20, choose=greedy)

    assert decode(model.to("cuda:1"), PROMPTS, max_new_tokens=20, choose=greedy) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_recorded_step_writes_what_the_cpu_writes(scheme):
    model = build(position_embedding_type=scheme)
    greedy = build_chooser(0, 0, 1.0)
    expected = decode(model, PROMPTS, max_new_tokens=20, choose=greedy)

    assert decode(model.cuda(), PROMPTS, max_new_tokens=20, choose=greedy) == expected


def test_a_text_ends_at_a_stop_token_and_the_others_go_on():
    model = build()
    whole = decode(model, PROMPTS, max_new_tokens=12, choose=build_chooser(0, 0, 1.0))
    stop = whole[0][3]
    assert any(stop not in row for row in whole)

    found = decode(
        model, PROMPTS, max_new_tokens=12, choose=build_chooser(0, 0, 1.0), stop_ids=[stop]
    )

    expected = [row[: row.index(stop) + 1] if stop in row else row for row in whole]
    assert found == expected


def test_each_new_token_is_told():
    heard = []

    written = decode(
        build(),
        PROMPTS,
        max_new_tokens=5,
        choose=build_chooser(0, 0, 1.0),
        on_tokens=lambda tokens: heard.append(tokens.tolist()),
    )

    assert [list(row) for row in zip(*heard, strict=True)] == written


def test_nothing_is_computed_for_the_last_token():
    model = build(position_embedding_type="learned", max_position_embeddings=10)

    [written] = decode(model, [[1] * 8], max_new_tokens=3, choose=build_chooser(0, 0, 1.0))

    assert len(written) == 3  # 8 + 3 tokens, of which 10 were read


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.6), (0.9, 8, 0.8)]
)
def test_samples_follow_the_distribution_of_transformers_warpers(temperature, top_k, top_p):
    torch.manual_seed(1)
    logits = 2 * torch.randn(1, 12)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.long), logits).softmax(dim=-1)[0]
    draws = 40_000

    found = build_chooser(temperature, top_k, top_p)(logits.expand(draws, -1))

    shares = torch.bincount(found, minlength=12) / draws
    assert torch.equal(shares > 0, expected > 1e-4)
    # Five standard deviations of a share.
    torch.testing.assert_close(shares, expected, rtol=0, atol=5 * (0.25 / draws) ** 0.5)


WAYS_TO_CHOOSE = [(0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.9)]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.9)])
@pytest.mark.parametrize("temperature", [1e-39, 1e-300])
def test_a_temperature_of_almost_zero_takes_the_likeliest_token(temperature, top_k, top_p):
    logits = torch.tensor([[100.0, 300.0, -200.0, 299.0], [0.0, -1.0, -2.0, -3.0]])

    chosen = build_chooser(temperature, top_k, top_p)(logits)

    assert chosen.tolist() == [1, 0]


@pytest.mark.parametrize("settings", WAYS_TO_CHOOSE)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(settings, wrong):
    model = build()
    with torch.no_grad():
        model.model.norm.weight.fill_(wrong)

    with pytest.raises(ArtifactError, match=r"largest logit is nan or infinite.*diverged"):
        decode(model, PROMPTS, max_new_tokens=2, choose=build_chooser(*settings))


@pytest.mark.parametrize("settings", WAYS_TO_CHOOSE)
def test_a_token_that_is_ruled_out_is_never_chosen(settings):
    logits = torch.full((50, 4), -torch.inf)
    logits[:, 2] = 1.0

    assert build_chooser(*settings)(logits).tolist() == [2] * 50


class _Wrapped(nn.Linear):
    """What an adapter or a quantizer puts in a layer's place."""


def test_what_it_does_not_know_is_left_to_generate():
    assert can_decode(build())
    assert not can_decode(GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=9)))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert not can_decode(build(rope_parameters=dynamic))
    adapted = build()
    adapted.model.layers[1].mlp.down_proj = _Wrapped(96, 32, bias=False)
    assert not can_decode(adapted)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_a_model_with_hooks_is_left_to_generate_while_it_has_them(kind):
    model = build()

    hook = getattr(model.model.layers[1].mlp, f"register_{kind}")(lambda *_: None)

    assert not can_decode(model)
    hook.remove()
    assert can_decode(model)


def test_hooks_that_only_collected_attention_weights_do_not_count():
    model = build()
    model.set_attn_implementation("eager")
    assert model(torch.tensor([[1, 2]]), output_attentions=True).attentions[0] is not None
    assert any(module._forward_hooks for module in model.modules())

    assert can_decode(model)


class _Packed(torch.Tensor):
    """What torchao puts into a plain layer."""


def test_weights_of_another_class_are_left_to_generate():
    model = build()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(_Packed))

    assert type(layer) is nn.Linear
    assert not can_decode(model)


class _Adapted(nn.Module):
    """Stands in a module's place, as PEFT's layers do, and shows the weight of what it adapts."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self):
        return self.base_layer.weight


@pytest.mark.parametrize("name", ["embed_tokens", "norm", "layers.0.attention_norm"])
def test_an_adapter_anywhere_is_left_to_generate(name):
    model = build()
    model.model.set_submodule(name, _Adapted(model.model.get_submodule(name)))

    assert not can_decode(model)


def test_weights_that_moved_are_used():
    model = build()
    greedy = build_chooser(0, 0, 1.0)
    before = decode(model, PROMPTS, max_new_tokens=8, choose=greedy)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))

    assert decode(model, PROMPTS, max_new_tokens=8, choose=greedy) != before
    assert decode(model, PROMPTS, max_new_tokens=8, choose=greedy) == by_generate(model, PROMPTS, 8)


def test_autocast_around_it_changes_nothing():
    model = build()
    greedy = build_chooser(0, 0, 1.0)
    expected = decode(model, PROMPTS, max_new_tokens=8, choose=greedy)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decode(model, PROMPTS, max_new_tokens=8, choose=greedy)

    assert found == expected
