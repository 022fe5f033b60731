import json
import logging
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference.byte_pair_encoding import PlainBytePairEncoding, learn, spell_by_jamo
from transformers import AutoTokenizer

from hf_tinyformer.data.tokenization.tokenizer import (
    check_ids,
    count_hidden_bytes,
    count_ids,
    encode_documents,
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    write_tokenizer_files,
)
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig
from hf_tinyformer.data.tokenization.tokenizer_report import show_tokens
from hf_tinyformer.data.tokenization.tokenizer_training import split_pattern
from hf_tinyformer.errors import ArtifactError, ConfigError, DataError
from hf_tinyformer.model.tokenization_tinyformer import TinyFormerTokenizer, compose_syllables

LOSSLESS = ["bpe", "jamo", "syllable", "bytes"]
SPECIAL = ["<pad>", "<s>", "</s>"]
# Where tokenizers go wrong: marks, joiners, jamo, surrogate neighbours, look-alike spaces.
TRAPS = [
    *("\r\n", "\r", "\n\n\n", "\t", "    ", "\x00", "\x1f", "\x7f", "\x85", "\xa0", "\xad"),
    *("\u200b", "\u200d", "\u2028", "\u3000", "\ufeff", "\ufffd", "\uffff", "\ud7ff", "\ue000"),
    *("e\u0301", "é", "ﬁ", "한글", unicodedata.normalize("NFD", "한글"), "ㄱㅏ", "👩‍👩‍👧", "🇰🇷"),
    *("'s", "'LL", "'ſ", "١٢٣٤", "½", "İ", "ß", "𝔘", "\U0010ffff", "ก็", "नमस्ते"),  # noqa: RUF001
    *(*SPECIAL, "<unk>", "<s", "s>", "Ġ", "Ċ", "ĠĠ", "##", "▁", "<0x41>"),
]


def adversarial_strings(count: int, seed: int) -> Iterator[str]:
    draw = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(0, 12)):
            kind = draw.random()
            if kind < 0.5:
                parts.append(draw.choice(TRAPS))
            elif kind < 0.75:
                parts.append(chr(draw.randrange(32, 127)) * draw.choice([1, 1, 2, 7]))
            else:
                code = draw.randrange(0x110000 - 0x800)
                parts.append(chr(code if code < 0xD800 else code + 0x800))
        yield "".join(parts)


def documents_inside(tokenizer, texts: list[str]) -> list[list[int]]:
    """Encode documents and take the one token off either end."""
    encoded = encode_documents(tokenizer, texts)
    assert all(ids[0] == 1 and ids[-1] == 2 for ids in encoded)
    return [ids[1:-1] for ids in encoded]


def assert_lossless(tokenizer, texts: list[str]) -> None:
    encoded = documents_inside(tokenizer, texts)
    for text, ids in zip(texts, encoded, strict=True):
        assert not {0, 1, 2}.intersection(ids), f"{text!r} became a special token"
    decoded = tokenizer.batch_decode(encoded, skip_special_tokens=False)
    if isinstance(tokenizer, TinyFormerTokenizer):
        # Up to NFC: what was spelled by jamo comes back in syllables, and nothing else changes.
        assert decoded == [compose_syllables(text) for text in texts]
    else:
        assert decoded == texts


