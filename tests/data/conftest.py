import random
import socket

import pytest
from hypothesis import settings

from hf_tinyformer.data.tokenization.tokenizer import train_tokenizer
from hf_tinyformer.data.tokenization.tokenizer_config import TokenizerConfig

# A busy machine must not fail a test, nor chance make it pass on one day only.
settings.register_profile("data", deadline=None, derandomize=True)
settings.load_profile("data")

SOURCE_CODE = [
    "def read_lines(path):\n    with open(path) as stream:\n        return list(stream)\n",
    "class Reader:\r\n\tdef __init__(self):\r\n\t\tself.count = 12345\r\n",
    "안녕하세요. 나는 학교에 갑니다. 나는 밥을 먹는다. 한국어 문장입니다.\n",
    "The King's men don't count 1, 22, 333 or 4444 <s> sheep </s> at <pad> night.\n",
]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch):
    """The data room needs no network: any connection is a failure."""

    def refuse(*_args: object) -> None:
        pytest.fail("the test opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def make_texts(count: int, seed: int) -> list[str]:
    """Sentences of drawn lengths from a few words in two scripts, with indentation."""
    draw = random.Random(seed)
    words = " ".join(SOURCE_CODE).split(" ")
    return [" ".join(draw.choices(words, k=draw.randint(1, 60))) for _ in range(count)]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(200, seed=0)


@pytest.fixture(scope="session")
def bpe(texts):
    config = TokenizerConfig(kind="bpe", vocab_size=512)
    return train_tokenizer(config, SOURCE_CODE * 20 + texts, sequence_length=64)


@pytest.fixture(scope="session")
def char(texts):
    """Characters, and <unk> for those that the texts lack."""
    config = TokenizerConfig(kind="syllable", byte_fallback=False)
    return train_tokenizer(config, texts, sequence_length=64)


@pytest.fixture(scope="session")
def every_kind(bpe, char, texts):
    """Map a name to a tokenizer of its kind."""
    trained = {
        kind: train_tokenizer(
            TokenizerConfig(kind=kind, vocab_size=size),
            SOURCE_CODE * 20 + texts,
            sequence_length=64,
        )
        for kind, size in {"jamo": 512, "syllable": 512, "word": 100, "bytes": 512}.items()
    }
    return {"bpe": bpe, "char": char, **trained}
