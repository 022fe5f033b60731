"""Send a model to the Hub in one commit, and bring one back.

What is sent is decided by an allow-list of file names, and looked through for keys, absolute paths
and the user's name first: a file that should not leave the machine stops the push. The token comes
from `hf auth login` or `HF_TOKEN`, never from an argument, so it stands in no shell history.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_tinyformer.artifacts import MANIFEST_NAME, hash_file, write_folder
from hf_tinyformer.errors import HubError
from hf_tinyformer.publishing.final import check_hashes, check_weights, model_room
from hf_tinyformer.publishing.privacy import find_private, user_name

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

logger = logging.getLogger(__name__)

NAMES_TO_SEND = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.json|tokenizer_config\.json"
    r"|special_tokens_map\.json|chat_template\.jinja|README\.md|LICENSE|loss\.png"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|[a-z_]+\.py"
)
"""All that a push sends, whatever else lies in the folder."""

NAMES_TO_FETCH = re.compile(r"[\w-][\w.-]*\.(safetensors|json|jinja|md|txt|png|py)|LICENSE")
"""All that a pull takes: no folders, and no format that runs code when it is read."""

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
"""Formats whose reading can run code."""

TEXT_BY_PEOPLE = ("README.md", "LICENSE", "chat_template.jinja")
"""Files where the user's name would be no chance. Words of the others were learned or are keys."""

NOT_LOADED = ("README.md", "LICENSE", "loss.png")
"""What a push sends but never deletes: no program loads it, and it may be written on the Hub."""

LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header at most, as the format itself says."""

ADVICE = {
    401: "Log in with `hf auth login`, or set HF_TOKEN to a token that may write.",
    403: "The token you are logged in with may not do this: take one that may write there.",
    404: "Check USER/NAME and the revision; a private model is only seen when logged in.",
    409: "Somebody else changed it meanwhile: run the same command again.",
    412: "Somebody else changed it meanwhile: run the same command again.",
    429: "Too many requests: wait a few minutes and run the same command again.",
}


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__


@contextmanager
def _translate_errors(repo_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    http_error: Any = HfHubHTTPError.__bases__[0]  # httpx or httpx2, by version
    try:
        yield
    except HFValidationError:
        raise HubError(
            f"the model's id is {repo_id!r}, but an id is USER/NAME in letters, digits, '-', '_' "
            "and '.'. Change it."
        ) from None
    except OfflineModeIsEnabled:
        raise HubError(
            f"{repo_id} cannot be reached, because HF_HUB_OFFLINE is set. Unset it."
        ) from None
    except (http_error, OSError, ValueError, RuntimeError) as error:
        if "Invalid metadata in README.md" in str(error):
            reason = "; ".join(line.lstrip("- ") for line in str(error).splitlines()[1:])
            raise HubError(
                f"README.md of {repo_id} begins with metadata that the Hub refuses: {reason}. "
                "Mend it there."
            ) from None
        # Uploads and downloads arrive wrapped; what went wrong is inside.
        cause: BaseException = error
        while not isinstance(cause, http_error) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
            advice = ADVICE.get(status, "Wait a little and run the same command again.")
            raise HubError(f"the Hub answered {status} for {repo_id}. {advice}") from None
        if isinstance(cause, http_error | ConnectionError | TimeoutError):
            raise HubError(
                f"the Hub cannot be reached for {repo_id}: {_first_line(cause)}. "
                "Check the connection and run the same command again."
            ) from None
        raise HubError(f"{repo_id}: {_first_line(cause)}. Check what it names.") from None


def _read_header(path: Path) -> bytes:
    """Read the part of a safetensors file that can hold words; its length comes first."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return stream.read(min(length, LONGEST_HEADER))


def _decode(path: Path, content: bytes) -> str:
    if path.suffix == ".png":
        return content.decode("latin-1")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise HubError(f"{path} is not UTF-8, but text is sent as UTF-8. Mend the file.") from None


def _check_code(path: Path, content: bytes) -> None:
    ours = model_room() / path.name
    if not ours.is_file() or ours.read_bytes() != content:
        raise HubError(
            f"{path} is not the file of that name in the installed hf_tinyformer, but only its "
            "files are sent as code. Write the folder again with this version, or remove the file."
        )


