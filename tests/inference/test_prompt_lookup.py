import pytest
import torch
from transformers import GenerationConfig

from hf_tinyformer import TinyFormerConfig, TinyFormerForCausalLM
from hf_tinyformer.inference import decoder_kernel, prompt_lookup
from hf_tinyformer.inference.choosing import build_chooser
from hf_tinyformer.inference.decoding import TokenDecoder, decode
from hf_tinyformer.inference.prompt_lookup import PromptLookup

CIRCLE = [3, 1, 4, 1, 5, 9, 2, 6]


class Kernel:
    """Gives the logits of a text that goes on in a circle, and notes what it reads."""

    most_tokens = 5

    def __init__(self):
        self.read = []

    def compute(self, tokens, slot, padding):
        self.read.append((slot, tokens.tolist()))
        following = [CIRCLE[(slot + at + 1) % len(CIRCLE)] for at in range(len(tokens))]
        return torch.nn.functional.one_hot(torch.tensor(following), 10).float()


@pytest.fixture
def kernels():
    return Kernel(), Kernel()


def write(lookup, token, slots, text=None):
    """Write what the logits say, or a text, and return what they said."""
    said = []
    for at, slot in enumerate(slots):
        said.append(int(lookup.compute(token, slot, None).argmax()))
        token = said[-1] if text is None else text[at]
    return said


def test_a_circle_is_read_some_tokens_at_a_time(kernels):
    one, several = kernels
    lookup = PromptLookup(one, several, room=64)
    lookup.add(CIRCLE * 2)

    said = write(lookup, CIRCLE[0], range(16, 40))

    assert said == [CIRCLE[(slot + 1) % 8] for slot in range(16, 40)]
    assert not one.read
    assert [slot for slot, _ in several.read] == [16, 21, 26, 31, 36]
    assert several.read[0] == (16, [3, 1, 4, 1, 5])


def test_what_was_never_there_is_read_one_by_one(kernels):
    one, several = kernels
    lookup = PromptLookup(one, several, room=64)
    lookup.add(range(20))

    write(lookup, 20, range(20, 30), text=range(21, 31))

    assert one.read == [(slot, [slot]) for slot in range(20, 30)]
    assert not several.read


def test_a_guess_ends_with_the_room(kernels):
    one, several = kernels
    lookup = PromptLookup(one, several, room=19)
    lookup.add(CIRCLE * 2)

    write(lookup, CIRCLE[0], range(16, 19))

    assert several.read == [(16, [3, 1, 4])]


def test_guesses_that_do_not_come_true_become_rare(kernels, monkeypatch):
    monkeypatch.setattr(prompt_lookup, "MATCHED", 1)
    one, several = kernels
    lookup = PromptLookup(one, several, room=10_000)
    lookup.add([0, 5000])

    # 0 is followed by ever other tokens, so what was after it is never there again.
    text = [token for number in range(1, 1001) for token in (0, number)]
    write(lookup, text[0], range(2, 2001), text=text[1:])

    assert len(one.read) + len(several.read) == 1999
    assert 20 < len(several.read) < 50


@pytest.mark.skipif(decoder_kernel.load_library() is None, reason="no C++ compiler for the kernel")
@pytest.mark.parametrize("scheme", ["rope", "learned", "alibi", "relative"])
@pytest.mark.parametrize("heads", [4, 2])
def test_text_that_repeats_itself_is_that_of_generate(scheme, heads, monkeypatch):
    monkeypatch.setattr(prompt_lookup, "MATCHED", 2)
    torch.manual_seed(0)
    config = TinyFormerConfig(
        vocab_size=11,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        initializer_range=0.3,
        position_embedding_type=scheme,
    )
    model = TinyFormerForCausalLM(config).eval()
    reads = []
    compute = decoder_kernel.DecoderKernel.compute

    def watched(kernel, tokens, slot, padding):
        reads.append(len(tokens))
        return compute(kernel, tokens, slot, padding)

    monkeypatch.setattr(decoder_kernel.DecoderKernel, "compute", watched)
    prompt = [1, 2, 3, 4] * 5
    settings = GenerationConfig(max_new_tokens=200, do_sample=False, pad_token_id=0)
    expected = model.generate(torch.tensor([prompt]), generation_config=settings)[0, 20:].tolist()

    [written] = decode(model, [prompt], max_new_tokens=200, choose=build_chooser(0, 0, 1.0))

    assert written == expected
    assert len(reads) < 199 <= sum(reads)


@pytest.mark.skipif(decoder_kernel.load_library() is None, reason="no C++ compiler for the kernel")
def test_logits_of_a_guess_are_those_of_the_forward():
    torch.manual_seed(0)
    config = TinyFormerConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    model = TinyFormerForCausalLM(config).eval()
    ids = torch.randint(0, 61, (1, 3 + decoder_kernel.load_library().decoder_lanes()))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0, 3:]
        decoder = TokenDecoder(model, ids[:, :3], ids.shape[1])
        decoder.read(ids[:, :3], None)
        found = decoder.lookup._several.compute(ids[0, 3:], 3, None)
        with pytest.raises(IndexError, match="cache with room for"):
            decoder.lookup._several.compute(ids[0, 3:], 4, None)

    # Sums of float32 in another order.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max())
