"""A benchmark's figures as its own authors count them, from the same logits as ours.

Authors differ in what counts: which direction, over rows or over categories, which categories are
left out, who wins a tie. A benchmark's file says it (`suite.benchmarks.AuthorsFigure`), the
signature keeps it, and here it is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hard_positive_metric import Estimate, row_outcomes, set_outcomes, share_of_rows
from hard_positives.suite.benchmarks import AuthorsFigure


@dataclass(frozen=True)
class AuthorsValue:
    """One figure of one model.

    Attributes:
        figure: What was counted.
        count: How many rows or sets.
        categories: Of how many categories it is the mean; None where it is the share of all.
        estimate: The share, with its interval.
    """

    figure: AuthorsFigure
    count: int
    categories: int | None
    estimate: Estimate

    @property
    def rule(self) -> str:
        """How it was counted, in a few words."""
        figure = self.figure
        unit = "sets" if figure.figure == "set_accuracy" else "rows"
        mean = f"mean of {self.categories} categories" if self.categories else f"all {unit}"
        ties = "first of equals wins" if figure.ties == "first" else ""
        return ", ".join(filter(None, [mean, (figure.direction or "").replace("_", " "), ties]))

    @property
    def ends(self) -> dict[str, float | None]:
        """The interval, by the names that figures have."""
        return {"value_ci_low": self.estimate.ci_low, "value_ci_high": self.estimate.ci_high}

    def as_record(self) -> dict[str, Any]:
        """What results.json says of it; fractions."""
        return {
            "title": self.figure.title,
            "value": self.estimate.value,
            "ci_low": self.estimate.ci_low,
            "ci_high": self.estimate.ci_high,
            "count": self.count,
            "rule": self.rule,
        }


def authors_values(scores: pa.Table, figures: Sequence[AuthorsFigure]) -> list[AuthorsValue]:
    """Count what a benchmark's authors count; figures without a row that counts are left out."""
    found = (_value(scores, figure) for figure in figures)
    return [value for value in found if value is not None]


def _value(scores: pa.Table, figure: AuthorsFigure) -> AuthorsValue | None:
    kept = _counting(scores, figure)
    if not kept.any():
        return None
    chosen = scores.filter(pa.array(kept))
    rows, values = _right(chosen, figure)
    clusters = np.array(chosen["cluster"].to_pylist())[rows]
    groups = _categories(chosen)[rows] if figure.mean == "macro" else None
    number = None if groups is None else len(np.unique(groups))
    estimate = share_of_rows(values, groups=groups, clusters=clusters)
    return AuthorsValue(figure, len(values), number, estimate)


def _counting(scores: pa.Table, figure: AuthorsFigure) -> np.ndarray:
    """(N,) bool: which comparisons count."""
    kept = np.ones(len(scores), bool)
    for column, wanted in {"direction": figure.direction, "split": figure.splits}.items():
        if wanted:
            kept &= np.isin(scores[column].to_pylist(), wanted)
    kept &= ~np.isin(scores["category"].to_pylist(), figure.without)
    _, of_row, sizes = np.unique(_categories(scores), return_inverse=True, return_counts=True)
    return kept & (sizes[of_row] >= figure.fewest_rows)


def _categories(scores: pa.Table) -> np.ndarray:
    """(N,) categories, those of two splits apart."""
    splits, categories = scores["split"].to_pylist(), scores["category"].to_pylist()
    return np.array([f"{split}/{name}" for split, name in zip(splits, categories, strict=True)])


def _right(scores: pa.Table, figure: AuthorsFigure) -> tuple[np.ndarray, np.ndarray]:
    """Which rows or sets are right: places of rows that stand for them, and (n,) bool."""
    logits, labels = (scores[name].combine_chunks() for name in ("logits", "labels"))
    every = np.arange(len(scores))
    if figure.ties == "first":
        return every, _first_of_best(logits, labels)
    if figure.figure == "first_pair":
        logits, labels = _first_pair(logits, labels)
    else:
        labels = labels.cast(pa.list_(pa.int8()))
    outcomes = row_outcomes(logits, labels)
    if figure.figure == "set_accuracy":
        sets = set_outcomes(outcomes, scores["set"].to_pylist())
        return sets.first_row, sets.correct
    is_augmented = figure.figure == "augmented_accuracy"
    return every, outcomes.augmented_correct if is_augmented else outcomes.original_correct


def _first_pair(logits: pa.ListArray, labels: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) logits of each row's first true and first false candidate, and their labels."""
    begins = logits.offsets.to_numpy()[:-1] - logits.offsets[0].as_py()
    values, true = (lists.flatten().to_numpy(zero_copy_only=False) for lists in (logits, labels))
    places = (np.flatnonzero(true), np.flatnonzero(~true))
    first = [values[of_kind[np.searchsorted(of_kind, begins)]] for of_kind in places]
    return np.stack(first, axis=1), np.tile([1, 0], (len(begins), 1))


def _first_of_best(logits: pa.ListArray, labels: pa.ListArray) -> np.ndarray:
    """(N,) bool: whether argmax of each row, the first of the highest, is true."""
    begins = logits.offsets.to_numpy()[:-1] - logits.offsets[0].as_py()
    values = logits.flatten().to_numpy(zero_copy_only=False)
    lengths = np.diff(logits.offsets.to_numpy())
    best = np.flatnonzero(values == np.repeat(np.maximum.reduceat(values, begins), lengths))
    return labels.flatten().to_numpy(zero_copy_only=False)[best[np.searchsorted(best, begins)]]
