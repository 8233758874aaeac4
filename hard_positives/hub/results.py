"""Publish a saved result on its model's page: files of figures, and the card's ``model-index``.

Nothing here scores a model.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hard_positive_metric import FIGURES as METRICS
from hard_positives.hub.cards import (
    FIGURES,
    HUB,
    identity_of,
    merge_results,
    metric_entry,
    result_entry,
    task_of,
)
from hard_positives.hub.repository import Publication, as_yaml, hub_errors, open_repository
from hard_positives.names import EMBEDDED_DATASET, EMBEDDED_MODEL, public_url
from hard_positives.results.result import EvaluationResult, facts_of

# What results.json must say before its numbers go onto a model's page.
_SIGNED = (
    ("model", "id"),
    ("model", "revision"),
    ("model", "weights_sha256"),
    ("processor", "sha256"),
    ("dtype",),
    ("dataset", "id"),
    ("dataset", "revision"),
    ("dataset", "content_sha256"),
    ("versions", "hard-positives"),
)


def publish_results(
    folder: str | Path, repo_id: str, *, create_pr: bool = True, dry_run: bool = False
) -> Publication:
    """Publish a saved result on its model's page, as a pull request unless told otherwise.

    Each split gives three figures, in the paper's mean over categories: as published each in a file
    of its own in ``.eval_results/``, and all of them, with those of the clean rows, in the card's
    ``model-index``. The rest of the card keeps its bytes. Figures of the same dataset and split are
    replaced, and an open pull request of the same user is updated.

    The figures are computed from the rows, not read. What the signature says of the rows is
    computed again, too. What it says of model, processor and versions cannot be: who edits that, or
    the logits, and renews the hashes of the files, is not noticed.

    Args:
        folder: From ``hard-positives evaluate --output`` or ``EvaluationResult.save``.
        repo_id: The model that was evaluated.
        create_pr: Offer a pull request instead of committing to the main branch.
        dry_run: Send nothing; tell in ``diff`` what would change on the main branch.

    Returns:
        The commit or pull request, and the difference.

    Raises:
        FileNotFoundError: The folder holds no complete result.
        ValueError: A file was edited; the signature is incomplete, or of the built-in model or
            data, of another model or of other rows; or the card cannot be edited.
        HubError: The Hub refused or could not be reached. The repository is unchanged or, where
            only the answer was lost, complete.

    Examples:
        >>> publish_results("results/clip", "org/clip", dry_run=True).diff  # doctest: +SKIP
    """
    result = EvaluationResult.load(folder)
    _check_signature(result.signature, repo_id)
    _check_rows(result)
    with hub_errors(repo_id):
        title = f"Add results on {result.signature['dataset']['id']}"
        repository = open_repository(
            repo_id, "model", title, create_pr=create_pr and not dry_run, make=False
        )
        card = repository.read("README.md")
        new = {"README.md": _model_card(card, result), **_eval_results(result)}
        old = {"README.md": card, **{path: repository.read(path) for path in [*new][1:]}}
        diff = "".join(_difference(path, old[path], new[path]) for path in new)
        if dry_run or old == new:
            return Publication(public_url(repository.url), False, diff)
        published = repository.commit(new)
    return Publication(published.url, published.changed, diff)


def _check_signature(signature: dict[str, Any], repo_id: str) -> None:
    advice = f"Run hard-positives evaluate {repo_id} --dataset <organization/name> --output DIR."
    named = {part: signature.get(part, {}).get("id") for part in ("model", "dataset")}
    for part, built_in in {"model": EMBEDDED_MODEL, "dataset": EMBEDDED_DATASET}.items():
        if named[part] == built_in:
            raise ValueError(
                f"Expected results of a model on the benchmark, got the built-in {part} "
                f"{built_in}, which only shows how things work. {advice}"
            )
    missing = [".".join(keys) for keys in _SIGNED if not _look_up(signature, keys)]
    if missing:
        raise ValueError(
            f"Expected the signature in results.json to be complete, got no {', '.join(missing)}. "
            "What comes from folders cannot be checked by others: publish model and data first. "
            f"{advice}"
        )
    if named["model"] != repo_id:
        raise ValueError(
            f"Expected results of {repo_id}, got results of {named['model']}. Publish them there. "
            f"For results of this model: {advice}"
        )


def _check_rows(result: EvaluationResult) -> None:
    """Refuse a signature that says of the rows what they are not."""
    facts = facts_of(result.scores)
    of_dataset = facts.pop("dataset").items()
    expected: dict[tuple[str, ...], Any] = {("dataset", key): value for key, value in of_dataset}
    expected |= {(key,): value for key, value in facts.items()}
    wrong = [
        ".".join(keys) for keys in expected if _look_up(result.signature, keys) != expected[keys]
    ]
    if wrong:
        raise ValueError(
            "Expected the signature in results.json to fit the rows in scores.parquet, got another "
            f"{', '.join(wrong)}. One of the files was edited: evaluate again."
        )


def _look_up(values: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _eval_results(result: EvaluationResult) -> dict[str, bytes]:
    """A file for each figure of each split: the Hub takes one value a task."""
    dataset = result.signature["dataset"]
    files = {}
    for split, metrics in result.metrics["as_published"].items():
        for figure in filter(metrics["macro"].__contains__, FIGURES):
            task = task_of(split, figure)
            entry = EvalResultEntry(
                dataset_id=dataset["id"],
                task_id=task,
                value=_rounded(metrics["macro"][figure]),
                dataset_revision=dataset["revision"],
                source_url=f"{HUB}/datasets/{dataset['id']}",
                source_name="hard-positives",
                notes=_notes(result, split, figure),
            )
            path = f".eval_results/{dataset['id'].replace('/', '--')}--{task}.yaml"
            files[path] = as_yaml(eval_result_entries_to_yaml([entry]))
    return files


def _notes(result: EvaluationResult, split: str, figure: str) -> str:
    metrics, signature = result.metrics["as_published"][split], result.signature
    groups = list(metrics["groups"])
    mean = f"mean over {' and '.join(groups)}, " if len(groups) > 1 else ""
    macro, clean = metrics["macro"], result.metrics["clean"].get(split)
    low, high = (macro[f"{figure}_ci_{end}"] for end in ("low", "high"))
    interval = "too few images for an interval"
    if low is not None:
        interval = f"95 % interval {_rounded(low)} to {_rounded(high)}"
    without = f", {_rounded(clean['macro'][figure])} on rows without flaws" if clean else ""
    direction = f"{METRICS[figure].better} is better"
    return (
        f"{direction}; {mean}{metrics['num_examples']} rows, {interval}{without}; a tie is wrong; "
        f"{signature['dtype']}; model revision {signature['model']['revision']}; "
        f"hard-positives {signature['versions']['hard-positives']}"
    )


def _model_card(card: bytes | None, result: EvaluationResult) -> bytes:
    dataset = result.signature["dataset"]
    results = [
        result_entry(dataset["id"], dataset["revision"], split, list(_card_metrics(result, split)))
        for split in result.metrics["as_published"]
    ]
    name = result.signature["model"]["id"].split("/")[-1]
    return merge_results((card or b"").decode(), name, results, identity_of).encode()


def _card_metrics(result: EvaluationResult, split: str) -> Iterator[dict[str, Any]]:
    for view, title in {"as_published": "as published", "clean": "rows without flaws"}.items():
        metrics = result.metrics[view].get(split)
        if metrics is None:
            continue
        for figure in filter(metrics["macro"].__contains__, FIGURES):
            yield metric_entry(figure, metrics["macro"][figure], view, title)


def _rounded(fraction: float) -> float:
    return round(fraction, 4)


def _difference(path: str, old: bytes | None, new: bytes) -> str:
    before, after = ((text or b"").decode().splitlines(True) for text in (old, new))
    source = f"a/{path}" if old is not None else "/dev/null"
    return "".join(difflib.unified_diff(before, after, source, f"b/{path}"))
