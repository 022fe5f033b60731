"""Byte-pair encoding as plainly as it can be said, to check the fast one against.

Reads a tokenizer.json, cuts a text with the pattern in it, and joins the pair whose merge was
learned first until no pair has one. Special tokens play no part.
"""

import json
from itertools import pairwise
from pathlib import Path

import regex


def bytes_to_letters() -> dict[int, str]:
    """GPT-2's table: each byte as one printing letter."""
    printing = [
        byte for byte in range(256) if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
    ]
    table = {byte: chr(byte) for byte in printing}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printing))
    return table


class PlainBytePairEncoding:
    def __init__(self, tokenizer_json: Path) -> None:
        rules = json.loads(tokenizer_json.read_text(encoding="utf-8"))
        cutter = rules["pre_tokenizer"]["pretokenizers"][0]
        self.pattern = regex.compile(cutter["pattern"]["Regex"])
        self.ids = rules["model"]["vocab"]
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(rules["model"]["merges"])}
        self.letters = bytes_to_letters()

    def merge(self, symbols: list[str]) -> list[str]:
        while True:
            pairs = [pair for pair in pairwise(symbols) if pair in self.ranks]
            if not pairs:
                return symbols
            first = min(pairs, key=self.ranks.__getitem__)
            joined: list[str] = []
            while symbols:
                if tuple(symbols[:2]) == first:
                    joined.append("".join(first))
                    symbols = symbols[2:]
                else:
                    joined.append(symbols[0])
                    symbols = symbols[1:]
            symbols = joined

    def encode(self, text: str) -> list[int]:
        ids = []
        for piece in self.pattern.findall(text):
            symbols = [self.letters[byte] for byte in piece.encode("utf-8")]
            ids += [self.ids[symbol] for symbol in self.merge(symbols)]
        return ids
