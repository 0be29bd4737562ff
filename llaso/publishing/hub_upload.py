"""Uploading files to a Hub repository in one commit; existing files are overwritten only on request.

If the connection breaks, the repository is unchanged, and the next attempt does not send uploaded files again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llaso_common.hub_errors import plain_errors

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

WEIGHTS = re.compile(r"[^/]+\.(safetensors|bin|gguf|pt|pth)|[^/]+\.index\.json|adapter_config\.json")
"""Weight files in a model repository's root, any of which `from_pretrained` may load."""


@dataclass(frozen=True)
class Destination:
    """A repository to upload to.

    Args:
        repo_id: "owner/name".
        repo_type: "model" or "space".
        private: make the repository private; one that exists has to be private already.
        revision: a branch, created if it does not exist; main by default.
        token: token with write access; by default that of `hf auth login` or HF_TOKEN.
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
        """Return the repository as keyword arguments of huggingface_hub's functions."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}


@dataclass(frozen=True)
class UploadResult:
    """Result of an upload.

    Attributes:
        url: URL of the repository.
        commit: the commit that holds the files.
        sent: names of the uploaded files.
    """

    url: str
    commit: str
    sent: tuple[str, ...]


def upload(files: Mapping[str, Path | bytes], to: Destination, message: str) -> UploadResult:
    """Upload files to a repository in one commit.

    Args:
        files: contents, or local paths, by name in the repository.
        to: the repository.
        message: commit message.

    Raises:
        ValueError: files of the repository would be overwritten, or it is public although `private` is set.
        PermissionError: the token is unknown or has no write access.
        ConnectionError: the Hub is unreachable, or the connection broke; the same call resumes the upload.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=to.token)
    additions = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in sorted(files.items())
    ]
    with plain_errors(to.repo_id):
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
            return UploadResult(address, head.commit, ())
        committed = api.create_commit(
            **to.where,
            operations=[*sent, *(CommitOperationDelete(name) for name in others)],
            commit_message=message,
            revision=to.revision,
            parent_commit=head.commit,  # refuses to commit if the branch has moved meanwhile
        )
    return UploadResult(address, committed.oid, tuple(one.path_in_repo for one in sent))


@dataclass(frozen=True)
class _BranchHead:
    """The newest commit of a branch, or that of main if the branch does not exist yet."""

    commit: str
    branch: bool


def _head(api: HfApi, to: Destination) -> _BranchHead | None:
    """Return the head of a repository's branch, or None if this token sees no such repository."""
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
        return _BranchHead(str(info.sha), True)
    try:
        return _BranchHead(str(api.repo_info(**to.where, revision=to.revision).sha), True)
    except RevisionNotFoundError:
        return _BranchHead(str(info.sha), False)


def _tree(api: HfApi, to: Destination, head: _BranchHead) -> dict[str, Any]:
    """Return the repository's files by name."""
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(**to.where, revision=head.commit, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _same(addition: CommitOperationAdd, there: Any) -> bool:
    """Return whether the repository has the same file, byte for byte."""
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