def collect_files(folder: Path, *, namespace: str | None = None) -> dict[str, bytes | Path]:
    """Choose what may be sent from a folder, and look through it.

    Args:
        folder: A folder that `write_final` wrote.
        namespace: The account that the model goes to. Its name is public, so it may stand there.

    Returns:
        From file name to what is sent: text as it was looked through, weights as their path.

    Raises:
        HubError: If the folder is no model, or a file holds something that should not be sent.
        ArtifactError: If the weights are not whole, or not those that the folder was written with.
    """
    files: dict[str, bytes | Path] = {}
    name = user_name()
    for path in sorted(folder.iterdir()):
        if not NAMES_TO_SEND.fullmatch(path.name):
            logger.info("%s stays here: it is not part of a published model", path.name)
            continue
        if path.is_symlink() or not path.is_file():
            raise HubError(f"{path} is not a plain file. Put the file itself there.")
        is_weights = path.suffix == ".safetensors"
        content = _read_header(path) if is_weights else path.read_bytes()
        if path.suffix == ".py":
            _check_code(path, content)
        search_name = path.name in TEXT_BY_PEOPLE and name != namespace
        for finding in find_private(_decode(path, content), name=name if search_name else None):
            raise HubError(
                f"{path}:{finding.line} holds {finding.what}, and nothing was sent. "
                "Remove it there, and where it came from."
            )
        files[path.name] = path if is_weights else content
    weights = [name for name in files if name.endswith(".safetensors")]
    if "config.json" not in files or not weights:
        raise HubError(
            f"{folder} has no config.json or no model.safetensors, so it is no model. "
            "Point to a folder such as runs/demo/final."
        )
    advice = "Nothing was sent; write the folder again."
    check_weights(folder, weights, owner=f"{folder}", advice=advice)
    check_hashes(folder, weights, advice=advice)
    return files


def address_card(card: bytes, repo_id: str) -> bytes:
    """Put a model's id on the Hub into the code of its card, where the folder's path stands.

    Args:
        card: A README.md that `render_card` wrote; another is left as it is.
        repo_id: `USER/NAME`.
    """
    # Only a quoted path of one name: the settings further down have paths of their own.
    return re.sub(rb'"path/to/[\w.-]+"', f'"{repo_id}"'.encode(), card)


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _check_visibility(repo_id: str, wants_private: bool, is_private: bool | None) -> None:
    if wants_private and is_private is False:
        raise HubError(
            f"{repo_id} is there already and public, but this push is private. "
            "Say that it may be public (--public), or take another name."
        )
    if not wants_private and is_private:
        raise HubError(
            f"{repo_id} is there already and private, but this push is public (--public). "
            "Make it public in its settings on the Hub, or push without --public."
        )


def _find_model(api: "HfApi", repo_id: str, revision: str | None) -> "ModelInfo | None":
    """Ask what a push would meet; None if no such model is there."""
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if repo_id.count("/") != 1:  # the Hub knows gpt2 and the like, of another account
        raise HFValidationError
    try:
        return api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        return api.model_info(repo_id)  # a new branch begins with what the main one holds
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:  # not logged in
            raise
        return None


def _list_left_over(info: "ModelInfo | None", files: Container[str]) -> list[str]:
    """Name what an older model left there that would be loaded with the new weights."""
    there = [sibling.rfilename for sibling in (info and info.siblings) or []]
    return [
        name
        for name in there
        if NAMES_TO_SEND.fullmatch(name)
        and name not in NOT_LOADED
        and name not in files
        # Code is loaded only where the configuration names it, and may be somebody's own.
        and not name.endswith(".py")
    ]


def _expected_hash(content: bytes | Path, *, is_lfs: bool) -> str:
    if isinstance(content, Path) and is_lfs:
        return hash_file(content)
    data = content.read_bytes() if isinstance(content, Path) else content
    if is_lfs:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # git's own name of a file


