"""Byte-pair encoding as plainly as it can be said, to check the fast one against.

Learns: joins the pair of neighbours that is most frequent, again and again. Cuts: joins the pair
that was learned first, until no pair has one. Special tokens play no part.
"""

import json
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import regex


def bytes_to_letters() -> dict[int, str]:
    """GPT-2's table: each byte as one printing letter."""
    printing = [byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte != 173]
    table = {byte: chr(byte) for byte in printing}
    for byte in range(256):
        table.setdefault(byte, chr(256 + len(table) - len(printing)))
    return table


LETTERS = bytes_to_letters()


def spell_by_jamo(text: str) -> str:
    return "".join(unicodedata.normalize("NFD", c) if "가" <= c <= "힣" else c for c in text)


def cut(text: str, pattern: str) -> list[tuple[str, ...]]:
    pieces = regex.findall(pattern, text)
    return [tuple(LETTERS[byte] for byte in piece.encode("utf-8")) for piece in pieces]


def join(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    while symbols:
        size = 2 if symbols[:2] == pair else 1
        joined.append("".join(symbols[:size]))
        symbols = symbols[size:]
    return tuple(joined)


def learn(texts: list[str], pattern: str, count: int) -> list[tuple[str, str]]:
    """Learn so many merges, as long as a pair is there twice; of equals, the older symbols'."""
    words = Counter(word for text in texts for word in cut(text, pattern))
    ids = {letter: number for number, letter in enumerate(sorted(LETTERS.values()))}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        ids.setdefault("".join(best), len(ids))
        words = Counter({join(word, best): times for word, times in words.items()})
    return merges


class PlainBytePairEncoding:
    def __init__(self, tokenizer_json: Path) -> None:
        rules = json.loads(tokenizer_json.read_text(encoding="utf-8"))
        self.is_jamo = rules["normalizer"] is not None
        self.pattern = rules["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        self.ids = rules["model"]["vocab"]
        self.merges = [tuple(pair) for pair in rules["model"]["merges"]]
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}

    def encode(self, text: str) -> list[int]:
        ids = []
        for symbols in cut(spell_by_jamo(text) if self.is_jamo else text, self.pattern):
            while pairs := [pair for pair in pairwise(symbols) if pair in self.ranks]:
                symbols = join(symbols, min(pairs, key=self.ranks.__getitem__))
            ids += [self.ids[symbol] for symbol in symbols]
        return ids