@pytest.mark.parametrize("kind", LOSSLESS)
def test_adversarial_strings_come_back_unchanged(every_kind, kind):
    assert_lossless(every_kind[kind], list(adversarial_strings(5_000, seed=2)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_hundred_thousand_adversarial_strings_come_back_unchanged(every_kind, kind):
    assert_lossless(every_kind[kind], list(adversarial_strings(100_000, seed=1)))


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_text_comes_back_up_to_nfc(every_kind, kind, text):
    tokenizer = every_kind[kind]
    decoded = tokenizer.decode(documents_inside(tokenizer, [text])[0])

    assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", text)
    if unicodedata.is_normalized("NFC", text):
        assert decoded == text


@pytest.mark.parametrize(
    "kind", ["bpe", "jamo", *(pytest.param(k, marks=pytest.mark.slow) for k in LOSSLESS[2:])]
)
def test_every_unicode_scalar_value_comes_back(every_kind, kind):
    scalars = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert len(scalars) == 1_112_064
    rows = ["".join(scalars[start : start + 4096]) for start in range(0, len(scalars), 4096)]
    assert_lossless(every_kind[kind], rows)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_every_korean_syllable_comes_back_alone_and_in_company(every_kind, kind, form):
    syllables = [unicodedata.normalize(form, chr(code)) for code in range(0xAC00, 0xD7A4)]
    draw = random.Random(0)
    company = [*syllables[::97], *map(chr, range(0x3131, 0x318F)), *map(chr, range(0x1100, 0x1200))]
    mixed = [
        "".join(draw.choices([*company, " ", "e\u0301", "ㅋㅋ", "a"], k=30)) for _ in range(300)
    ]

    assert_lossless(every_kind[kind], [*syllables, *mixed])


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("unit", ["a", "가", " ", "\n", "<s>", "ab ", "\t\r\n", "9"])
def test_ten_thousand_repeats_come_back(every_kind, unit, kind):
    assert_lossless(every_kind[kind], [unit * 10_000])


@pytest.mark.parametrize("kind", ["bpe", "jamo", "syllable", "word", "bytes", "char"])
def test_random_ids_decode_to_text(every_kind, kind):
    draw = random.Random(0)
    for _ in range(200):
        ids = draw.choices(range(len(every_kind[kind])), k=draw.randint(0, 40))
        assert isinstance(every_kind[kind].decode(ids), str)


def test_special_tokens_have_the_first_ids(bpe, char):
    assert bpe.convert_tokens_to_ids(SPECIAL) == [0, 1, 2]
    assert char.convert_tokens_to_ids([*SPECIAL, "<unk>"]) == [0, 1, 2, 3]
    assert (bpe.pad_token, bpe.bos_token, bpe.eos_token) == tuple(SPECIAL)
    assert bpe.unk_token is None


def test_no_merge_makes_the_name_of_a_special_token():
    # 500 times the letters <s>, </s>, <pad> in a row: the pairs inside them are the most frequent.
    texts = ["<s></s><pad>" * 100, "<s> </s> <pad>\n" * 400]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), texts, sequence_length=8)

    for ids in documents_inside(tokenizer, [*texts, "<s>", "</s>", "<pad>", " <s>\n"]):
        assert not {0, 1, 2}.intersection(ids)


def test_text_with_every_special_token_gives_none_in_char_either(texts):
    tokenizer = train_tokenizer(
        TokenizerConfig(kind="syllable", byte_fallback=False),
        ["<s></s><pad><unk>"],
        sequence_length=8,
    )

    ids = documents_inside(tokenizer, ["<s></s><pad><unk>"])[0]

    assert min(ids) > 3
    assert len(ids) == len("<s></s><pad><unk>")


def test_char_numbers_the_characters_by_code_point_and_does_not_know_others():
    tokenizer = train_tokenizer(
        TokenizerConfig(kind="syllable", byte_fallback=False), ["ba\n", "가b"], sequence_length=8
    )

    # 0-3 are special; then \n, a, b, 가 in the order of their code points.
    assert encode_documents(tokenizer, ["ab\n가?"]) == [[1, 5, 6, 4, 7, 3, 2]]
    assert tokenizer.decode([5, 6, 4, 7]) == "ab\n가"


def test_char_comes_back_unchanged(char, texts):
    assert_lossless(char, [text for text in texts if text])


def test_runs_of_spaces_stay_together_for_code(bpe):
    # Indentation of 8 is one piece of 7 spaces, and one space that begins the next word.
    pieces = [piece for _, piece in show_tokens(bpe, "\n        return")]

    assert pieces[0] == "\n"
    assert pieces[-1] == " return"
    assert "".join(pieces[1:-1]) == " " * 7


def test_digits_are_cut_in_groups_of_at_most_three():
    texts = ["1234567 " * 500]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), texts, sequence_length=8)

    assert [piece for _, piece in show_tokens(tokenizer, "1234567")] == ["123", "456", "7"]


def test_shown_parts_of_a_character_read_as_bytes(bpe):
    assert [piece for _, piece in show_tokens(bpe, "ab\N{OLD PERSIAN SIGN A}")][-4:] == [
        *("\\xf0", "\\x90", "\\x8e", "\\xa0")
    ]


def test_a_prompt_begins_with_bos_and_never_ends_with_eos(bpe):
    ids = bpe("def f")["input_ids"]

    assert ids[0] == bpe.bos_token_id
    assert bpe.eos_token_id not in ids
    assert bpe("")["input_ids"] == [1]


