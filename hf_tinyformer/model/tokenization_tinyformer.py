"""The tokenizer of Korean letters (jamo): decoding writes syllables again.

tokenizer.json takes syllables apart by itself, so every program reads text alike. Putting them
together is this class's only work; without it the decoded text has conjoining jamo, which are
canonically equivalent (The Unicode Standard, section 3.12) and look the same on the screen.

It cannot be a rule in tokenizer.json, where programs that stream expect each decoded text to begin
with the one before: 느 is no beginning of 는.
"""

import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

_KOREAN = re.compile("[\u1100-\u11ff\uac00-\ud7a3]+")


def compose_syllables(text: str) -> str:
    """Write conjoining jamo as the syllables they spell; the rest of the text stays as it is.

    Args:
        text: Any text. Where one text goes on with another, join them first: 느 and U+11AB are 는.
    """
    return _KOREAN.sub(lambda run: unicodedata.normalize("NFC", run[0]), text)


class TinyFormerTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer that decodes jamo to syllables.

    Decoding an encoded text gives it back, every Korean syllable composed: exactly the text if it
    was composed before (NFC), a canonically equivalent one otherwise.
    """

    def _decode(self, *args: Any, **kwargs: Any) -> str:
        # decode, batch_decode, streamers and pipelines all come through here.
        return compose_syllables(super()._decode(*args, **kwargs))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to the text they spell."""
        return compose_syllables(super().convert_tokens_to_string(tokens))

    def _save_pretrained(
        self, save_directory: str | os.PathLike[str], file_names: tuple[str, ...], **kwargs: Any
    ) -> tuple[str, ...]:
        # Called when tokenizer_config.json is written, which comes first, and nothing is uploaded.
        path = Path(file_names[0])
        settings = json.loads(path.read_text(encoding="utf-8"))
        # A name that every program knows, and beside it the way here for those that may run code.
        # A name of our own would make AutoTokenizer ask before it loads.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["auto_map"] = {
            "AutoTokenizer": [None, f"tokenization_tinyformer.{type(self).__name__}"]
        }
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")
        return super()._save_pretrained(save_directory, file_names, **kwargs)
