import gzip
import json
import lzma
import math
from pathlib import Path

import pytest
import torch

from hf_tinyformer.errors import DataError
from hf_tinyformer.inference.benchmarks import evaluate_blimp, evaluate_lambada, read_records

SHARED = Path(__file__).parents[3] / "shared" / "data" / "eval_en"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real files lie in ../shared/data/eval_en, which is not here"
)


def log_probability(model, ids, first):
    logits = model.eval()(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logits[i - 1, ids[i]].item() for i in range(first, len(ids)))


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pair(good, bad, uid, term):
    return {"sentence_good": good, "sentence_bad": bad, "UID": uid, "linguistics_term": term}


PAIRS = [
    pair("The cats sleep.", "The cats sleeps.", "plural", "agreement"),
    pair("A cat sleeps.", "A cat sleep.", "plural", "agreement"),
    pair("Who left?", "Left who, then, there?", "question", "islands"),
    pair("She saw herself.", "She saw himself.", "reflexive", "agreement"),
]


def test_blimp_counts_pairs_as_a_slow_pass_does(tiny_llama, byte_tokenizer, tmp_path):
    hits = []
    for record in PAIRS:
        good, bad = (
            log_probability(tiny_llama, byte_tokenizer(record[field])["input_ids"], 1)
            for field in ("sentence_good", "sentence_bad")
        )
        hits.append(good > bad)
    assert 0 < sum(hits) < 4  # or the figures below would not tell right from wrong

    path = write_lines(tmp_path / "blimp.jsonl", PAIRS)
    found = evaluate_blimp(tiny_llama, byte_tokenizer, path)

    assert found.num_pairs == 4
    assert found.accuracy == sum(hits) / 4
    assert found.by_paradigm == {
        "plural": (hits[0] + hits[1]) / 2,
        "question": float(hits[2]),
        "reflexive": float(hits[3]),
    }
    assert found.by_term == {
        "agreement": (hits[0] + hits[1] + hits[3]) / 3,
        "islands": float(hits[2]),
    }


def test_a_tie_is_a_miss(tiny_llama, byte_tokenizer, tmp_path):
    path = write_lines(tmp_path / "blimp.jsonl", [pair("Same.", "Same.", "u", "t")])

    assert evaluate_blimp(tiny_llama, byte_tokenizer, path).accuracy == 0


def test_the_limit_holds_for_each_paradigm(tiny_llama, byte_tokenizer, tmp_path):
    path = write_lines(tmp_path / "blimp.jsonl", PAIRS)

    found = evaluate_blimp(tiny_llama, byte_tokenizer, path, limit=1)

    assert found.num_pairs == 3


def test_blimp_does_not_depend_on_the_batch_size(tiny_llama, byte_tokenizer, tmp_path):
    path = write_lines(tmp_path / "blimp.jsonl", PAIRS)
    steps = []

    found = evaluate_blimp(tiny_llama, byte_tokenizer, path, batch_size=1, on_progress=steps.append)

    assert found == evaluate_blimp(tiny_llama, byte_tokenizer, path, batch_size=64)
    assert sum(steps) == 8


def test_lambada_scores_the_last_word_with_its_space(tiny_llama, byte_tokenizer, tmp_path):
    texts = ["He said no", "One, two, three"]
    sums = []
    for text in texts:
        ids = byte_tokenizer(text)["input_ids"]
        sums.append(log_probability(tiny_llama, ids, len(ids) - len(text.rpartition(" ")[2]) - 1))

    path = write_lines(tmp_path / "lambada.jsonl", [{"text": text} for text in texts])
    found = evaluate_lambada(tiny_llama, byte_tokenizer, path)

    assert found.num_passages == 2
    assert found.perplexity == pytest.approx(math.exp(-sum(sums) / 2), rel=1e-5)