def test_a_prompt_can_name_special_tokens_as_everywhere_in_transformers(bpe):
    assert bpe("<s>", add_special_tokens=False)["input_ids"] == [1]
    letters = bpe("<s>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not {0, 1, 2}.intersection(letters)


def test_encoding_documents_leaves_prompts_as_they_were(bpe):
    before = bpe(["<s>", "two words"], padding=True)["input_ids"]

    documents = encode_documents(bpe, ["<s>", "two words"])

    # transformers sets the switch anew at each call; the tokenizer inside must be left right too.
    assert bpe.backend_tokenizer.encode("<s>", add_special_tokens=False).ids == [1]
    assert bpe(["<s>", "two words"], padding=True)["input_ids"] == before
    assert encode_documents(bpe, ["<s>", "two words"]) == documents


def test_padding_left_over_from_a_call_is_not_put_into_documents(bpe):
    expected = encode_documents(bpe, ["a", "a b c d e f"])

    bpe(["a", "a b c d e f"], padding=True, truncation=True, max_length=3)

    assert encode_documents(bpe, ["a", "a b c d e f"]) == expected


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (False, False)])
def test_documents_and_prompts_are_framed_as_configured_also_after_loading(tmp_path, bos, eos):
    config = TokenizerConfig(
        kind="syllable", byte_fallback=False, add_bos_token=bos, add_eos_token=eos
    )
    save_tokenizer(train_tokenizer(config, ["ab"], sequence_length=8), tmp_path / "t", facts={})

    tokenizer = load_tokenizer(tmp_path / "t")

    assert encode_documents(tokenizer, ["ab"]) == [[1] * bos + [4, 5] + [2] * eos]
    assert tokenizer("ab")["input_ids"] == [1] * bos + [4, 5]


def test_batches_are_padded_on_the_left_with_pad(bpe):
    batch = bpe(["a", "ab ab ab"], padding=True)

    assert batch["input_ids"][0][0] == 0
    assert batch["attention_mask"][0][0] == 0
    assert sorted(batch) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("kind", ["bpe", "jamo", "syllable", "word", "bytes", "char"])
def test_a_saved_tokenizer_loads_through_autotokenizer_with_the_same_ids(
    tmp_path, every_kind, texts, kind
):
    tokenizer = every_kind[kind]
    save_tokenizer(tokenizer, tmp_path / "tokenizer", facts={"from": "texts"})

    for loaded in (
        AutoTokenizer.from_pretrained(tmp_path / "tokenizer"),
        load_tokenizer(tmp_path / "tokenizer"),
    ):
        assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
        assert encode_documents(loaded, texts) == encode_documents(tokenizer, texts)
        assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
        assert loaded.model_max_length == 64
        assert loaded.padding_side == "left"


