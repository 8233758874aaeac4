"""Publish a tuned model: weights, processor, record and card in one commit."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils.sha import git_hash

from hard_positives.finetuning.checkpoints import digest_of
from hard_positives.finetuning.record import CARD, RECORD, read_record
from hard_positives.hub.cards import (
    FIGURES,
    identity_of,
    merge_results,
    metric_entry,
    result_entry,
)
from hard_positives.hub.repository import (
    Publication,
    Repository,
    check_own_file,
    hub_errors,
    open_repository,
)


def publish_model(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
) -> Publication:
    """Publish what `hard_positives.finetune` wrote as a model repository; it is made if absent.

    What goes up is what the run left, byte for byte: the model, its processor and
    ``finetuning.json``, by whose hashes all of it is checked first. The card goes with it; its
    ``model-index`` gets the figures on held-out rows where these are on the Hub and share nothing
    with the training rows. In a repository that holds this model already, the card keeps what
    others have written since. An interrupted upload resumes: what the Hub has is not sent again.

    Args:
        folder: From ``hard-positives finetune --output``, finished.
        repo_id: ``organization/name``.
        private: Whether a new repository is private. One that is there must be so already.
        create_pr: Offer a pull request to a repository that is there, instead of a commit.
        dry_run: Send nothing, make nothing; tell in ``diff`` which files would go up.

    Returns:
        The commit or pull request; its ``diff`` has a line for each file that is new or changed.

    Raises:
        FileNotFoundError: The folder holds no finished model of `finetune`.
        ValueError: A file is not what the run left; the repository holds other files of these
            names; or a repository that should be private is public.
        HubError: The Hub refused or could not be reached. The repository is unchanged or, where
            only the answer was lost, complete.

    Examples:
        >>> print(publish_model("tuned", "org/clip-tuned", dry_run=True).diff)  # doctest: +SKIP
        new          1,204 bytes  README.md
        new            512 bytes  config.json
    """
    folder = Path(folder)
    record = _finished(folder)
    files = _checked_files(folder, record)
    card = (folder / CARD).read_text(encoding="utf-8")
    with hub_errors(repo_id):
        if dry_run and not HfApi().repo_exists(repo_id):
            new = _additions(card, files, record, repo_id)
            plan = _plan(new, {}, record["files"])
            return Publication(f"{HfApi().endpoint}/{repo_id}", False, plan)
        repository = open_repository(
            repo_id,
            "model",
            f"Publish a model tuned from {record['settings']['model']['id']}",
            create_pr=create_pr and not dry_run,
            private=private,
            make=not dry_run,
        )
        there = repository.hashes()
        changed = _changed({**files, CARD: card.encode()}, there, record["files"])
        if changed <= {CARD}:
            card = (repository.read(CARD) or card.encode()).decode()
        elif not create_pr:
            _check_nothing_is_lost(repository, changed & there.keys())
        additions = _additions(card, files, record, repo_id)
        plan = _plan(additions, there, record["files"])
        if dry_run or not plan:
            return Publication(repository.url, False, plan)
        published = repository.commit(additions)
    return Publication(published.url, published.changed, plan)


def _finished(folder: Path) -> dict[str, Any]:
    problem = None
    if not (folder / RECORD).is_file():
        problem = f"no {RECORD}. Give a folder from hard-positives finetune"
    elif not (folder / CARD).is_file():
        problem = "a run that has not ended. Start it again, and it resumes"
    if problem:
        raise FileNotFoundError(f"Expected {folder} to hold a tuned model, got {problem}.")
    record = read_record(folder)
    if "files" not in record:
        raise ValueError(
            f"Expected {folder / RECORD} to have a hash of each file, got one of an earlier "
            "version. Tune again."
        )
    return record


def _checked_files(folder: Path, record: dict[str, Any]) -> dict[str, Path]:
    """The files that the run left, and no others, after a look at every byte."""
    check_own_file(folder, CARD)
    for name, digest in record["files"].items():
        path = folder / name
        if not path.is_file() or digest_of(path) != digest:
            found = "other bytes" if path.exists() else "no such file"
            raise ValueError(
                f"Expected {path} to be as finetune left it, got {found}: the figures in {RECORD} "
                "are not of this model. Nothing was sent. Tune again, or publish it by other means."
            )
    return {name: folder / name for name in [*record["files"], RECORD]}


def _changed(files: dict[str, Any], there: dict[str, str], digests: dict[str, str]) -> set[str]:
    """The names of files that the repository does not have as they are."""
    return {
        name
        for name, file in files.items()
        if not _is_same(file, there.get(name), digests.get(name))
    }


def _is_same(file: Path | bytes, known: str | None, digest: str | None) -> bool:
    """Whether a file is the one that the Hub knows by this SHA-256 or this id in git.

    Its own SHA-256, where that has been looked at, spares reading weights again.
    """
    if known is None:
        return False
    if len(known) == 64 and isinstance(file, Path):
        return (digest or digest_of(file)) == known
    return git_hash(file if isinstance(file, bytes) else file.read_bytes()) == known


def _check_nothing_is_lost(repository: Repository, lost: set[str]) -> None:
    if lost:
        raise ValueError(
            f"Expected {repository.id} to be new or to hold this model, got another "
            f"{', '.join(sorted(lost))} there. Nothing was sent. Choose another name, or offer the "
            "change as a pull request (--create-pr)."
        )


def _plan(files: dict[str, Any], there: dict[str, str], digests: dict[str, str]) -> str:
    """A line for each file that the repository does not have as it is."""
    lines = []
    for name in sorted(_changed(files, there, digests)):
        file = files[name]
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        lines.append(f"{'changed' if name in there else 'new':8}{size:>16,} bytes  {name}\n")
    return "".join(lines)


def _additions(
    card: str, files: dict[str, Path], record: dict[str, Any], repo_id: str
) -> dict[str, bytes | Path]:
    return {CARD: _with_figures(card, record, repo_id).encode(), **files}


def _with_figures(card: str, record: dict[str, Any], repo_id: str) -> str:
    """The card with the figures on held-out rows, where others can have the same rows."""
    held_out = record["settings"]["held_out"]
    shared = sum(
        split["num_same_picture"] + split["num_same_text"] for split in record["overlap"].values()
    )
    if shared or held_out is None or "/" not in held_out["id"]:
        return card
    entries = [
        result_entry(held_out["id"], None, split, _metrics(record["after"], split))
        for split in held_out["content_sha256"]
    ]
    return merge_results(card, repo_id.split("/")[-1], entries, identity_of)


def _metrics(figures: dict[str, float], split: str) -> list[dict[str, Any]]:
    return [
        metric_entry(figure, figures[f"eval_{split}_{figure}"], "as_published", "as published")
        for figure in FIGURES
        if f"eval_{split}_{figure}" in figures
    ]
