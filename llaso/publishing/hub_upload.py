"""Files to a Hub repository in one commit, under a rule: what is there is never overwritten unasked.

A connection that breaks leaves the repository as it was, and what had arrived is not sent again by the next attempt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

WEIGHTS = re.compile(r"[^/]+\.(safetensors|bin|gguf|pt|pth)|[^/]+\.index\.json|adapter_config\.json")
"""Files at a model repository's root that decide what `from_pretrained` loads."""


@dataclass(frozen=True)
class Destination:
    """Where files go.

    Args:
        repo_id: "owner/name".
        repo_type: "model" or "space".
        private: make the repository private; one that exists has to be private already.
        revision: a branch, made where it does not exist; main by default.
        token: of an account that may write; the one that `hf auth login` or HF_TOKEN left by default.
        replace: overwrite files that differ and delete other weights; both stay in the repository's history.
    """

    repo_id: str
    repo_type: str = "model"
    private: bool = False
    revision: str | None = None
    token: str | None = None
    replace: bool = False

    @property
    def where(self) -> dict[str, Any]:
        """The repository, as huggingface_hub's functions take it."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}


@dataclass(frozen=True)
class Uploaded:
    """What came of it.

    Attributes:
        url: the repository's address.
        commit: the commit that holds the files.
        sent: names of the files that were not there before.
    """

    url: str
    commit: str
    sent: tuple[str, ...]


def upload(files: Mapping[str, Path | bytes], to: Destination, message: str) -> Uploaded:
    """Put files into a repository in one commit.

    Args:
        files: contents, or paths of them, by name in the repository.
        to: the repository.
        message: of the commit.

    Raises:
        ValueError: files of the repository would be lost, or it is public though `private` was asked for.
        PermissionError: the token is not known or may not write there.
        ConnectionError: the Hub cannot be reached, or the connection broke; the same call goes on from there.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=to.token)
    additions = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in sorted(files.items())
    ]
    with plain_errors(to):
        head = _head(api, to)
        there = _tree(api, to, head) if head else {}
        sent = [one for one in additions if not _same(one, there.get(one.path_in_repo))]
        differing = [one.path_in_repo for one in sent if one.path_in_repo in there]
        others = [name for name in there if name not in files and to.repo_type == "model" and WEIGHTS.fullmatch(name)]
        if (differing or others) and not to.replace:
            raise ValueError(_would_lose(to, differing, others))
        if head is None:
            sdk = "static" if to.repo_type == "space" else None
            api.create_repo(**to.where, private=to.private or None, exist_ok=True, space_sdk=sdk)
        if to.revision and not (head and head.branch):
            api.create_branch(**to.where, branch=to.revision, exist_ok=True)
        head = head or _head(api, to)
        if head is None:
            raise PermissionError(f"{to.repo_id}: it exists, but not for this token to see")
        address = f"{api.endpoint}/{'spaces/' if to.repo_type == 'space' else ''}{to.repo_id}"
        if not sent and not others:
            return Uploaded(address, head.commit, ())
        committed = api.create_commit(
            **to.where,
            operations=[*sent, *(CommitOperationDelete(name) for name in others)],
            commit_message=message,
            revision=to.revision,
            parent_commit=head.commit,  # nobody else may have written since we looked
        )
    return Uploaded(address, committed.oid, tuple(one.path_in_repo for one in sent))


@dataclass(frozen=True)
class _Head:
    """The newest commit of a branch; of main, where the branch does not exist yet."""

    commit: str
    branch: bool


def _head(api: HfApi, to: Destination) -> _Head | None:
    """Where a repository stands; None where there is none that this token sees."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.repo_info(**to.where)
    except RepositoryNotFoundError:
        return None
    if to.private and not info.private:
        raise ValueError(
            f"{to.repo_id} is public: make it private in its settings, choose another name, or leave --private out"
        )
    if to.revision is None:
        return _Head(str(info.sha), True)
    try:
        return _Head(str(api.repo_info(**to.where, revision=to.revision).sha), True)
    except RevisionNotFoundError:
        return _Head(str(info.sha), False)


def _tree(api: HfApi, to: Destination, head: _Head) -> dict[str, Any]:
    """Files by name, as the Hub describes them."""
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(**to.where, revision=head.commit, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _same(addition: CommitOperationAdd, there: Any) -> bool:
    """Whether a file is there already, byte for byte."""
    from huggingface_hub.utils.sha import git_hash

    if there is None:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == addition.upload_info.sha256.hex()
    if there.size != addition.upload_info.size:
        return False
    with addition.as_file() as file:
        return there.blob_id == git_hash(file.read())


def _would_lose(to: Destination, differing: Sequence[str], others: Sequence[str]) -> str:
    place = f"{to.repo_id}, branch {to.revision or 'main'}"
    said = []
    if differing:
        said.append(f"would overwrite {_listed(differing)}")
    if others:
        said.append(f"would leave other weights beside this model's: {_listed(others)}")
    return (
        f"{place}: nothing was sent, for it {' and '.join(said)}. Choose another name or a branch of its own "
        "(--revision NAME), or replace them with --replace; they stay in the history"
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@contextmanager
def plain_errors(to: Destination) -> Iterator[None]:
    """Say what went wrong on the Hub in one line with a remedy.

    Raises:
        PermissionError, ConnectionError, ValueError: in place of what the client raises.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except (HTTPError, RuntimeError, OfflineModeIsEnabled) as error:  # HTTPError: of the Hub or of the connection
        # An upload that fails in one of several threads comes as a RuntimeError around the reason.
        reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(reason, OfflineModeIsEnabled):
            raise ConnectionError(f"{to.repo_id}: the Hub is switched off here; unset HF_HUB_OFFLINE") from error
        if isinstance(reason, HfHubHTTPError):
            raise _refusal(to, reason) from error
        if isinstance(reason, (HTTPError, OSError)):
            raise ConnectionError(
                f"{to.repo_id}: the connection to the Hub broke ({type(reason).__name__}: {reason}). What has arrived "
                "is kept there: run the same command again"
            ) from error
        raise


def _refusal(to: Destination, error: Any) -> Exception:
    """What the Hub's answer means for whoever publishes."""
    status, said = error.response.status_code, error.server_message or str(error).strip().splitlines()[0]
    if status == 401:
        return PermissionError(
            f"{to.repo_id}: the Hub does not accept this token, or there is none ({said}). Log in with "
            "`hf auth login`, or set HF_TOKEN to a token that may write"
        )
    if status == 403:
        return PermissionError(f"{to.repo_id}: this token may not write there ({said})")
    if status == 412:
        return ValueError(f"{to.repo_id}: somebody wrote to it meanwhile; look at it, then run the same command again")
    if status == 404:
        return ValueError(f"{to.repo_id}: not there, or not for this token to see ({said})")
    if status == 429 or status >= 500:
        return ConnectionError(f"{to.repo_id}: the Hub answered {status} ({said}); run the same command again later")
    return ValueError(f"{to.repo_id}: the Hub answered {status} ({said})")
