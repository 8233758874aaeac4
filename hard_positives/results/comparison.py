"""Two results over the same rows in, the difference of every figure out, with how sure it is.

Each row is scored by both models, so what counts is the difference within a row. That is far more
exact than laying the two intervals of ``EvaluationResult.metrics`` beside each other. Nothing here
prints; ``tables`` renders a comparison.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hard_positive_metric import FIGURES, paired_difference, row_outcomes, set_outcomes
from hard_positives.results.result import EvaluationResult, num_positives, values_of

COMPARED = ("original_accuracy", "augmented_accuracy", "brittleness", "drop")
NAMED = 3  # how many rows an error names


@dataclass(frozen=True)
class PairedDifference:
    """How one figure of some rows differs between two models.

    Attributes:
        view: ``"as_published"`` (all rows), ``"clean"`` (rows without flaws), or ``"not_coco"``
            where the first result has it (`EvaluationResult.with_image_data`).
        split: The split of the rows.
        group: A category; or ``"macro"``, the unweighted mean over the split's categories; or
            ``"micro"``, all rows of the split; or a direction, where it has both.
        figure: ``original_accuracy``; ``augmented_accuracy``, ``brittleness`` and ``drop`` where
            rows have hard positives; ``set_accuracy`` where they are sets, and these are counted.
        num_examples: How many rows.
        num_clusters: How many distinct images they show.
        first: The figure of the first model, in [0, 1].
        second: The figure of the second model, in [0, 1].
        difference: ``second - first``, in [-1, 1]. For the accuracies above 0 is better for the
            second model, for brittleness and drop below 0.
        standard_error: Of the difference, clustered by image; None with a single image.
        ci_low: Lower end of the 95 % interval of the difference; None where fewer than 4 effective
            images are left, too few for any.
        ci_high: Upper end.
        won: Rows that the second model alone has right (for brittleness: is alone not brittle).
        lost: Rows that the first model alone has right.
        p_value: Two-sided test of no difference, clustered by image; None where the ends are.
    """

    view: str
    split: str
    group: str
    figure: str
    num_examples: int
    num_clusters: int
    first: float
    second: float
    difference: float
    standard_error: float | None
    ci_low: float | None
    ci_high: float | None
    won: int
    lost: int
    p_value: float | None

    @property
    def is_found(self) -> bool:
        """Whether the test finds a difference, at 5 %."""
        return self.p_value is not None and self.p_value < 0.05


def compare(first: EvaluationResult, second: EvaluationResult) -> list[PairedDifference]:
    """Compare two models row by row, on the same rows.

    With d_i = x_i(second) - x_i(first) in {-1, 0, 1} the difference is the mean of d, for ``macro``
    the mean of the categories' means. Error, interval and p-value are those of
    ``hard_positive_metric.paired_difference``, with images as clusters.

    Args:
        first: The model to start from, such as the base model.
        second: The model to judge.

    Returns:
        One `PairedDifference` for every view, split, group and figure, in this order. A
        split of one category has no ``macro`` and ``micro``.

    Raises:
        ValueError: The results are over different rows, pictures, captions, categories or flaws.

    Examples:
        >>> result = EvaluationResult.load("results/base")  # doctest: +SKIP
        >>> tuned = EvaluationResult.load("results/tuned")  # doctest: +SKIP
        >>> compare(result, tuned)[0].difference  # doctest: +SKIP
        0.0421
    """
    check_same_rows([first, second])
    return [
        difference
        for view, split, rows in first.parts()
        for difference in _compare_rows(first, second, rows, view, split)
    ]


def check_same_rows(results: Sequence[EvaluationResult]) -> None:
    """Raise unless all results are over the same rows, in one order, with the same views.

    Raises:
        ValueError: Says which splits, rows, or columns of the rows differ.
    """
    for place, other in enumerate(results[1:], start=2):
        for problem in _differences_of_rows(results[0], other):
            raise ValueError(
                f"Expected the results to be over the same rows, got {problem} (result 1 is "
                f"{results[0].signature['model']['id']}, result {place} is "
                f"{other.signature['model']['id']}). Evaluate both on the same dataset and splits."
            )


def _differences_of_rows(first: EvaluationResult, second: EvaluationResult) -> Iterator[str]:
    sizes = [_split_sizes(result.scores) for result in (first, second)]
    for split in dict.fromkeys([*sizes[0], *sizes[1]]):
        here, there = (size.get(split, 0) for size in sizes)
        if here != there:
            yield f"split {split!r} with {here:,} rows in the first and {there:,} in the second"
    for column in ("split", "id", "category", "cluster", "flaws", "direction", "set"):
        values = [result.scores[column].to_pylist() for result in (first, second)]
        odd = [row for row, (a, b) in enumerate(zip(*values, strict=True)) if a != b]
        if odd:
            ids = ", ".join(first.scores["id"][row].as_py() for row in odd[:NAMED])
            more = ", ..." if len(odd) > NAMED else ""
            yield (
                f"another {column!r} in {len(odd):,} rows of {len(values[0]):,}, by the first "
                f"result's ids {ids}{more}"
            )
    for signature in ("views", "tie_rule"):
        here, there = (result.signature[signature] for result in (first, second))
        if here != there:
            yield f"{signature} {here!r} in the first and {there!r} in the second"
    contents = [result.signature["dataset"]["content_sha256"] for result in (first, second)]
    if contents[0] != contents[1]:
        yield "the same ids with other pictures or captions (the content hashes differ)"


def _split_sizes(scores: pa.Table) -> dict[str, int]:
    counts = scores["split"].value_counts().to_pylist()
    return {count["values"]: count["counts"] for count in counts}


def _compare_rows(
    first: EvaluationResult, second: EvaluationResult, rows: np.ndarray, view: str, split: str
) -> Iterator[PairedDifference]:
    """All differences of the rows of one split and view."""
    tables = [result.scores.filter(pa.array(rows)) for result in (first, second)]
    labels, categories = _coded(tables[0]["category"])
    directions, of_direction = _coded(tables[0]["direction"])
    clusters = _coded(tables[0]["cluster"])[1]
    sets = None
    if tables[0]["set"].null_count == 0:
        sets = np.array(_coded(tables[0]["set"])[1])
    references = values_of(tables[0], "labels")
    outcomes = [row_outcomes(values_of(table, "logits"), references) for table in tables]

    together, every_row = np.zeros_like(categories), np.ones(len(categories), bool)
    parts = [(label, categories == place, together) for place, label in enumerate(labels)]
    if len(labels) > 1:
        parts += [("macro", every_row, categories), ("micro", every_row, together)]
    if len(directions) > 1:
        parts += [(name, of_direction == at, together) for at, name in enumerate(directions)]
    has_hard_positives = num_positives(tables[0]) > 1
    for group, member, weights in parts:
        taken = [outcome.take(member) for outcome in outcomes]
        for figure in COMPARED if has_hard_positives[member].any() else COMPARED[:1]:
            field = FIGURES[figure].field
            values = [getattr(outcome, field) for outcome in taken]
            estimate = _paired_estimate(
                values[0], values[1], figure, weights[member], clusters[member]
            )
            yield PairedDifference(view, split, group, figure, **estimate)
        if sets is not None:
            first_right, second_right = (set_outcomes(outcome, sets[member]) for outcome in taken)
            of_set = first_right.first_row
            estimate = _paired_estimate(
                first_right.correct,
                second_right.correct,
                "set_accuracy",
                weights[member][of_set],
                clusters[member][of_set],
            )
            yield PairedDifference(view, split, group, "set_accuracy", **estimate)


def _coded(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """List the values in order of appearance, and each row's place among them."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _paired_estimate(
    before: np.ndarray, after: np.ndarray, figure: str, groups: np.ndarray, clusters: np.ndarray
) -> dict[str, Any]:
    more_is_better = FIGURES[figure].better == "higher"
    gained, missed = int((after & ~before).sum()), int((before & ~after).sum())
    won, lost = (gained, missed) if more_is_better else (missed, gained)
    paired = paired_difference(after.astype(int) - before, groups=groups, clusters=clusters)
    return {
        "num_examples": len(groups),
        "num_clusters": len(np.unique(clusters)),
        "first": float(_mean_of_groups(before, groups).mean()),
        "second": float(_mean_of_groups(after, groups).mean()),
        "difference": paired.value,
        "standard_error": paired.standard_error,
        "ci_low": paired.ci_low,
        "ci_high": paired.ci_high,
        "won": won,
        "lost": lost,
        "p_value": paired.p_value,
    }


def _mean_of_groups(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return np.bincount(groups, values) / np.bincount(groups)


def means_of(
    differences: Sequence[PairedDifference],
) -> dict[tuple[str, str], dict[str, PairedDifference]]:
    """Of each view and split the mean over categories, or its only category, by figure."""
    found: dict[tuple[str, str], dict[str, PairedDifference]] = {}
    for row in differences:
        of_split = found.setdefault((row.view, row.split), {})
        if row.group == "macro" or row.figure not in of_split:
            of_split[row.figure] = row
    return found
