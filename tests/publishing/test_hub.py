import json
import os
import pickle
import shutil
import subprocess
import sys
import threading

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from hf_tinyformer.artifacts import read_manifest
from hf_tinyformer.errors import ArtifactError, HubError
from hf_tinyformer.publishing import hub, privacy
from hf_tinyformer.publishing.hub import collect_files, pull_folder, push_folder

from .card_specification import validate_card
from .hub_server import TOKEN, HubServer, Repo

LOAD_FROM_HUB = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ids = torch.arange(30)[None]
revision = sys.argv[2]
remote = AutoModelForCausalLM.from_pretrained("me/tiny", trust_remote_code=True, revision=revision)
assert not any(name.partition(".")[0] == "hf_tinyformer" for name in sys.modules)
import hf_tinyformer
plain = AutoModelForCausalLM.from_pretrained("me/tiny", trust_remote_code=False)
assert type(plain) is hf_tinyformer.TinyFormerForCausalLM and type(remote) is not type(plain)
try:
    AutoModelForCausalLM.from_pretrained("me/tiny", token=False, cache_dir=sys.argv[1] + ".cache")
except OSError as error:
    assert "not a valid model identifier" in str(error), error
else:
    raise AssertionError("a private model was loaded without a token")
tokenizer = AutoTokenizer.from_pretrained("me/tiny", trust_remote_code=False)
assert tokenizer.decode(tokenizer("def read")["input_ids"][1:]) == "def read"
with torch.inference_mode():
    assert torch.equal(remote(ids).logits, plain(ids).logits)
