"""Find and remove what must not leave this machine: keys, tokens, the user's name and folders."""

import getpass
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a key in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]+:[^\s/@'\"]{3,}@",
}
"""What each kind of secret looks like. Shapes that ordinary text does not have by chance."""

HOME_PATH = r"(?<![\w.~])/(?:home|Users)/[\w.-]+|(?<![\w.~])/root/[\w.-]+|\b[A-Z]:\\{1,2}[A-Za-z]"
"""A path that begins at a drive or in somebody's home folder, whoever's it is."""

NAMES_OF_NOBODY = {
    *("root", "user", "users", "admin", "administrator", "ubuntu", "debian", "runner", "docker"),
    *("jovyan", "vscode", "codespace", "nobody", "test", "build", "node", "home", "default", "me"),
    *("data", "model", "train", "python", "work", "dev", "local", "guest", "colab", "ec2-user"),
}
"""Accounts of machines and containers, which tell nothing and occur in any text."""


@dataclass(frozen=True)
class Finding:
    """A place in a text that should not be sent."""

    line: int
    """Counted from 1."""

    what: str
    """Which kind of thing stands there. Never the thing itself."""


def user_name() -> str | None:
    """Return the name of the current account, or None if it has none or one that tells nothing."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # an account without an entry, as in some containers
        return None
    return None if name.lower() in NAMES_OF_NOBODY or len(name) < 3 else name


def _own_patterns() -> dict[str, str]:
    patterns = {"an absolute path": HOME_PATH}
    try:
        home = str(Path.home())
    except RuntimeError:  # an account without an entry, where HOME is not set
        return patterns
    if home not in ("/", ""):
        patterns["the path of your home folder"] = re.escape(home) + r"(?=[/\\]|\b)"
    return patterns


def _name_pattern(name: str) -> str:
    # Not within a key: the account max is no reason to object to max_steps.
    return rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])"


def find_private(text: str, *, name: str | None = None) -> Iterator[Finding]:
    """Look through a text for secrets and for traces of its author's machine.

    Args:
        text: The content of a file.
        name: A name that must not stand there as a word of its own.

    Yields:
        Each finding, by line.
    """
    patterns = {**SECRETS, **_own_patterns()}
    if name is not None:
        patterns["your user name"] = _name_pattern(name)
    for what, pattern in patterns.items():
        for match in re.finditer(pattern, text):
            yield Finding(text.count("\n", 0, match.start()) + 1, what)


def scrub(text: str) -> str:
    """Take secrets and absolute paths out of a text that is about to be published.

    Of a path that is absolute the last part stays, since it says what was meant:
    `/data/mine/books/*.txt` becomes `path/to/*.txt`. Whatever else `find_private` would object to
    becomes `[removed]`.

    Args:
        text: Any text: settings, names of files, a sample.
    """
    for pattern in SECRETS.values():
        text = re.sub(pattern, "[removed]", text)
    # Not after a letter, a dot, a colon or a slash: those are relative paths and addresses.
    text = re.sub(r"(?<![\w.:/~*-])(?:[A-Z]:\\|/)(?:[^\s'\",\]\\/]+[\\/]+)+", "path/to/", text)
    name = user_name()
    for pattern in [*_own_patterns().values(), *([_name_pattern(name)] if name else [])]:
        text = re.sub(pattern, "[removed]", text)
    return text