def test_lambada_counts_a_word_that_greedy_decoding_writes(tiny_llama, byte_tokenizer, tmp_path):
    # Zero layers and a head that knows which byte follows which: 'a' is followed by ' b'.
    follows = {"a": " ", " ": "b"}
    ids = {symbol: byte_tokenizer(symbol)["input_ids"][1] for symbol in ("a", " ", "b")}
    with torch.no_grad():
        for layer in tiny_llama.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        tiny_llama.model.embed_tokens.weight.zero_()
        tiny_llama.lm_head.weight.zero_()
        for column, (before, after) in enumerate(follows.items()):
            tiny_llama.model.embed_tokens.weight[ids[before], column] = 1.0
            tiny_llama.lm_head.weight[ids[after], column] = 1.0
    path = write_lines(tmp_path / "lambada.jsonl", [{"text": "aaa b"}, {"text": "aaa c"}])

    assert evaluate_lambada(tiny_llama, byte_tokenizer, path).accuracy == 0.5


def test_of_a_passage_longer_than_the_context_the_end_is_read(tiny_llama, byte_tokenizer, tmp_path):
    text = "y" * 50 + " end"
    expected = log_probability(tiny_llama, byte_tokenizer(text)["input_ids"][-33:], 33 - 4)

    path = write_lines(tmp_path / "lambada.jsonl", [{"text": text}])
    found = evaluate_lambada(tiny_llama, byte_tokenizer, path)

    assert found.perplexity == pytest.approx(math.exp(-expected), rel=1e-5)


@pytest.mark.parametrize("packer", [gzip.open, lzma.open])
def test_packed_files_are_read(tmp_path, packer):
    path = tmp_path / ("lines.jsonl.gz" if packer is gzip.open else "lines.jsonl.xz")
    with packer(path, "wt", encoding="utf-8") as stream:
        stream.write('{"text": "a"}\n\n{"text": "b"}\n')

    assert list(read_records(path, ("text",))) == [
        (f"{path}:1", {"text": "a"}),
        (f"{path}:3", {"text": "b"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a b"}\n{"text": \n', r"lines\.jsonl:2 is not JSON"),
        (b'{"text": "a b"}\n{"text": "\xff"}\n', r"lines\.jsonl:2 is not UTF-8"),
        (b'{"word": "a"}\n', r"lines\.jsonl:1 has no text under the key 'text'"),
        (b'{"text": 3}\n', r"lines\.jsonl:1 has no text under the key 'text'"),
        (b'["text"]\n', r"lines\.jsonl:1 has no text under the key 'text'"),
        (b'{"text": "oneword"}\n', r"lines\.jsonl:1 ends in no word after a space"),
        (b'{"text": "a space "}\n', r"lines\.jsonl:1 ends in no word after a space"),
        (b'{"text": "a ' + b"w" * 40 + b'"}\n', r"lines\.jsonl:1 ends in a word of 41 tokens.*32"),
        (b"", r"lines\.jsonl has 0 lines"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(
    tiny_llama, byte_tokenizer, tmp_path, content, message
):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content)

    with pytest.raises(DataError, match=message):
        evaluate_lambada(tiny_llama, byte_tokenizer, path)


def test_a_file_that_is_not_packed_as_its_name_says_is_named(tmp_path):
    path = tmp_path / "lines.jsonl.xz"
    path.write_bytes(b'{"text": "a"}\n')

    with pytest.raises(DataError, match=r"lines\.jsonl\.xz cannot be read"):
        list(read_records(path, ("text",)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: .*No such file"):
        list(read_records(tmp_path / "none.jsonl", ("text",)))


@needs_shared
def test_the_real_blimp_file_has_a_thousand_pairs_of_each_paradigm(tiny_llama, byte_tokenizer):
    path = SHARED / "blimp.jsonl.xz"

    found = evaluate_blimp(tiny_llama, byte_tokenizer, path, limit=2)

    assert found.num_pairs == 2 * 67
    assert len(found.by_paradigm) == 67
    assert len(found.by_term) == 12 + 1  # the paper's twelve, s-selection apart


@needs_shared
def test_the_real_lambada_file_is_read(tiny_llama, byte_tokenizer):
    path = SHARED / "lambada_test_openai.jsonl.xz"

    found = evaluate_lambada(tiny_llama, byte_tokenizer, path, limit=20)

    assert found.num_passages == 20
    assert found.perplexity > 259  # a random model guesses no better than a byte at a time
