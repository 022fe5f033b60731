"""Ways to generate that promise the same text only sooner: is it the same, for every scheme?"""

import pytest
import torch
from tiny_models import PLACEMENTS, SCHEMES, random_tokens, tiny_model

from hf_tinyformer import TinyFormerForCausalLM


@pytest.fixture(params=[f"{scheme}-{placement}" for scheme in SCHEMES for placement in PLACEMENTS])
def model(request):
    scheme, placement = request.param.split("-")
    return tiny_model(position_embedding_type=scheme, norm_placement=placement)


def generate(model, ids, **settings):
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **settings}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)


def greedy_by_hand(model, ids, count):
    for _ in range(count):
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids


@pytest.fixture
def ids():
    return random_tokens(1, 9)


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=["cache", "no cache", "static cache", "prompt lookup"],
)
def test_greedy_text_is_the_same_every_way(model, ids, way):
    expected = greedy_by_hand(model, ids, 12)

    found = generate(model, ids, eos_token_id=None, **way)

    assert found.tolist() == expected.tolist()


def test_greedy_text_with_a_draft_is_the_large_model_s_own(model, ids):
    torch.manual_seed(1)
    draft = tiny_model(num_hidden_layers=1)

    found = generate(model, ids, eos_token_id=None, assistant_model=draft)

    assert found.tolist() == greedy_by_hand(model, ids, 12).tolist()


def test_a_draft_that_always_guesses_right_saves_passes(ids):
    model = tiny_model()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    draft = tiny_model()
    draft.load_state_dict(model.state_dict())
    draft.generation_config.num_assistant_tokens = 5
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0

    generate(model, ids, eos_token_id=None, assistant_model=draft)

    # 12 tokens, of which a pass confirms five and adds one.
    assert len(passes) <= 3


def test_prompts_of_different_length_in_a_batch_give_what_each_gives_alone(model):
    short, long = random_tokens(1, 4), random_tokens(1, 9)
    padding = torch.zeros(1, 5, dtype=torch.long)
    batch = torch.cat([torch.cat([padding, short], dim=1), long])

    found = model.generate(
        batch,
        attention_mask=(batch != 0).long(),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )

    assert found[0, 5:].tolist() == generate(model, short, eos_token_id=None)[0].tolist()
    assert found[1].tolist() == generate(model, long, eos_token_id=None)[0].tolist()


def test_beams_find_a_text_at_least_as_likely_as_greedy_search(model, ids):
    def log_likelihood(row):
        with torch.inference_mode():
            scores = model(row[None], use_cache=False).logits[0].log_softmax(-1)
        return sum(float(scores[i - 1, row[i]]) for i in range(ids.shape[1], len(row)))

    greedy = generate(model, ids, eos_token_id=None)[0]
    beams = generate(
        model, ids, eos_token_id=None, num_beams=8, num_return_sequences=8, length_penalty=0.0
    )

    found = [log_likelihood(row) for row in beams]
    assert found == sorted(found, reverse=True)
    assert found[0] >= log_likelihood(greedy) - 1e-4


def test_a_checkpoint_generates_the_same_after_saving(ids, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)

    loaded = TinyFormerForCausalLM.from_pretrained(tmp_path)

    assert torch.equal(generate(loaded, ids), generate(model, ids))
