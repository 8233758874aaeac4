"""One commit for each publication on the Hugging Face Hub: whole or not at all.

It stands on top of the commit that was read, so that a repetition changes nothing. Where to, with
which token and through which proxy is `huggingface_hub`'s business (``HF_ENDPOINT``, ``HF_TOKEN``,
...). What is published stands in `dataset`, `metric` and `results`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    Discussion,
    HfApi,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from hard_positives.names import printable, public_url

_ADVICE = {
    400: "Repair what it names; of eval.yaml, choose another --evaluation-framework, or none.",
    401: (
        "Log in with `hf auth login` or set HF_TOKEN, and check the name: without a valid token "
        "the Hub answers so for repositories that are missing or private, too."
    ),
    403: "Use a token that may write there, or offer the change with --create-pr.",
    404: "Check the name; a private repository wants a token that may read it.",
    409: "Someone else is writing there: run the same command again.",
    412: "It has changed since it was read: run the same command again.",
    429: "Too many requests: wait some minutes, then run the same command again.",
}
_UNAVAILABLE = "Wait some minutes, then run the same command again: what has arrived stays."


class HubError(OSError):
    """The Hub refused or could not be reached. The message says what to do."""


@dataclass(frozen=True)
class Publication:
    """What has become of something published.

    Attributes:
        url: The commit, or the pull request.
        changed: Whether anything was sent; False where all of it was there.
        diff: What changes: of results in the text files, as a unified diff; of a model which files.
    """

    url: str
    changed: bool
    diff: str = ""


@dataclass(frozen=True)
class Repository:
    """A repository at the commit on which the next one is to stand."""

    id: str
    type: str
    url: str
    revision: str
    parent: str
    title: str
    create_pr: bool

    def read(self, path: str) -> bytes | None:
        """A file's bytes at that commit; None if there is no such file."""
        try:
            file = HfApi().hf_hub_download(self.id, path, repo_type=self.type, revision=self.parent)
        except RemoteEntryNotFoundError:  # Not its base class, which a dropped line raises, too.
            return None
        return Path(file).read_bytes()

    def hashes(self) -> dict[str, str]:
        """Of every file at that commit the SHA-256 if it is large, else its id in git."""
        tree = HfApi().list_repo_tree(
            self.id, recursive=True, repo_type=self.type, revision=self.parent
        )
        files = [entry for entry in tree if isinstance(entry, RepoFile)]
        return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}

    def commit(
        self, additions: Mapping[str, bytes | Path], mirrored: Sequence[str] = ()
    ) -> Publication:
        """Add files, and delete those that fit a pattern of ``mirrored`` and are not added."""
        api = HfApi()
        place: dict[str, Any] = {"repo_type": self.type, "revision": self.revision}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content) for path, content in additions.items()
        ]
        if mirrored:
            operations += [
                CommitOperationDelete(path, is_folder=False)
                for path in api.list_repo_files(self.id, **place)
                if any(map(PurePosixPath(path).match, mirrored)) and path not in additions
            ]
        info = api.create_commit(
            self.id,
            operations,
            commit_message=self.title,
            parent_commit=self.parent,
            create_pr=self.create_pr,
            **place,
        )
        url = info.pr_url or (info.commit_url if self.revision == "main" else self.url)
        return Publication(public_url(url), info.oid != self.parent)


def open_repository(
    repo_id: str,
    repo_type: str,
    title: str,
    *,
    create_pr: bool,
    private: bool = False,
    make: bool = True,
) -> Repository:
    """Find, or make, what a commit goes to: the main branch or our open pull request."""
    api = HfApi()
    if make and not create_pr:
        api.create_repo(
            repo_id,
            repo_type=repo_type,
            private=private or None,
            exist_ok=True,
            space_sdk="gradio" if repo_type == "space" else None,
        )
    info = api.repo_info(repo_id, repo_type=repo_type)
    if private and not info.private:
        raise ValueError(
            f"Expected {repo_id} to be private, got a public repository. Nothing was sent. Make it "
            "private in its settings, or choose another name."
        )
    folder = {"model": "", "dataset": "datasets/", "space": "spaces/"}[repo_type]
    url, revision, parent = f"{api.endpoint}/{folder}{repo_id}", "main", info.sha
    request = _own_pull_request(repo_id, repo_type, title) if create_pr else None
    if request is not None:
        url, revision, create_pr = request.url, request.git_reference, False
        parent = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
    return Repository(repo_id, repo_type, url, revision, parent, title, create_pr)


def check_own_file(folder: Path, name: str) -> None:
    """Refuse a link, which may lead out of the folder that is to be published."""
    file = folder / name
    if file.resolve() != folder.resolve() / name:
        raise ValueError(
            f"Expected {file} to be a file of its own, got a link to {file.resolve()}. Put the "
            "file there itself."
        )


def _own_pull_request(repo_id: str, repo_type: str, title: str) -> Discussion | None:
    """Find the open one of an earlier run, or every repetition would add another."""
    api = HfApi()
    requests = api.get_repo_discussions(
        repo_id,
        repo_type=repo_type,
        author=api.whoami()["name"],
        discussion_type="pull_request",
        discussion_status="open",
    )
    return next((request for request in requests if request.title == title), None)


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Say what to do when the Hub refuses or cannot be reached."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while not isinstance(cause, (HTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError)):
            if cause is None:
                raise
            cause = cause.__cause__
        raise HubError(
            f"Expected the Hub to take this for {repo_id}, got {_explain(cause)}"
        ) from error


def _explain(cause: BaseException) -> str:
    if isinstance(cause, OfflineModeIsEnabled):
        return "offline mode. Unset HF_HUB_OFFLINE."
    if isinstance(cause, LocalTokenNotFoundError):
        return f"no token to show it. {_ADVICE[401]}"
    if not isinstance(cause, HfHubHTTPError):
        return (
            f"a broken connection ({type(cause).__name__}). Run the same command again: what has "
            "arrived stays and is not sent twice."
        )
    status = cause.response.status_code
    advice = _ADVICE.get(status, _UNAVAILABLE if status >= 500 else "")
    wait = cause.response.headers.get("Retry-After")
    if wait is not None:
        advice = f"The Hub asks to wait for {wait} s. {advice}"
    reason = _without_secrets(cause.server_message or cause.response.reason_phrase)
    return f"{status} ({reason}). {advice}".rstrip()


def _without_secrets(message: str) -> str:
    """What a server said, in case that it repeats what was said to it."""
    message = message.replace(get_token() or "hf_***", "hf_***")
    message = re.sub(r"\bhf_\w+", "hf_***", message)
    return printable(re.sub(r"https?://\S+", lambda address: public_url(address[0]), message))


def as_yaml(value: Any) -> bytes:
    """A value as the text of a YAML file, one line for each text."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10**9).encode()
