"""Judgments -> the human accuracies of the rows that were judged, and which rows are accepted."""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from hard_positive_metric import compute_metrics
from hard_positives.review.judgments import FALSE, TRUE, Judged, read_judgments
from hard_positives.review.rows import Row, rows_of

REFUSALS = ("caption not true", "hard positive not true", "hard negative not false")


def human_figures(rows: Iterable[Row], judged: Judged) -> dict[str, dict[str, Any]]:
    """Compute original and augmented accuracy and brittleness of the people who judged rows.

    Each person counts as a model would, on the rows that they judged whole:

    * original: the caption is judged true and every hard negative false;
    * augmented: every hard positive is judged true as well;
    * brittleness: some of the true captions are judged true, others not, and a hard negative false.

    "Cannot tell" is never right. `as_logits` turns judgments into scores for which the metric's
    own definitions say this, so that one formula serves models and people.

    Args:
        rows: Of a dataset; those that nobody judged whole are passed over.
        judged: From `read_judgments`.

    Returns:
        Split -> `original_accuracy`, `augmented_accuracy`, `brittleness` and `drop`, each with
        `_ci_low` and `_ci_high`: the mean over categories, from
        `hard_positive_metric.compute_metrics`, clustered as for models. And `num_examples`: a row
        counts once for each person. Splits without judgments are left out.
    """
    examples: dict[str, list[tuple[Row, list[float]]]] = defaultdict(list)
    for row in rows:
        for said in judged.get(row.key, {}).values():
            if is_whole(row, said):
                examples[row.split].append((row, as_logits(row, said)))
    figures = {}
    for split, of_split in examples.items():
        of_rows, logits = zip(*of_split, strict=True)
        found = compute_metrics(
            list(logits),
            [list(map(int, row.labels)) for row in of_rows],
            groups=[row.category for row in of_rows],
            clusters=[row.cluster for row in of_rows],
        )
        # Without ties, of which `as_logits` makes none.
        macro = {name: value for name, value in found["macro"].items() if "tie" not in name}
        figures[split] = {**macro, "num_examples": found["num_examples"]}
    return figures


def humans_on(scores: pa.Table, dataset: Any) -> dict[str, dict[str, Any]]:
    """Compute the figures of the people who judged what was scored; see `human_figures`.

    Judgments are known by picture and captions: those of rows that have changed do not count.

    Args:
        scores: As in `hard_positives.EvaluationResult`.
        dataset: Its folder. Empty where it is none, or nobody has judged there.
    """
    if not isinstance(dataset, (str, os.PathLike)):
        return {}
    try:
        judged = read_judgments(dataset)
    except ValueError as error:  # a model's figures stand without
        warnings.warn(f"The table lacks humans: {error}", stacklevel=2)
        return {}
    return human_figures(rows_of(scores), judged) if judged else {}


def as_logits(row: Row, said: Mapping[str, str]) -> list[float]:
    """Turn one person's judgments of a row into scores.

    A true caption scores 1 if judged true, else -1. A hard negative scores 0 if judged false, so
    that it is below the first and above the second, else 2, above all.

    Examples:
        >>> row = Row("test", "object", "1", "ab12", ("cat", "kitty", "dog"), (True, True, False))
        >>> as_logits(row, {"cat": "true", "kitty": "cannot tell", "dog": "false"})
        [1.0, -1.0, 0.0]
    """
    right = zip(row.labels, _are_right(row, said), strict=True)
    scores = {(True, True): 1.0, (True, False): -1.0, (False, True): 0.0, (False, False): 2.0}
    return [scores[pair] for pair in right]


def is_whole(row: Row, said: Mapping[str, str]) -> bool:
    """Whether one person has judged all captions of a row."""
    return all(caption in said for caption in row.asked)


def refusal(row: Row, judged: Judged) -> str | None:
    """Say why a row is not accepted: one of `REFUSALS`; empty where it is, None where not judged.

    A row is accepted if of those who judged it whole, more than half judged the caption true, and
    so for each hard positive, and more than half judged each hard negative false.

    Examples:
        >>> row = Row("test", "object", "1", "ab12", ("cat", "kitty", "dog"), (True, True, False))
        >>> right = {"cat": "true", "kitty": "true", "dog": "false"}
        >>> refusal(row, {row.key: {"ann": right}})
        ''
        >>> refusal(row, {row.key: {"ann": right, "ben": {**right, "kitty": "cannot tell"}}})
        'hard positive not true'
    """
    whole = [said for said in judged.get(row.key, {}).values() if is_whole(row, said)]
    if not whole:
        return None
    original = row.labels.index(True)
    votes = zip(*(_are_right(row, said) for said in whole), strict=True)
    for place, right in enumerate(votes):
        if 2 * sum(right) <= len(whole):
            return REFUSALS[0 if place == original else 1 if row.labels[place] else 2]
    return ""


def _are_right(row: Row, said: Mapping[str, str]) -> list[bool]:
    """Of each caption, whether a person says what the dataset says."""
    said = {**said, row.given: TRUE}
    return [
        said[caption] == (TRUE if label else FALSE)
        for caption, label in zip(row.captions, row.labels, strict=True)
    ]