def _verify_sent(api: "HfApi", repo_id: str, oid: str, files: Mapping[str, bytes | Path]) -> None:
    info = api.model_info(repo_id, revision=oid, files_metadata=True)
    there = {
        sibling.rfilename: (sibling.lfs.sha256, True)
        if sibling.lfs is not None
        else (sibling.blob_id, False)
        for sibling in info.siblings or []
    }
    for name, content in files.items():
        found, is_lfs = there.get(name, (None, False))
        if found != _expected_hash(content, is_lfs=is_lfs):
            raise HubError(
                f"{name} on the Hub is not the file that was sent to {repo_id}. "
                "Run the same command again."
            )


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Upload model",
    confirm: Callable[[list[tuple[str, int]]], bool] | None = None,
    endpoint: str | None = None,
) -> str | None:
    """Send a model to the Hub: all of it in one commit, or nothing.

    The same commit deletes what an older model left there: weights of another number of shards, a
    chat template. Sending the same folder again changes nothing there.

    Args:
        folder: A folder that `write_final` wrote.
        repo_id: `USER/NAME`. Made if it is not there.
        private: Whether only its owners see it. A model that is there must be so already.
        revision: Branch, made if it is not there. Unset: the main one.
        message: Of the commit.
        confirm: Shown each file's name and size in bytes, and for each that is deleted a line that
            says so; nothing is sent unless it says yes.
        endpoint: Address of the Hub. Unset: `HF_ENDPOINT`, or huggingface.co.

    Returns:
        The address of the model, or None if `confirm` said no.

    Raises:
        HubError: If a file should not be sent, or the Hub refuses or cannot be reached.
        ArtifactError: If the weights are not whole, or not those that the folder was written with.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = collect_files(folder, namespace=repo_id.partition("/")[0])
    if isinstance(card := files.get("README.md"), bytes):
        files["README.md"] = address_card(card, repo_id)
    for finding in find_private(message, name=user_name()):
        raise HubError(f"the commit's message holds {finding.what}. Change it.")
    api = HfApi(endpoint=endpoint)
    with _translate_errors(repo_id):
        info = _find_model(api, repo_id, revision)
    if info is not None:
        _check_visibility(repo_id, private, info.private)
    left_over = _list_left_over(info, files)
    shown = [(name, _size(content)) for name, content in files.items()]
    shown += [(f"deleted on the Hub: {name}", 0) for name in left_over]
    if confirm and not confirm(shown):
        return None
    with _translate_errors(repo_id):
        if info is None:
            api.create_repo(repo_id, private=private)
            info = api.model_info(repo_id)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            operations=[
                *(CommitOperationAdd(name, content) for name, content in files.items()),
                *(CommitOperationDelete(name) for name in left_over),
            ],
            commit_message=message,
            revision=revision,
            # Refused if somebody else committed in between, rather than mixed with theirs.
            parent_commit=info.sha,
        )
        _verify_sent(api, repo_id, commit.oid, files)
    url = f"{api.endpoint}/{repo_id}"
    return url if revision is None else f"{url}/tree/{revision}"


def _choose_files(repo_id: str, names: list[str]) -> list[str]:
    chosen = [name for name in names if NAMES_TO_FETCH.fullmatch(name) and name != MANIFEST_NAME]
    if not any(name.endswith(".safetensors") for name in chosen):
        pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
        reason = f"only {pickles[0]}, which can run code when it is read" if pickles else "none"
        raise HubError(
            f"{repo_id} should hold weights as .safetensors, but has {reason}. "
            "Ask its author for safetensors, or take another model."
        )
    return chosen


def pull_folder(
    repo_id: str, folder: Path, *, revision: str | None = None, endpoint: str | None = None
) -> None:
    """Bring a model from the Hub into a folder, whole or not at all.

    Weights come as safetensors only. Code comes along and is not run.

    Args:
        repo_id: `USER/NAME`.
        folder: Where it will stand. Must not be there yet.
        revision: Branch, tag or commit. Unset: the main branch.
        endpoint: Address of the Hub. Unset: `HF_ENDPOINT`, or huggingface.co.

    Raises:
        HubError: If the folder is there, the model has no safe weights, or the Hub refuses or
            cannot be reached.
        ArtifactError: If the weights are not whole.
    """
    from huggingface_hub import HfApi

    if folder.exists():
        raise HubError(f"{folder} is there already. Take another folder, or remove this one.")
    api = HfApi(endpoint=endpoint)
    with _translate_errors(repo_id):
        info = api.model_info(repo_id, revision=revision)
    names = _choose_files(repo_id, [sibling.rfilename for sibling in info.siblings or []])
    facts = {"repo_id": repo_id, "commit": info.sha}
    with write_folder(folder, kind="final", facts=facts) as staging:
        with _translate_errors(repo_id):
            for name in names:
                # By commit, so that all files are of the same one.
                api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=staging)
        # Notes of huggingface_hub on what it downloaded.
        shutil.rmtree(staging / ".cache", ignore_errors=True)
        check_weights(
            staging,
            [name for name in names if name.endswith(".safetensors")],
            owner=repo_id,
            advice="Nothing was kept; take another model.",
        )