save_file({name: value.clone() for name, value in plain.state_dict().items()}, sys.argv[1])
"""


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The local Hub speaks LFS; a real one is spoken to by whatever protocol it offers.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Retries wait for seconds, which nobody has to see happen.
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(final_dir, tmp_path):
    return shutil.copytree(final_dir, tmp_path / "final")


def names(folder):
    return {path.name for path in folder.iterdir()} - {"manifest.json"}


def shard(folder, model):
    (folder / "model.safetensors").unlink()
    (folder / "manifest.json").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def push(server, folder, repo_id="me/tiny", **settings):
    return push_folder(folder, repo_id, endpoint=server.endpoint, **settings)


def sent_names(server, repo_id="me/tiny", branch="main"):
    return set(server.files(repo_id, branch)) - {".gitattributes"}


def test_a_push_is_one_private_commit_of_the_listed_files(server, folder):
    (folder / "optimizer.bin").write_bytes(b"state")
    (folder / "notes.txt").write_text("mine")
    shown = []

    def confirm(files):
        shown.extend(files)
        return True

    url = push(server, folder, message="First", confirm=confirm)

    assert url == f"{server.endpoint}/me/tiny"
    repo = server.repos["me/tiny"]
    assert repo.private
    assert repo.messages == ["initial commit", "First"]
    expected = {path.name for path in folder.iterdir()}
    expected -= {"optimizer.bin", "notes.txt", "manifest.json"}
    assert sent_names(server) == expected == {name for name, _ in shown}
    assert dict(shown)["config.json"] == (folder / "config.json").stat().st_size
    for name in expected - {"README.md"}:
        assert server.files("me/tiny")[name] == (folder / name).read_bytes()


def test_the_card_s_code_names_the_model_by_its_id(server, folder):
    card = (folder / "README.md").read_bytes()

    push(server, folder)

    sent = server.files("me/tiny")["README.md"]
    assert sent == card.replace(b'"path/to/tiny"', b'"me/tiny"') != card
    assert sent.count(b'"me/tiny"') == 2


def test_nothing_is_sent_before_it_is_confirmed(server, folder):
    assert push(server, folder, confirm=lambda files: False) is None

    assert [request.method for request in server.requests] == ["GET"]
    assert server.repos == {}


def test_nothing_that_is_sent_tells_of_this_machine(server, folder, monkeypatch):
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: "anastasia")

    push(server, folder)

    assert len(server.requests) > 5
    for request in server.requests:
        headers = {k: v for k, v in request.headers.items() if k.lower() != "authorization"}
        for text in (request.path, json.dumps(headers), request.body.decode("latin-1")):
            assert TOKEN not in text
            assert "anastasia" not in text
            assert str(folder) not in text
            assert str(folder.home()) + "/" not in text
            assert list(privacy.find_private(text)) == []


def test_pushing_again_changes_nothing(server, folder):
    push(server, folder)
    before = dict(server.repos["me/tiny"].branches)

    push(server, folder)

    assert server.repos["me/tiny"].branches == before


def test_a_branch_is_made_and_the_main_one_left_alone(server, folder):
    url = push(server, folder, revision="v2")

    assert url == f"{server.endpoint}/me/tiny/tree/v2"
    assert sent_names(server) == set()
    assert "model.safetensors" in sent_names(server, branch="v2")


def test_a_failure_at_any_request_leaves_the_old_model_or_the_new_one(server, folder):
    push(server, folder)
    old = dict(server.files("me/tiny"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "manifest.json").unlink()
    card = old["README.md"] + b"changed\n"
    (folder / "README.md").write_bytes(card)
    messages = []
    new = {**old, "README.md": card}
    new["model.safetensors"] = (folder / "model.safetensors").read_bytes()

    server.lfs.clear()
    failures = 0
    while failures < 50:
        server.requests.clear()
        server.fail_from = failures + 1
        try:
            push(server, folder)
        except HubError as error:
            messages.append(str(error))
        else:
            break
        assert server.files("me/tiny") in (old, new)
        failures += 1
    assert set(messages) == {messages[0]}
    assert "the Hub answered 500 for me/tiny" in messages[0]
    assert failures >= 7  # info, check, upload and commit, and the look afterwards
    assert server.files("me/tiny") == new
    server.fail_from = None
    push(server, folder)
    assert server.files("me/tiny") == new


def test_a_connection_cut_at_any_request_is_mended_by_the_same_command(server, folder):
    complaints = set()
    is_complete, cuts = False, 0
    while not is_complete and cuts < 50:
        server.repos.clear()
        server.lfs.clear()
        cuts += 1
        server.num_connections, server.cut_from = 0, cuts
        try:
            push(server, folder)
        except HubError as error:
            complaints.add(str(error).partition(":")[0])
            assert "me/tiny" not in server.repos or sent_names(server) in (set(), names(folder))
        else:
            is_complete = True
        server.cut_from = None
        sent_before = set(server.lfs)
        server.requests.clear()

        push(server, folder)

        assert sent_names(server) == names(folder)
        assert len(server.repos["me/tiny"].messages) == 2
        # What had arrived whole is not sent a second time.
        uploads = [r.path.removeprefix("/lfs/") for r in server.requests if "/lfs/" in r.path]
        assert sent_before.isdisjoint(uploads)
    assert cuts >= 8
    assert complaints == {"the Hub cannot be reached for me/tiny"}


def test_a_lost_answer_is_mended_by_the_same_command(server, folder):
    server.lose_answer_to = "/commit/main"
    with pytest.raises(HubError, match="the Hub cannot be reached for me/tiny"):
        push(server, folder)
    server.lose_answer_to = None
    assert server.repos["me/tiny"].messages == ["initial commit", "Upload model"]

    push(server, folder)

    assert server.repos["me/tiny"].messages == ["initial commit", "Upload model"]


def test_a_commit_of_somebody_else_in_between_stops_the_push(server, folder):
    def interfere():
        server.repos["me/tiny"].commit("main", {"theirs": b""}, "theirs")

    server.before_commit = interfere

    with pytest.raises(HubError, match=r"answered 412.*Somebody else changed it"):
        push(server, folder)

    assert server.files("me/tiny") == {"theirs": b""}


def test_a_file_that_arrived_damaged_is_noticed(server, folder, monkeypatch):
    monkeypatch.setattr(hub, "_expected_hash", lambda content, is_lfs: "0")

    with pytest.raises(HubError, match="on the Hub is not the file that was sent"):
        push(server, folder)


def test_a_private_push_to_a_public_model_is_refused(server, folder):
    push(server, folder, private=False)
    assert not server.repos["me/tiny"].private

    with pytest.raises(HubError, match="me/tiny is there already and public"):
        push(server, folder)


def test_a_public_push_to_a_private_model_is_refused_before_anybody_is_asked(server, folder):
    push(server, folder)
    before = dict(server.repos["me/tiny"].branches)

    with pytest.raises(HubError, match=r"me/tiny is there already and private.*or push without"):
        push(server, folder, private=False, confirm=lambda files: pytest.fail("asked"))

    assert server.repos["me/tiny"].private
    assert server.repos["me/tiny"].branches == before


def test_what_an_older_model_left_is_shown_and_deleted_in_the_same_commit(server, folder):
    push(server, folder)
    left = {
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        *("model.safetensors.index.json", "chat_template.jinja", "special_tokens_map.json"),
    }
    own = {"LICENSE": b"mine", "handler.py": b"mine", "notes.md": b"mine", "sub/config.json": b"{}"}
    repo = server.repos["me/tiny"]
    whole = server.files("me/tiny")
    repo.commit("main", {**whole, **dict.fromkeys(left, b"old"), **own}, "theirs")
    shown = []

    push(server, folder, confirm=lambda files: shown.extend(files) or True)

    assert server.files("me/tiny") == {**whole, **own}
    assert len(repo.messages) == 4
    deleted = {name for name, _ in shown if "deleted" in name}
    assert deleted == {f"deleted on the Hub: {name}" for name in left}


def test_whole_weights_give_way_to_shards(server, folder, model):
    push(server, folder)
    shard(folder, model)

    push(server, folder)

    assert sent_names(server) == names(folder)
    assert "model.safetensors" not in names(folder)


def test_a_new_branch_is_without_what_the_main_one_left(server, folder):
    push(server, folder)
    repo = server.repos["me/tiny"]
    main = {**server.files("me/tiny"), "chat_template.jinja": b"old"}
    repo.commit("main", main, "theirs")

    push(server, folder, revision="v2")

    assert "chat_template.jinja" not in sent_names(server, branch="v2")
    assert server.files("me/tiny") == main


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "Log in"),
        (403, "may not do this"),
        (404, "Check USER/NAME"),
        (429, "wait"),
        (503, "Wait a little"),
    ],
)
def test_a_refusal_is_one_line_with_advice(server, folder, status, advice):
    server.fail_from, server.fail_status = 1, status

    with pytest.raises(HubError, match=f"answered {status} for me/tiny.*{advice}") as caught:
        push(server, folder)

    assert "\n" not in str(caught.value)


def test_without_a_token_the_advice_is_to_log_in(server, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))

    with pytest.raises(HubError, match=r"answered 401.*hf auth login"):
        push(server, folder)


def test_a_private_model_is_not_there_for_those_without_the_token(
    server, folder, tmp_path, monkeypatch
):
    push(server, folder)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))

    for token, status in (("", 401), ("hf" + "_" + "SomebodyElse" + "0" * 10, 401)):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError, match=rf"answered {status} for me/tiny\. Log in with"):
            pull_folder("me/tiny", tmp_path / "pulled", endpoint=server.endpoint)
    assert not (tmp_path / "pulled").exists()


def test_a_public_model_is_there_for_everybody(server, folder, tmp_path, monkeypatch):
    push(server, folder, private=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
    monkeypatch.setenv("HF_TOKEN", "")

    pull_folder("me/tiny", tmp_path / "pulled", endpoint=server.endpoint)

    assert (tmp_path / "pulled" / "model.safetensors").is_file()


def test_a_branch_and_a_commit_are_pulled_by_name(server, folder, tmp_path):
    push(server, folder)
    first = server.repos["me/tiny"].branches["main"]
    (folder / "generation_config.json").write_text("{}\n")
    push(server, folder, revision="v2")

    for revision, is_new in ((first, False), ("v2", True), (None, False)):
        out = tmp_path / str(revision)
        pull_folder("me/tiny", out, revision=revision, endpoint=server.endpoint)
        assert ((out / "generation_config.json").read_text() == "{}\n") == is_new


def test_a_revision_that_is_not_there_is_one_line(server, folder, tmp_path):
    push(server, folder)

    with pytest.raises(HubError, match=r"answered 404 for me/tiny\. Check USER/NAME and the rev"):
        pull_folder("me/tiny", tmp_path / "x", revision="v9", endpoint=server.endpoint)


@pytest.mark.skipif(
    huggingface_hub.__version__.startswith("1."),
    reason="huggingface_hub 1 asks huggingface.co, whatever the endpoint",
)
def test_the_hub_s_validator_accepts_the_card(server, folder, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    card = huggingface_hub.ModelCard.load(folder / "README.md")

    card.validate()

    assert validate_card(str(card)).warnings == []


def test_a_card_that_the_hub_refuses_stops_the_push(server, folder):
    path = folder / "README.md"
    path.write_text(path.read_text().replace("license: apache-2.0", "license: Apache 2.0"))

    with pytest.raises(
        HubError, match=r'README\.md of me/tiny .* refuses: "license" must be one of'
    ):
        push(server, folder)

    assert sent_names(server) == set()


def test_a_hub_that_is_not_there_is_one_line(server, folder):
    with pytest.raises(HubError, match="cannot be reached for me/tiny") as caught:
        push_folder(folder, "me/tiny", endpoint="http://127.0.0.1:9")

    assert "\n" not in str(caught.value)


def test_offline_mode_is_named(server, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push(server, folder)


@pytest.mark.parametrize("name", ["a b/c", "me/../x", "me/a/b", "tiny"])
def test_an_id_of_another_form_is_refused(server, folder, name):
    with pytest.raises(HubError, match=r"an id is USER/NAME|answered 4"):
        push(server, folder, name)
    assert server.repos == {}


@pytest.mark.parametrize(
    ("name", "line", "what"),
    [
        ("README.md", "trained by hf" + "_" + "a1B2" * 8, "a Hugging Face token"),
        ("README.md", "from /home/ana/corpus", "an absolute path"),
        ("README.md", "by anastasia", "your user name"),
        ("generation_config.json", '"C:\\\\Users\\\\x"', "an absolute path"),
        ("tokenizer.json", "/Users/ana/x", "an absolute path"),
        ("loss.png", "/home/ana/plot", "an absolute path"),
    ],
)
def test_a_file_that_tells_too_much_stops_the_push(server, folder, monkeypatch, name, line, what):
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: "anastasia")
    path = folder / name
    before = path.read_bytes()
    path.write_bytes(before + b"\n" + line.encode() + b"\n")
    number = before.count(b"\n") + 2

    with pytest.raises(HubError, match=rf"{name}:{number} holds {what}, and nothing was sent"):
        push(server, folder)

    assert server.requests == []


def test_words_in_the_header_of_the_weights_are_looked_through(server, folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", metadata={"from": "/home/ana/x"})

    with pytest.raises(HubError, match=r"model\.safetensors:1 holds an absolute path"):
        push(server, folder)


def test_the_account_s_own_name_may_stand_in_the_card(folder, monkeypatch):
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: "anastasia")
    with (folder / "README.md").open("a") as stream:
        stream.write("anastasia/tiny\n")

    assert "README.md" in collect_files(folder, namespace="anastasia")


@pytest.mark.parametrize("name", ["weight", "size", "max"])
def test_a_name_that_is_a_word_of_the_settings_stops_nothing(folder, monkeypatch, name):
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: name)
    settings = json.dumps({"size": 1, "max": 2, "max_position_embeddings": 3})
    (folder / "generation_config.json").write_text(settings)

    assert "config.json" in collect_files(folder)


def test_a_message_that_tells_too_much_stops_the_push(server, folder):
    with pytest.raises(HubError, match="message holds an absolute path"):
        push(server, folder, message="from /home/ana/x")
    assert server.requests == []


def test_code_that_is_not_ours_is_not_sent(folder):
    with (folder / "block.py").open("a") as stream:
        stream.write("import os\n")

    with pytest.raises(HubError, match=r"block\.py is not the file of that name"):
        collect_files(folder)


def test_a_link_is_not_followed(folder, tmp_path):
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(HubError, match=r"README\.md is not a plain file"):
        collect_files(folder)


def test_a_folder_that_is_no_model_is_not_sent(tmp_path):
    with pytest.raises(HubError, match=r"has no config\.json or no model\.safetensors"):
        collect_files(tmp_path)


def test_weights_that_were_cut_are_not_sent(server, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "manifest.json").unlink()

    with pytest.raises(
        ArtifactError, match=r"a model\.safetensors that is no whole.*was sent; wri"
    ):
        push(server, folder)

    assert server.requests == []


def test_shards_without_one_of_them_are_not_sent(folder, model):
    shard(folder, model)
    assert len(collect_files(folder)) == len(names(folder))
    [first, *_] = sorted(folder.glob("model-00001-*"))
    first.unlink()

    with pytest.raises(ArtifactError, match=rf"index\.json that names '{first.name}', but no such"):
        collect_files(folder)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"{", b"\xff", b'{"weight_map": {"a": []}}'])
def test_an_index_that_is_none_is_not_sent(folder, content):
    (folder / "model.safetensors.index.json").write_bytes(content)

    with pytest.raises(
        (ArtifactError, HubError), match=r"index\.json (that names no files|is not UTF-8)"
    ):
        collect_files(folder)


def test_weights_that_the_manifest_does_not_vouch_for_are_not_sent(folder):
    (folder / "README.md").write_text("# Mine\n")
    collect_files(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(
        ArtifactError, match=r"model\.safetensors does not have the SHA-256 that man"
    ):
        collect_files(folder)
    (folder / "manifest.json").unlink()
    assert "model.safetensors" in collect_files(folder)


def test_what_was_pushed_is_pulled_byte_for_byte(server, folder, tmp_path):
    push(server, folder)

    pull_folder("me/tiny", tmp_path / "pulled", endpoint=server.endpoint)

    facts = read_manifest(tmp_path / "pulled", kind="final", check_hashes=True)
    assert facts == {"repo_id": "me/tiny", "commit": server.repos["me/tiny"].branches["main"]}
    names = {path.name for path in (tmp_path / "pulled").iterdir()}
    assert names == sent_names(server) | {"manifest.json"}
    for name in sent_names(server) - {"README.md"}:
        assert (tmp_path / "pulled" / name).read_bytes() == (folder / name).read_bytes()


def test_a_pull_that_fails_leaves_nothing(server, folder, tmp_path):
    push(server, folder)
    server.requests.clear()
    server.fail_from = 6

    with pytest.raises(HubError, match=r"the Hub answered 500 for me/tiny"):
        pull_folder("me/tiny", tmp_path / "new" / "pulled", endpoint=server.endpoint)

    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_is_there_is_not_pulled_into(server, tmp_path):
    with pytest.raises(HubError, match="is there already"):
        pull_folder("me/tiny", tmp_path, endpoint=server.endpoint)


def test_a_model_of_pickles_is_refused(server, tmp_path):
    server.repos["me/old"] = Repo(private=False)
    pickled = pickle.dumps({"weight": 1})
    server.repos["me/old"].commit("main", {"pytorch_model.bin": pickled, "config.json": b"{}"}, "")

    with pytest.raises(HubError, match=r"only pytorch_model\.bin, which can run code"):
        pull_folder("me/old", tmp_path / "old", endpoint=server.endpoint)
    assert not (tmp_path / "old").exists()


def test_a_pickle_under_a_safe_name_is_refused(server, tmp_path):
    server.repos["me/sly"] = Repo(private=False)
    sly = {"model.safetensors": pickle.dumps({"weight": 1}), "config.json": b"{}"}
    server.repos["me/sly"].commit("main", sly, "")

    with pytest.raises(ArtifactError, match=r"model\.safetensors that is no whole safetensors"):
        pull_folder("me/sly", tmp_path / "sly", endpoint=server.endpoint)
    assert not (tmp_path / "sly").exists()


def test_files_beside_the_model_are_not_pulled(server, folder, tmp_path):
    push(server, folder)
    repo = server.repos["me/tiny"]
    extra = {"sub/x.json": b"{}", "training_args.bin": b"x", "run.sh": b"x", "manifest.json": b"{}"}
    repo.commit("main", {**server.files("me/tiny"), **extra}, "more")

    pull_folder("me/tiny", tmp_path / "pulled", endpoint=server.endpoint)

    names = {path.name for path in (tmp_path / "pulled").rglob("*")}
    assert names.isdisjoint({"sub", "x.json", "training_args.bin", "run.sh", ".cache"})


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        (b'{"weight_map": {"a": "../../etc/passwd"}}', "names '../../etc/passwd'"),
        (b"\xff", "names no files of weights"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(server, folder, tmp_path, index, complaint):
    push(server, folder)
    repo = server.repos["me/tiny"]
    repo.commit("main", {**server.files("me/tiny"), "model.safetensors.index.json": index}, "x")

    with pytest.raises(ArtifactError, match=complaint):
        pull_folder("me/tiny", tmp_path / "pulled", endpoint=server.endpoint)
    assert not (tmp_path / "pulled").exists()


def test_a_model_that_is_not_there_is_one_line(server, tmp_path):
    with pytest.raises(HubError, match=r"answered 404 for me/none\. Check USER/NAME"):
        pull_folder("me/none", tmp_path / "none", endpoint=server.endpoint)


@pytest.mark.slow
def test_a_program_loads_what_was_pushed_by_its_id(server, folder, model, tmp_path):
    push(server, folder)
    commit = server.repos["me/tiny"].branches["main"]
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }

    done = subprocess.run(
        [sys.executable, "-c", LOAD_FROM_HUB, str(tmp_path / "out.safetensors"), commit],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )

    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out.safetensors")
    state = model.state_dict()
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
