"""What the Hub accepts in a card's metadata, so that a mistake is found before hours of training.

Licenses: https://huggingface.co/docs/hub/repositories-licenses. Languages: ISO 639 codes of two or
three letters, or one of the words that the Hub adds to them.
"""

import difflib
import re
import unicodedata

from hf_tinyformer.errors import ConfigError

_LICENSE_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1
ncsa unlicense zlib pddl lgpl-lr unknown other
"""
LICENSES = frozenset(_LICENSE_NAMES.split())
"""Identifiers that the Hub knows. `other` needs a LICENSE file beside the card."""

LANGUAGE_WORDS = ("code", "multilingual")


def check_license(license_id: str | None) -> None:
    """Refuse a license that the Hub does not know by this name.

    Raises:
        ConfigError: With the nearest name that it does know.
    """
    if license_id is None or license_id in LICENSES:
        return
    wanted = license_id.lower().replace(" ", "-")
    near = difflib.get_close_matches(wanted, LICENSES, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else "Take other and put a LICENSE file beside it."
    raise ConfigError(
        f"card.license is {license_id!r}, but the Hub has {len(LICENSES)} identifiers and this is "
        f"none of them. {hint}"
    )


def check_languages(languages: list[str]) -> None:
    """Refuse a language that is not a code.

    Raises:
        ConfigError: With the value.
    """
    for language in languages:
        if not re.fullmatch(r"[a-z]{2,3}", language) and language not in LANGUAGE_WORDS:
            raise ConfigError(
                f"card.languages has {language!r}, but a language is an ISO 639 code of 2 or 3 "
                f"small letters, or one of {', '.join(LANGUAGE_WORDS)}. English is en, Korean ko."
            )


def slug(name: str) -> str:
    """Turn words into an identifier of the form that data sets have on the Hub.

    Args:
        name: Any words, such as `Simple English Wikipedia, a sample`.

    Returns:
        Letters, digits, `-`, `_` and `.`; never empty.
    """
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._]+", "-", letters).strip("-.") or "local-text"
