"""Figures as people read them: their titles, labels, percent and intervals, in tables and on pages.

Percent appear here and in what uses this only; everywhere else a figure is a fraction.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hard_positive_metric import FIGURES
from hard_positives.names import public_name
from hard_positives.results.result import NOT_COCO, EvaluationResult, num_positives
from hard_positives.suite import published

TITLES = {
    "original_accuracy": "original",
    "augmented_accuracy": "augmented",
    "brittleness": "brittleness",
    "drop": "drop",
    "set_accuracy": "sets",
    "tie_rate": "ties",
}
VIEW_TITLES = {
    "as_published": "as published",
    "clean": "clean",
    NOT_COCO: "without COCO's pictures",
}
DASH = "\u2013"  # of a range, and where there is no interval
NO_INTERVAL = f"{DASH}: too few images for an interval."
REVIEWED = "Reviewers: people who judged these rows; a row counts once for each of them."
TEXT_ALONE = "Text alone: the model scores captions and sees no picture."
# Of a signature, what tells two models of one name apart, the plainest first, and how that is said.
TELLING = {
    "dtype": "{}",
    "adapter": "adapter {}",
    "images": "{} preprocessing",
    "question": "question {}",
    "revision": "revision {}",
    "weights": "weights {}",
    "device": "on {}",
    "version": "hard-positives {}",
    "run": "run {}",
}
OF_A_RUN = ("device", "version", "run")  # not of the model: told of two on the same rows alone
# By what the signature calls `processor.preprocessing`.
PREPARATIONS = {
    "transformers": "Images prepared as transformers does.",
    "openai": "Images prepared as the published code does (OpenAI's transform).",
}


def name_of(result: EvaluationResult) -> str:
    """The model's Hub id, or the last part of its folder's path."""
    return public_name(result.signature["model"]["id"])


def label_of(result: EvaluationResult) -> str:
    """The model's name as tables show it: of one that sees no picture, they say so."""
    return f"{name_of(result)} (text alone)" if result.is_blind else name_of(result)


def labels_of(results: Sequence[EvaluationResult]) -> list[str]:
    """Name models by what differs: two of one name by their dtype, or else by adapter, and so on.

    The same model on several datasets has one name; on one dataset no two names are the same.
    """
    rows = [rows_of(result) for result in results]
    names: list[tuple[str, ...]] = [(label_of(result),) for result in results]
    for part in TELLING:
        for name in dict.fromkeys(names):
            places = [place for place, other in enumerate(names) if other == name]
            on = [rows[place] for place in places]
            details = [_detail(results[place], part) for place in places]
            if part == "run":
                details = [str(on[: at + 1].count(same)) for at, same in enumerate(on)]
            is_clash = len(set(on)) < len(on)
            if len(set(details)) > 1 and (is_clash or part not in OF_A_RUN):
                for place, detail in zip(places, details, strict=True):
                    told = TELLING[part].format(detail) if detail else f"no {part}"
                    names[place] = (*name, told)
    return [f"{name} ({', '.join(told)})" if told else name for name, *told in names]


def _detail(result: EvaluationResult, part: str) -> str | None:
    if part == "revision":
        return (result.signature["model"].get("revision") or "")[:8]
    return result.signature_parts.get(part)


def rows_of(result: EvaluationResult) -> tuple[str | None, str]:
    """What two results share whose figures can stand beside each other."""
    dataset = result.signature["dataset"]
    # Two benchmarks may have the same rows and count them in other ways.
    return dataset.get("benchmark"), dataset["content_sha256"]


def dataset_name_of(result: EvaluationResult) -> str:
    """The dataset's Hub id, or the last part of its folder's path; "rows" where it has none."""
    return public_name(result.signature["dataset"]["id"]) or "rows"


def preprocessing_of(result: EvaluationResult) -> str | None:
    """How images were prepared, by the signature's word for it."""
    return (result.signature.get("processor") or {}).get("preprocessing")


def preparation_of(result: EvaluationResult) -> str:
    """How images were prepared, in a sentence; empty where the signature does not say."""
    if result.is_blind:
        return TEXT_ALONE
    return PREPARATIONS.get(preprocessing_of(result), "")