def test_saving_again_after_loading_changes_nothing_and_tells_nothing(tmp_path, bpe):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_tokenizer_files(bpe, first)

    loaded = AutoTokenizer.from_pretrained(first)
    loaded(["a", "b c d"], padding=True, truncation=True, max_length=2)
    write_tokenizer_files(loaded, second)

    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (second / name).read_text()
        assert text == (first / name).read_text()
        assert str(tmp_path) not in text
    settings = json.loads((second / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "name_or_path"} & set(settings)


def test_training_twice_gives_the_same_tokenizer(texts):
    def train() -> str:
        config = TokenizerConfig(vocab_size=600)
        return train_tokenizer(config, texts, sequence_length=8).backend_tokenizer.to_str()

    assert train() == train()


@pytest.mark.parametrize("kind", ["bpe", "jamo"])
def test_ids_equal_those_of_a_plain_python_encoder(tmp_path, every_kind, texts, kind):
    write_tokenizer_files(every_kind[kind], tmp_path)
    plain = PlainBytePairEncoding(tmp_path / "tokenizer.json")
    sample = [*texts[:60], *adversarial_strings(1_500, seed=3), "a" * 50, " " * 50 + "x"]
    # The two regex engines know different Unicode versions; unassigned letters may differ.
    known = [text for text in sample if all(unicodedata.category(c) != "Cn" for c in text)]
    assert len(known) > 300

    for text, ids in zip(known, documents_inside(every_kind[kind], known), strict=True):
        assert ids == plain.encode(text), repr(text)


@pytest.mark.parametrize("kind", ["bpe", "jamo"])
def test_merges_equal_those_that_plain_python_learns(tmp_path, texts, kind):
    config = TokenizerConfig(kind=kind, vocab_size=450)
    # Runs of one letter: where counting pairs is easiest to get wrong.
    sample = [*texts, *["aaaaaaa aaaa aaa aaaaaaaa 나나나나나 나나나"] * 3]
    tokenizer = train_tokenizer(config, sample, sequence_length=8)
    write_tokenizer_files(tokenizer, tmp_path)

    spelled = [spell_by_jamo(text) for text in sample] if kind == "jamo" else sample
    merges = learn(spelled, split_pattern(config), 450 - 259)

    assert merges == PlainBytePairEncoding(tmp_path / "tokenizer.json").merges
    assert len(merges) == 450 - 259


def test_an_ending_is_cut_where_frequency_says_so_in_the_middle_of_a_syllable():
    # Verbs of all vowels take the ending ㄴ다: it is frequent, and each syllable with it is not.
    stems = [*"가서보주사자타차크뜨쓰나오", "마시", "다니", "보내", "지나", "배우", "기르", "고르"]
    words = [*(stem + ending for stem in stems for ending in ("고", "지", "면")), *stems]
    words += [compose_syllables(stem + "\u11ab다") for stem in stems]
    config = TokenizerConfig(kind="jamo", vocab_size=370)
    tokenizer = train_tokenizer(config, [" ".join(words)] * 4, sequence_length=8)

    pieces = [piece for _, piece in show_tokens(tokenizer, "가고 쉰다")]

    # ㄴ is a final here; it is shown as the letter that stands alone, which every screen has.
    assert pieces[-1] == "ㄴ다"
    assert tokenizer.decode(tokenizer("쉰다")["input_ids"][1:]) == "쉰다"


def test_other_scripts_are_cut_by_jamo_as_by_bpe(texts):
    latin = ["The café's naïve façade, über cool. が ガ नमस्ते " * 30]
    bpe, jamo = (
        train_tokenizer(TokenizerConfig(kind=kind, vocab_size=330), latin, sequence_length=8)
        for kind in ("bpe", "jamo")
    )

    assert encode_documents(bpe, latin) == encode_documents(jamo, latin)


def test_jamo_cuts_text_alike_whether_composed_or_not(every_kind, texts):
    tokenizer = every_kind["jamo"]
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    spelled = [spell_by_jamo(text) for text in composed]

    assert encode_documents(tokenizer, composed) == encode_documents(tokenizer, spelled)
    # Prompts go through the normalizer inside, documents round it.
    prompts = tokenizer(composed, split_special_tokens=True, verbose=False)["input_ids"]
    assert prompts == [ids[:-1] for ids in encode_documents(tokenizer, composed)]


def test_offsets_of_jamo_point_to_the_syllables_of_the_text(every_kind):
    found = every_kind["jamo"]("a간 b", return_offsets_mapping=True)["offset_mapping"]

    assert {tuple(pair) for pair in found} <= {(0, 0), (0, 1), (1, 2), (2, 3), (2, 4), (3, 4)}


def test_syllable_numbers_the_most_frequent_and_spells_the_others_by_bytes():
    config = TokenizerConfig(kind="syllable", vocab_size=3 + 256 + 2)
    tokenizer = train_tokenizer(config, ["나나나는는는b가"], sequence_length=8)

    # 3 special tokens, 256 bytes, then 나 and 는 by code point; a tie between the rest is cut off.
    assert encode_documents(tokenizer, ["는나"]) == [[1, 260, 259, 2]]
    assert [piece for _, piece in show_tokens(tokenizer, "나가")] == [
        "나",
        "\\xea",
        "\\xb0",
        "\\x80",
    ]


def test_word_keeps_the_most_frequent_words_and_gives_text_back_with_its_spaces():
    config = TokenizerConfig(kind="word", vocab_size=4 + 5)
    corpus = ["나는 밥을 먹는다\n나는 밥을 먹는다\n나는 갔다\n"]
    tokenizer = train_tokenizer(config, corpus, sequence_length=8)

    ids = documents_inside(tokenizer, ["나는 밥을\n나는 뷁 먹는다"])[0]

    assert tokenizer.decode(ids) == "나는 밥을\n나는<unk> 먹는다"
    assert (
        tokenizer.decode(documents_inside(tokenizer, corpus)[0][:6])
        == "나는 밥을 먹는다\n나는 밥을"
    )


def test_words_that_spell_special_tokens_are_no_special_tokens_and_take_no_ids():
    config = TokenizerConfig(kind="word", special_tokens=["[SEP]", "an end"])
    corpus = ["<s> a </s>\n<pad>\n<unk>\t[SEP] [SEP]\n[SEP]\nan end\n<s>a"]
    tokenizer = train_tokenizer(config, corpus, sequence_length=8)

    assert tokenizer.convert_tokens_to_ids([*SPECIAL, "<unk>", "[SEP]", "an end"]) == [*range(6)]
    ids = documents_inside(tokenizer, corpus)[0]
    assert min(ids) > 5
    assert tokenizer.decode(ids) == corpus[0]
    # Only where they would be the whole word.
    assert [piece for _, piece in show_tokens(tokenizer, "<s>a\n<s>")] == ["<s>a", "\n", "<", "s>"]


def test_hidden_bytes_are_those_behind_unknown_tokens(every_kind):
    word, char = every_kind["word"], every_kind["char"]

    # " 뷁" is a space and 3 bytes; a character unknown to `char` hides its own bytes only.
    assert count_hidden_bytes(word, [" 나는 뷁", ""]) == [4, 0]
    assert count_hidden_bytes(char, ["a뷁a뷁", "a"]) == [6, 0]
    assert count_hidden_bytes(every_kind["jamo"], ["뷁"]) == [0]


def test_bytes_are_one_token_each_in_their_order(every_kind):
    assert len(every_kind["bytes"]) == 259
    assert encode_documents(every_kind["bytes"], ["A가"]) == [
        [1, 3 + 65, 3 + 0xEA, 3 + 0xB0, 3 + 0x80, 2]
    ]


def test_the_default_pattern_and_that_of_single_digits_are_known_elsewhere():
    # Llama 3's and Qwen 2's, letter for letter: llama.cpp knows them by this text.
    llama = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    assert split_pattern(TokenizerConfig()) == llama
    assert split_pattern(TokenizerConfig(digits=1)) == llama.replace("{1,3}", "")


def test_digits_spaces_and_pattern_are_cut_as_configured():
    def pieces(text: str, **settings) -> list[str]:
        config = TokenizerConfig(vocab_size=300, **settings)
        tokenizer = train_tokenizer(config, ["12345 67  x\n\n " * 500], sequence_length=8)
        return [piece for _, piece in show_tokens(tokenizer, text)]

    assert pieces("1234", digits=1) == ["1", "2", "3", "4"]
    assert pieces("12345") == ["123", "45"]
    assert pieces("12345", pattern="gpt2") == ["12345"]
    assert pieces("12345", pattern=r"\d\d|\D") == ["12", "34", "5"]
    assert pieces("  x\n\n", space_runs=False) == [" ", " x", "\n", "\n"]
    assert pieces("7  x\n\n") == ["7", " ", " x", "\n\n"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"digits": 0}, r"digits is 0, but"),
        ({"pattern": "gpt2", "digits": 1}, r"pattern is gpt2, but tokenizer\.digits"),
        ({"pattern": "x", "space_runs": False}, r"pattern is x, but .*space_runs"),
        ({"special_tokens": [" a"]}, r"special_tokens has ' a'"),
        ({"special_tokens": ["ab", "#"]}, r"special_tokens has '#', but .* at least 2 characters"),
        ({"kind": "word", "digits": 1}, r"digits is 1, but tokenizer\.kind is word"),
        ({"kind": "bytes", "space_runs": False}, r"space_runs is False, but .*kind is bytes"),
        ({"kind": "syllable", "pattern": "gpt2"}, r"pattern is gpt2, but .* bpe and jamo only"),
        ({"byte_fallback": False}, r"byte_fallback is False, but .*kind is bpe.* syllable only"),
        ({"kind": "word", "vocab_size": 4}, r"vocab_size is 4, but word needs 5"),
        ({"chat_template": "chatml", "vocab_size": 260}, r"but bpe needs 261: .* 5 special"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig(**settings)


def test_a_pattern_that_is_no_expression_is_an_error(texts):
    with pytest.raises(ConfigError, match=r"pattern is \(, but it is no regular expression"):
        train_tokenizer(TokenizerConfig(pattern="("), texts, sequence_length=8)


@pytest.mark.parametrize(
    ("settings", "token"),
    [
        ({"vocab_size": 300}, "###"),
        ({"vocab_size": 300}, "Ġab"),  # the letters that stand for " ab"
        ({"kind": "syllable", "vocab_size": 300}, "<0x41>"),
    ],
)
def test_a_special_token_that_is_a_piece_of_text_too_is_refused(settings, token):
    texts = ["### ab\n" * 50]
    train_tokenizer(TokenizerConfig(**settings), texts, sequence_length=8)

    with pytest.raises(ConfigError, match=rf"'{token}' is a special token, but also a piece"):
        train_tokenizer(
            TokenizerConfig(**settings, special_tokens=["[SEP]", token]), texts, sequence_length=8
        )


def test_special_tokens_of_ones_own_follow_the_usual_ones_and_survive_saving(tmp_path, texts):
    config = TokenizerConfig(vocab_size=400, special_tokens=["<|tool|>", "<|끝|>"])
    tokenizer = train_tokenizer(config, texts, sequence_length=8)
    save_tokenizer(tokenizer, tmp_path / "t", facts={})

    loaded = load_tokenizer(tmp_path / "t")

    assert loaded.convert_tokens_to_ids(["<|tool|>", "<|끝|>"]) == [3, 4]
    assert loaded("a<|끝|>")["input_ids"][-1] == 4
    assert loaded.decode([4, 69], skip_special_tokens=True) == loaded.decode([69])
    assert not {3, 4}.intersection(encode_documents(loaded, ["<|tool|><|끝|>"])[0])
    settings = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    assert settings["additional_special_tokens"] == ["<|tool|>", "<|끝|>"]  # version 4 reads it too


def test_ids_above_the_models_rows_are_an_error(bpe):
    rows = count_ids(bpe)
    assert rows == len(bpe)
    check_ids(bpe, rows, "here")
    with pytest.raises(ArtifactError, match=rf"here has .* ids up to {rows - 1}, .* is {rows - 1}"):
        check_ids(bpe, rows - 1, "here")


def test_the_fingerprint_follows_merges_and_frame_but_not_prompts(texts, bpe):
    def of(**settings) -> str:
        config = TokenizerConfig(**{"vocab_size": 512, **settings})
        return tokenizer_fingerprint(train_tokenizer(config, texts, sequence_length=8))

    assert of() == of()
    assert len({of(), of(vocab_size=300), of(add_bos_token=False), of(add_eos_token=False)}) == 4
    before = tokenizer_fingerprint(bpe)
    bpe(["a", "b c"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(bpe) == before


def test_a_vocabulary_the_text_cannot_fill_is_said_and_smaller(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = train_tokenizer(TokenizerConfig(), ["abab"], sequence_length=8)

    # 256 bytes, 3 special tokens, and "ab": the only pair seen twice. "abab" is seen once.
    assert len(tokenizer) == 260
    assert "vocab_size is 4096" in caplog.text
    assert "260 tokens" in caplog.text


@pytest.mark.parametrize("kind", ["bpe", "jamo", "syllable", "word", "bytes"])
def test_training_on_no_text_is_an_error(kind):
    with pytest.raises(DataError, match="has 0 characters"):
        train_tokenizer(TokenizerConfig(kind=kind), ["", ""], sequence_length=8)


def test_an_error_of_the_corpus_passes_through_training():
    def broken() -> Iterator[str]:
        yield "text"
        raise DataError("a.txt:3 is broken.")

    with pytest.raises(DataError, match=r"^a\.txt:3 is broken\.$"):
        train_tokenizer(TokenizerConfig(), broken(), sequence_length=8)


def test_a_lone_surrogate_is_an_error_that_counts_the_texts():
    with pytest.raises(DataError, match=r"training text 1 has the lone surrogate"):
        train_tokenizer(TokenizerConfig(), ["a", "\udfff"], sequence_length=8)


def test_a_vocabulary_too_small_for_the_bytes_is_an_error():
    with pytest.raises(ConfigError, match=r"vocab_size is 258, but .* needs 259"):
        TokenizerConfig(vocab_size=258)


def test_a_damaged_or_missing_tokenizer_folder_is_named(tmp_path, char):
    folder = tmp_path / "tokenizer"
    with pytest.raises(ArtifactError, match=r"tokenizer is not there"):
        load_tokenizer(folder)
    save_tokenizer(char, folder, facts={})
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"a": ', '"A": ', 1))
    with pytest.raises(ArtifactError, match=r"tokenizer\.json does not have the SHA-256"):
        load_tokenizer(folder)


def test_the_folder_says_what_it_was_made_from(tmp_path, char):
    save_tokenizer(char, tmp_path / "t", facts={"corpus": "texts"})

    facts = json.loads(Path(tmp_path, "t", "manifest.json").read_text())["facts"]

    assert facts == {
        "corpus": "texts",
        "vocab_size": len(char),
        "fingerprint": tokenizer_fingerprint(char),
    }
