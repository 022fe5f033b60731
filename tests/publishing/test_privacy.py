import pytest

from hf_tinyformer.publishing import privacy
from hf_tinyformer.publishing.privacy import find_private, scrub, user_name

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "a Hugging Face token": "hf" + "_" + "A1b2" * 8,
    "an API key": "sk" + "-" + "proj-" + "a1" * 20,
    "an AWS key": "AKIA" + "ABCDEFGH12345678",
    "a Google key": "AIza" + "a" * 35,
    "a GitHub token": "ghp" + "_" + "x" * 36,
    "a GitLab token": "glpat" + "-" + "y" * 20,
    "a Slack token": "xoxb" + "-" + "1234567890-abc",
    "a JSON web token": "eyJ" + "hbGciOiJIUzI1" + "." + "eyJzdWIiOiIx" + "." + "SflKxwRJSMeKKF2Q",
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a key in an address": "https://me:" + "secret123" + "@example.org",
}
PATHS = ["/home/ana/corpus", "/Users/ana", "/root/corpus", "C:\\Users\\ana", "D:\\\\data"]

HARMLESS = [
    "https://huggingface.co/home/page",
    "see ../home/x and data/Users/x and ~/home",
    "the words sk-learn, hf_tinyformer, AKIA and eyJ alone",
    "a ratio of 3:4, C: and x:\\n, (?i:\\p{L})",
    "/usr/bin/env python, /home, /Users/",
    "https://user@example.org/path and http://host:8080/x@y",
    "def hf_hub_download(): ...",
]


@pytest.mark.parametrize(("what", "secret"), SECRETS.items())
def test_a_secret_is_found_on_its_line_and_never_repeated(what, secret):
    findings = list(find_private(f"first\nsecond {secret} end\n"))

    assert [(finding.line, finding.what) for finding in findings] == [(2, what)]
    assert secret not in repr(findings)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("around", ["{}", '"{}"', "file:{}", "--data={} "])
def test_a_path_into_a_home_folder_is_found(path, around):
    whats = {finding.what for finding in find_private(around.format(path))}

    assert "an absolute path" in whats


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_left_alone(text):
    assert list(find_private(text)) == []


def test_the_own_home_folder_is_found_wherever_it_lies(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/people/ana")

    assert [finding.what for finding in find_private("in /srv/people/ana/corpus")] == [
        "the path of your home folder"
    ]


def test_a_name_is_found_as_a_word_only():
    text = "by anastasia\n"

    assert list(find_private(text, name="ana")) == []
    assert [f.what for f in find_private("by ana.", name="ana")] == ["your user name"]


def test_a_name_within_other_words_is_neither_found_nor_removed(monkeypatch):
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: "max")
    text = "max_steps: 5 # climax of T_max, maximum"

    assert scrub(text) == text
    assert list(find_private(text, name="max")) == []
    assert scrub("by max, max가 씀") == "by [removed], [removed]가 씀"
    assert len(list(find_private("by max, max가 씀", name="max"))) == 2


@pytest.mark.parametrize(
    ("account", "expected"), [("anastasia", "anastasia"), ("root", None), ("Ubuntu", None)]
)
def test_accounts_of_machines_are_no_names(monkeypatch, account, expected):
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: account)

    assert user_name() == expected


def test_an_account_without_a_home_folder_can_write_a_card(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(privacy.Path, "home", fail)

    assert scrub("in /data/mine/x.txt") == "in path/to/x.txt"
    assert [finding.what for finding in find_private("/home/ana")] == ["an absolute path"]


def test_an_account_without_an_entry_has_no_name(monkeypatch):
    def fail():
        raise OSError("no entry")

    monkeypatch.setattr(privacy.getpass, "getuser", fail)

    assert user_name() is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("files: [/data/mine/*.txt]", "files: [path/to/*.txt]"),
        ("'/home/ana/a b.txt'", "'path/to/a b.txt'"),
        ("C:\\Users\\ana\\x.txt", "path/to/x.txt"),
        (
            "relative/path/x.txt ../up/x ./here/x ~/x/y",
            "relative/path/x.txt ../up/x ./here/x ~/x/y",
        ),
        ("https://example.org/a/b/c", "https://example.org/a/b/c"),
        (f"token {SECRETS['a Hugging Face token']}", "token [removed]"),
    ],
)
def test_scrubbing_leaves_what_was_meant_and_takes_the_rest(text, expected):
    assert scrub(text) == expected
    assert list(find_private(scrub(text))) == []