def shown_figures(result: EvaluationResult) -> list[str]:
    """The figures that some row has; augmented accuracy only where it can differ."""
    found = set().union(*all_rows(result))
    if "brittleness" not in found:
        found.discard("augmented_accuracy")
    return [figure for figure in TITLES if figure in found]


def distinct_views(result: EvaluationResult) -> list[str]:
    """The views that have rows; without the clean one where no row has a flaw."""
    metrics = result.metrics
    is_clean = metrics["clean"] == metrics["as_published"]
    return [
        view for view in VIEW_TITLES if metrics.get(view) and not (view == "clean" and is_clean)
    ]


def all_rows(result: EvaluationResult) -> Iterator[dict[str, Any]]:
    """Yield the figures of every line of a result's table."""
    yield from (figures for _, _, _, figures in all_figures_of(result))


def all_figures_of(result: EvaluationResult) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield view, split, label and figures of every line of a result's table."""
    for view, splits in result.metrics.items():
        for split, figures in splits.items():
            yield from ((view, split, label, row) for label, row in labelled_rows(split, figures))


def is_like_the_paper(result: EvaluationResult) -> bool:
    """Whether the paper's figures and humans can stand beside it."""
    of_others = "benchmark" in result.signature["dataset"]
    return not of_others and published.are_triples(result.scores)


def labelled_rows(split: str, figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the figures of a split's categories, means and directions with their labels."""
    yield from figures["groups"].items()
    if len(figures["groups"]) > 1:
        yield mean_label(split, "macro"), figures["macro"]
        yield mean_label(split, "micro"), figures
    for direction, of_direction in figures.get("directions", {}).items():
        yield mean_label(split, direction), of_direction


def mean_label(split: str, mean: str) -> str:
    """Name a mean over a split, such as "REPLACE macro" or "TEST image to text"."""
    return f"{split.upper()} {mean.replace('_', ' ')}"


def chance_lines(result: EvaluationResult) -> list[tuple[str, dict[str, float]]]:
    """What scores in random order would reach, by figure: of all rows, or of each split."""
    by_split = {
        split: _chance_of(result.scores.filter(pa.array(rows)))
        for view, split, rows in result.parts()
        if view == "as_published"
    }
    first, *others = by_split.values()
    if all(chance == first for chance in others):
        return [("chance", first)]
    return [(f"{split.upper()} chance", chance) for split, chance in by_split.items()]


def _chance_of(scores: pa.Table) -> dict[str, float]:
    """The mean over rows of what their numbers of positives and negatives give at random."""
    positives = num_positives(scores)
    sizes = scores["labels"].combine_chunks().value_lengths().to_numpy()
    kinds, counts = np.unique(np.stack([positives, sizes - positives]), axis=1, return_counts=True)
    chances = {
        name: [figure.chance(p, n) for p, n in kinds.T.tolist()]
        for name, figure in FIGURES.items()
        if figure.chance is not None
    }
    # Rounded: the mean of one and the same chance may differ in its last bit from split to split.
    return {name: round(float(np.average(of, weights=counts)), 9) for name, of in chances.items()}


def no_interval(rows: Iterable[dict[str, Any]]) -> str:
    """What the dashes in the place of intervals mean; empty where there are none."""
    missing = any(row[f"{name}_ci_low"] is None for row in rows for name in TITLES if name in row)
    return NO_INTERVAL if missing else ""


def percent(fraction: float) -> str:
    """A fraction in percent, with one digit after the point."""
    return f"{100 * fraction:.1f}"


def signed(fraction: float) -> str:
    """A difference in percent, with its sign."""
    return f"{100 * fraction:+.1f}"


def interval(figures: dict[str, Any], name: str) -> str:
    """The ends of a figure's 95 % interval, in percent."""
    low, high = figures[f"{name}_ci_low"], figures[f"{name}_ci_high"]
    return DASH if low is None else f"{percent(low)}{DASH}{percent(high)}"


def half_interval(figures: dict[str, Any], name: str) -> str:
    """Half of the width of a figure's 95 % interval, in percent."""
    low, high = figures[f"{name}_ci_low"], figures[f"{name}_ci_high"]
    if low is None:
        return DASH
    half = percent((high - low) / 2)
    return half if len(half) < 4 else f"{float(half):.0f}"  # so that 80 columns suffice
