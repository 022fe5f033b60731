"""The heads, their losses, and what transformers' own models can do."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from tiny_models import PLACEMENTS, SCHEMES, random_tokens, tiny_config, tiny_model
from transformers import StaticCache, TextStreamer
from transformers.generation.streamers import BaseStreamer

from hf_tinyformer import (
    TinyFormerForCausalLM,
    TinyFormerForMaskedLM,
    TinyFormerForQuestionAnswering,
    TinyFormerForSequenceClassification,
    TinyFormerForTokenClassification,
    TinyFormerModel,
)

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def mean_loss(logits, targets):
    """Mean negative log likelihood, written out; -100 is left out."""
    kept = targets != -100
    chosen = logits.log_softmax(dim=-1)[kept].gather(1, targets[kept][:, None])
    return -chosen.mean()


# Losses.


def test_labels_are_shifted_by_the_model():
    model = tiny_model()
    tokens = random_tokens(2, 9)

    output = model(tokens, labels=tokens)

    torch.testing.assert_close(output.loss, mean_loss(output.logits[:, :-1], tokens[:, 1:]))


def test_labels_shifted_already_are_enough_and_not_shifted_again():
    model = tiny_model()
    tokens, next_tokens = random_tokens(2, 9), random_tokens(2, 9)
    next_tokens[0, :4] = -100

    output = model(tokens, shift_labels=next_tokens)

    torch.testing.assert_close(output.loss, mean_loss(output.logits, next_tokens))


def test_the_loss_is_a_sum_over_the_given_number_of_tokens():
    # Micro-batches weighted by their tokens: what makes accumulation exact.
    model = tiny_model()
    tokens, next_tokens = random_tokens(3, 9), random_tokens(3, 9)
    next_tokens[0, :7] = -100

    whole = model(tokens, shift_labels=next_tokens).loss
    parts = [
        model(tokens[rows], shift_labels=next_tokens[rows], num_items_in_batch=20).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]

    torch.testing.assert_close(sum(parts), whole)


def test_no_cache_is_kept_while_a_loss_is_computed():
    model = tiny_model()
    tokens = random_tokens(1, 5)

    assert model(tokens).past_key_values.get_seq_length() == 5
    assert model(tokens, labels=tokens).past_key_values is None
    assert model(tokens, shift_labels=tokens).past_key_values is None
    assert model(tokens, labels=tokens, use_cache=True).past_key_values is not None


def test_masked_labels_stay_where_they_are():
    model = tiny_model(TinyFormerForMaskedLM)
    tokens = random_tokens(2, 9)
    labels = torch.full_like(tokens, -100)
    labels[:, 3] = 7

    output = model(tokens, labels=labels)

    torch.testing.assert_close(output.loss, mean_loss(output.logits, labels))


def test_token_labels_stay_where_they_are():
    model = tiny_model(TinyFormerForTokenClassification, num_labels=3)
    labels = torch.randint(0, 3, (2, 9))

    output = model(random_tokens(2, 9), labels=labels)

    assert output.logits.shape == (2, 9, 3)
    torch.testing.assert_close(output.loss, mean_loss(output.logits, labels))


def test_an_answer_is_scored_by_its_first_and_last_token():
    model = tiny_model(TinyFormerForQuestionAnswering)
    tokens, first, last = random_tokens(2, 9), torch.tensor([2, 5]), torch.tensor([4, 5])

    output = model(tokens, start_positions=first, end_positions=last)

    cross_entropy = torch.nn.functional.cross_entropy
    assert output.start_logits.shape == output.end_logits.shape == (2, 9)
    assert not torch.equal(output.start_logits, output.end_logits)
    mean = (cross_entropy(output.start_logits, first) + cross_entropy(output.end_logits, last)) / 2
    torch.testing.assert_close(output.loss, mean)
    assert model(tokens).loss is None


# Classification of texts.


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("given", ["attention_mask", "pad_token", "inputs_embeds"])
def test_a_text_is_judged_by_its_last_token_wherever_padding_stands(side, given):
    model = tiny_model(TinyFormerForSequenceClassification, num_labels=3)
    tokens, longer = random_tokens(1, 5), random_tokens(1, 8)
    padded = torch.nn.functional.pad(tokens, (3, 0) if side == "left" else (0, 3))
    batch = torch.cat([padded, longer])
    inputs = {"attention_mask": (batch != 0).long()}
    if given == "inputs_embeds":
        inputs["inputs_embeds"] = model.get_input_embeddings()(batch)
    else:
        inputs["input_ids"] = batch
    if given == "pad_token" and side == "right":
        inputs.pop("attention_mask")  # on the left the model needs it, as every model does

    with torch.no_grad():
        logits = model(**inputs).logits
        alone = torch.cat([model(tokens).logits, model(longer).logits])

    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


def test_texts_whose_ends_are_unknown_are_refused():
    model = tiny_model(TinyFormerForSequenceClassification, pad_token_id=None)

    assert model(random_tokens(1, 4)).logits.shape == (1, 2)
    with pytest.raises(ValueError, match=r"batch holds 2 texts.*Pass an attention_mask"):
        model(random_tokens(2, 4))


def test_text_labels_give_a_loss():
    model = tiny_model(TinyFormerForSequenceClassification, num_labels=3)
    labels = torch.tensor([2, 0])

    output = model(random_tokens(2, 6), labels=labels)

    torch.testing.assert_close(output.loss, mean_loss(output.logits, labels))


# The configuration of the heads.


def test_a_causal_head_on_a_bidirectional_config_is_refused():
    with pytest.raises(ValueError, match=r"is_causal is False.*TinyFormerForMaskedLM"):
        TinyFormerForCausalLM(tiny_config(is_causal=False))


def test_a_masked_head_leaves_the_callers_config_alone():
    config = tiny_config()
    model = TinyFormerForMaskedLM(config)

    assert config.is_causal
    assert not model.config.is_causal
    assert not model.model.layers[0].self_attn.is_causal


def test_a_bidirectional_model_keeps_no_cache():
    model = tiny_model(TinyFormerModel, is_causal=False)

    assert model(random_tokens(1, 4), use_cache=True).past_key_values is None


# Outputs.


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_hidden_states_go_from_the_embeddings_to_the_result(placement):
    model = tiny_model(TinyFormerModel, norm_placement=placement)
    tokens = random_tokens(1, 5)

    output = model(tokens, output_hidden_states=True)

    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[0], model.embed_tokens(tokens))
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


@every_scheme
def test_attention_maps_come_from_eager_attention(scheme):
    model = tiny_model(position_embedding_type=scheme, attn_implementation="eager")

    maps = model(random_tokens(2, 6), output_attentions=True).attentions

    assert [weights.shape for weights in maps] == [(2, 4, 6, 6)] * 2
    for weights in maps:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 6))
        assert weights.triu(diagonal=1).abs().max() == 0


def test_a_tuple_comes_back_when_asked_for():
    model = tiny_model()
    tokens = random_tokens(1, 4)

    assert torch.equal(model(tokens, return_dict=False)[0], model(tokens).logits)


def test_only_the_wanted_logits_are_computed():
    model = tiny_model()
    tokens = random_tokens(2, 6)
    everything = model(tokens).logits

    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, everything[:, -2:])
    wanted = torch.tensor([0, 3])
    torch.testing.assert_close(model(tokens, logits_to_keep=wanted).logits, everything[:, wanted])
    for_each_row = torch.tensor([[0, 3], [5, 1]])
    torch.testing.assert_close(
        model(tokens, logits_to_keep=for_each_row).logits,
        torch.stack([everything[0, [0, 3]], everything[1, [5, 1]]]),
    )
    chosen = tokens > 20
    torch.testing.assert_close(model(tokens, logits_to_keep=chosen).logits, everything[chosen])
    assert model(tokens, logits_to_keep=0).logits.shape == (2, 6, 40)


# Generation.


def generate(model, tokens, **settings):
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None} | settings
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)


@every_scheme
def test_greedy_text_is_the_most_likely_token_again_and_again(scheme):
    model = tiny_model(position_embedding_type=scheme)
    tokens = random_tokens(2, 5)
    expected = tokens
    for _ in range(8):
        following = model(expected).logits[:, -1].argmax(dim=-1)
        expected = torch.cat([expected, following[:, None]], dim=1)

    assert torch.equal(generate(model, tokens), expected)


@every_scheme
def test_left_padded_prompts_go_on_as_if_alone(scheme):
    model = tiny_model(position_embedding_type=scheme)
    short, long = random_tokens(1, 4), random_tokens(1, 9)
    batch = torch.cat([torch.nn.functional.pad(short, (5, 0)), long])

    together = model.generate(
        batch,
        attention_mask=(batch != 0).long(),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
    )

    assert torch.equal(together[0, 5:], generate(model, short)[0])
    assert torch.equal(together[1], generate(model, long)[0])


def test_sampling_repeats_itself_under_one_seed():
    model = tiny_model()
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(generate(model, torch.tensor([[5, 6, 7]]), do_sample=True, top_k=20))

    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


@every_scheme
def test_beams_find_no_worse_a_text_than_greedy(scheme):
    model = tiny_model(position_embedding_type=scheme, initializer_range=0.1)
    tokens = random_tokens(1, 4)

    def score(text):
        return model(
            text, shift_labels=torch.nn.functional.pad(text[:, 1:], (0, 1), value=-100)
        ).loss

    beams = generate(model, tokens, num_beams=4)
    uncached = generate(model, tokens, num_beams=4, use_cache=False)

    assert torch.equal(beams, uncached)
    assert score(beams) <= score(generate(model, tokens)) + 1e-6


def test_a_streamer_hears_every_token():
    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    model, streamer = tiny_model(), Collect()
    tokens = random_tokens(1, 4)

    text = generate(model, tokens, streamer=streamer)

    assert streamer.tokens == text[0].tolist()
    assert streamer.ended
    assert issubclass(TextStreamer, BaseStreamer)


def test_assisted_generation_gives_the_same_text():
    model = tiny_model(position_embedding_type="alibi")
    tokens = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])

    assert torch.equal(generate(model, tokens, prompt_lookup_num_tokens=3), generate(model, tokens))


# Learned positions end somewhere.


def test_a_position_beyond_the_learned_table_is_named():
    model = tiny_model(position_embedding_type="learned", max_position_embeddings=8)
    message = r"position_ids leave .* 0 to 7 \(max_position_embeddings is 8\).*fewer tokens"

    assert model(random_tokens(1, 8)).logits.shape == (1, 8, 40)
    with pytest.raises(ValueError, match=message):
        model(random_tokens(1, 9))
    with pytest.raises(ValueError, match=message):
        model(random_tokens(1, 2), position_ids=torch.tensor([[7, 8]]))
    with pytest.raises(ValueError, match=message):
        model(random_tokens(1, 2), position_ids=torch.tensor([[-1, 0]]))
    with pytest.raises(ValueError, match=message):
        generate(model, random_tokens(1, 6))
    with pytest.raises(ValueError, match=message):
        model(
            random_tokens(1, 9),
            past_key_values=StaticCache(model.config, max_cache_len=20),
        )


def test_left_padding_takes_no_place_in_the_learned_table():
    model = tiny_model(position_embedding_type="learned", max_position_embeddings=8)
    tokens = torch.nn.functional.pad(random_tokens(1, 8), (5, 0))

    assert model(tokens, attention_mask=(tokens != 0).long()).logits.shape == (1, 13, 40)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"learned"}))
def test_the_other_schemes_go_on(scheme):
    model = tiny_model(position_embedding_type=scheme, max_position_embeddings=8)

    assert generate(model, random_tokens(1, 6)).shape == (1, 14)


# Weights.


@pytest.mark.parametrize("model_class", [TinyFormerForCausalLM, TinyFormerForMaskedLM])
def test_tied_weights_are_one_tensor_before_and_after_loading(model_class, tmp_path):
    model = tiny_model(model_class)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)

    for each in (model, loaded):
        head, table = each.get_output_embeddings().weight, each.get_input_embeddings().weight
        assert head.data_ptr() == table.data_ptr()
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118 - no mapping


def test_untied_weights_are_two_tensors(tmp_path):
    model = tiny_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    loaded = TinyFormerForCausalLM.from_pretrained(tmp_path)

    for each in (model, loaded):
        assert not torch.equal(each.lm_head.weight, each.model.embed_tokens.weight)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_buffer_survives_loading(scheme, tmp_path):
    model = tiny_model(position_embedding_type=scheme)
    model.save_pretrained(tmp_path)

    for dtype in (torch.float32, torch.bfloat16):
        loaded = TinyFormerForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        buffers = dict(loaded.named_buffers())
        assert buffers.keys() == dict(model.named_buffers()).keys()
        for name, buffer in model.named_buffers():
            assert torch.equal(buffers[name], buffer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_comes_back_as_it_was(dtype, tmp_path):
    model = tiny_model().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = TinyFormerForCausalLM.from_pretrained(tmp_path)

    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype)[6:]
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    tokens = random_tokens(1, 6)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_a_causal_checkpoint_opens_as_every_other_head(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)

    for model_class in (
        TinyFormerForMaskedLM,
        TinyFormerForQuestionAnswering,
        TinyFormerForSequenceClassification,
        TinyFormerForTokenClassification,
    ):
        loaded = model_class.from_pretrained(tmp_path)
        for name, parameter in model.model.named_parameters():
            assert torch.equal(loaded.model.get_parameter(name), parameter)


def test_the_vocabulary_can_grow(tmp_path):
    model = tiny_model()
    tokens = random_tokens(1, 6)
    before = model(tokens).logits

    model.resize_token_embeddings(48, mean_resizing=False)

    assert model.config.vocab_size == 48
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    torch.testing.assert_close(model(tokens).logits[..., :40], before)
    assert model(tokens, labels=tokens).loss.isfinite()
    model.save_pretrained(tmp_path)
    assert TinyFormerForCausalLM.from_pretrained(tmp_path).config.vocab_size == 48


def test_first_weights_have_the_spread_the_config_asks_for():
    model = tiny_model(hidden_size=256, initializer_range=0.02, num_hidden_layers=8)
    layer = model.model.layers[0]

    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    # Two sums per layer, eight layers: 0.02 / sqrt(16).
    assert layer.self_attn.o_proj.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert layer.mlp.down_proj.weight.std().item() == pytest.approx(0.005, rel=0.05)


def test_residual_scaling_can_be_switched_off():
    model = tiny_model(hidden_size=256, initializer_range=0.02, scale_residual_initialization=False)

    for weight in (
        model.model.layers[0].self_attn.o_proj.weight,
        model.model.layers[0].mlp.down_proj.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_an_untrained_model_guesses_evenly():
    model = tiny_model(initializer_range=0.02)
    tokens = random_tokens(4, 32)

    assert model(tokens, labels=tokens).loss.item() == pytest.approx(math.log(40), abs=0.1)


def test_the_final_norm_stands_only_after_pre_norm_blocks():
    names = {
        placement: set(tiny_model(norm_placement=placement).state_dict())
        for placement in PLACEMENTS
    }

    assert names["pre"] - names["post"] == {"model.norm.weight"}
    assert names["post"] <= names["pre"]


# Training.


@every_scheme
def test_every_parameter_learns(scheme):
    model = tiny_model(position_embedding_type=scheme, attention_bias=True, mlp_bias=True).train()
    tokens = random_tokens(2, 20)

    model(tokens, labels=tokens).loss.backward()

    for name, parameter in model.named_parameters():
        if name.endswith("k_proj.bias") and scheme in ("alibi", "relative", "none", "learned"):
            continue  # without query-key norm it would move all scores of a query alike
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_scheme
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(scheme, use_reentrant):
    model = tiny_model(position_embedding_type=scheme).train()
    tokens = random_tokens(2, 12)

    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            # Named anew in transformers 5.23.
            name = "activation_checkpointing_enable"
            enable = getattr(model, name, None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})

    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_dropout_acts_only_while_training():
    model = tiny_model(hidden_dropout=0.3, attention_dropout=0.3)
    tokens = random_tokens(1, 8)

    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("name", ["hidden_dropout", "attention_dropout"])
def test_each_dropout_acts_alone(name):
    model = tiny_model(**{name: 0.3}).train()
    tokens = random_tokens(1, 8)

    assert not torch.equal(model(tokens).logits, model(tokens).logits)


def test_the_plans_for_parallel_training_name_real_modules():
    model = tiny_model(use_qk_norm=True)
    names = {name for name, _ in model.model.named_modules()}

    for plan in (model.config.base_model_tp_plan, model.config.base_model_pp_plan):
        for pattern in plan:
            assert any(
                name.replace(".0.", ".*.") == pattern or name == pattern for name in names
            ), pattern
    assert {type(layer).__name__ for layer in model.model.layers} == set(model._no_split_modules)


# Compiled.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's compiler
def test_the_compiled_model_gives_the_same_loss_and_gradients():
    torch._dynamo.reset()
    model = tiny_model(num_hidden_layers=1).train()
    tokens = random_tokens(2, 12)

    gradients = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        run(tokens, shift_labels=tokens).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])

    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, compiled, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's compiler
@every_scheme
def test_every_scheme_is_one_graph(scheme):
    # The graph is captured and run as it is; turning it into machine code is torch's affair.
    torch._dynamo.reset()
    model = tiny_model(position_embedding_type=scheme)
    tokens = random_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0

    compiled = torch.compile(model, fullgraph=True, backend="eager")

    for inputs in ({"shift_labels": tokens}, {"attention_mask": mask, "use_cache": False}):
        torch.testing.assert_close(
            compiled(tokens, **inputs).logits, model(tokens, **inputs).logits, atol=1e-5, rtol=1e-5
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's compiler
def test_a_position_beyond_the_learned_table_is_named_when_compiled_too():
    torch._dynamo.reset()
    model = tiny_model(position_embedding_type="learned", max_position_embeddings=8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    with pytest.raises(RuntimeError, match="max_position_embeddings is 8"):
        compiled(random_tokens(1, 2), position_ids=torch.tensor([[7, 8]]))
