"""What a page shows of one dataset: figures, outcomes, substitutions, margins, rows and runs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import pyarrow as pa

from hard_positive_metric import compute_metrics
from hard_positives.results.authors import AuthorsValue
from hard_positives.results.comparison import PairedDifference, compare, means_of
from hard_positives.results.figures import (
    REVIEWED,
    TITLES,
    VIEW_TITLES,
    all_rows,
    chance_lines,
    distinct_views,
    is_like_the_paper,
    labelled_rows,
    labels_of,
    mean_label,
    no_interval,
    percent,
    preparation_of,
    shown_figures,
)
from hard_positives.results.gallery import Gallery
from hard_positives.results.margins import margins_of
from hard_positives.results.opening import opening_of
from hard_positives.results.plane import Mark, at_x, at_y, marks_of
from hard_positives.results.result import NOT_COCO, EvaluationResult, values_of
from hard_positives.results.runs import command_of, flattened
from hard_positives.review.humans import humans_on
from hard_positives.suite import published
from hard_positives.suite.benchmarks import known_benchmark

OUTCOME_TITLES = {
    "all_above": "both above the hard negative",
    "only_caption_above": "only the caption above",
    "only_hard_positive_above": "only the hard positive above",
    "none_above": "neither above",
    "tied": "tied",
}
# Without hard positives.
PLAIN_OUTCOME_TITLES = {
    "all_above": "above every hard negative",
    "none_above": "below a hard negative",
    "tied": "tied",
}
# On a page, drop stands beside the two figures that it is made of.
ORDER = ("original_accuracy", "augmented_accuracy", "drop", "brittleness", "set_accuracy")
VIEW_EXPLANATIONS = {
    "as_published": "all rows",
    "clean": "rows without known flaws",
    NOT_COCO: "rows whose picture is in Visual Genome alone",
}
SUBSTITUTIONS = 200  # at most, the most frequent


@dataclass(frozen=True)
class Model:
    """A model as the page speaks of it: a letter in the charts, a name beside it, its result."""

    place: int
    letter: str
    name: str
    result: EvaluationResult


@dataclass(frozen=True)
class Line:
    """The figures of the same rows for every model, in the order of the models."""

    label: str
    figures: list[dict[str, Any]]
    category: str = ""


@dataclass(frozen=True)
class Panel:
    """A split's models in the plane of accuracy and brittleness; chance, and humans if known."""

    label: str
    marks: list[Mark]
    chance: tuple[float, float]
    humans: tuple[float, float] | None = None


def panel_of(
    line: Line,
    models: Sequence[Model],
    chance: dict[str, float],
    humans: dict[str, float] | None = None,
) -> Panel:
    """Draw a split; no badge covers chance or humans."""
    places = [(at_x(chance["original_accuracy"]), at_y(chance["brittleness"]))]
    if humans is not None:
        places.append((at_x(humans["original_accuracy"]), at_y(humans["brittleness"])))
    named = [(model.letter, model.name, line.figures[model.place]) for model in models]
    return Panel(line.label, marks_of(named, places), *places)


def _humans_of(
    split: str, result: EvaluationResult, reviewers: dict[str, dict[str, float]]
) -> dict[str, float] | None:
    """Who stands in a split's panel: the people who judged its rows, or else the paper's."""
    if reviewers:
        return reviewers.get(split)
    if split != "replace" or not is_like_the_paper(result):
        return None
    return {name: float(value) / 100 for name, value in published.HUMANS.items()}


def name_models(datasets: Sequence[Sequence[EvaluationResult]]) -> list[list[Model]]:
    """Give each model its letter, the same on every dataset, and a name that no other has."""
    names = iter(labels_of([result for results in datasets for result in results]))
    by_name = [{next(names): result for result in results} for results in datasets]
    order = list(dict.fromkeys(name for results in by_name for name in results))
    letters = {
        name: ascii_uppercase[place % 26] * (1 + place // 26) for place, name in enumerate(order)
    }
    return [
        [
            Model(place, letters[name], name, results[name])
            for place, name in enumerate(sorted(results, key=order.index))
        ]
        for results in by_name
    ]


def content_of(
    models: Sequence[Model], gallery: Gallery, no_pictures: str, dataset: Any = None
) -> dict[str, Any]:
    """What the templates show of the models on one dataset, and of the people who judged it."""
    results = [model.result for model in models]
    first, chance = results[0], chance_lines(results[0])
    titles = {name: TITLES[name].capitalize() for name in ORDER if name in shown_figures(first)}
    substitutions, num_substitutions = _substitutions(results)
    splits = {
        split: [result.metrics["as_published"][split] for result in results]
        for split in first.metrics["as_published"]
    }
    headlines = [_headline(split, of_models) for split, of_models in splits.items()]
    reviewers = humans_on(first.scores, dataset or first.signature["dataset"]["id"])
    margins = zip(*map(margins_of, results), strict=True)
    return {
        "models": models,
        "runs": [
            (model, command_of(model.result), list(flattened(model.result.signature)))
            for model in models
        ],
        "views": [
            (VIEW_TITLES[view], VIEW_EXPLANATIONS[view], _lines(view, results))
            for view in distinct_views(first)
        ],
        "splits": splits,
        "opening": opening_of(models, gallery),
        "headlines": headlines,
        "panels": [
            panel_of(line, models, chance[0][1], _humans_of(split, first, reviewers))
            for split, line in zip(splits, headlines, strict=True)
            if "brittleness" in titles
        ],
        "differences": _differences(models),
        "outcome_lines": [
            Line(label, [figures["groups"][label] for figures in of_models])
            for of_models in splits.values()
            for label in of_models[0]["groups"]
        ],
        "figure_titles": titles,
        "first_figure": list(titles)["augmented_accuracy" in titles],
        "has_hard_positives": "brittleness" in titles,
        "are_triples": published.are_triples(first.scores),
        "like_the_paper": is_like_the_paper(first),
        "authors": _authors(models),
        "outcome_titles": OUTCOME_TITLES if "brittleness" in titles else PLAIN_OUTCOME_TITLES,
        "chance": [
            (label, [percent(values[name]) if name in values else "" for name in titles])
            for label, values in chance
        ],
        "reviewed": REVIEWED,
        "reviewers": [
            Line(mean_label(split, "reviewers"), [figures]) for split, figures in reviewers.items()
        ],
        "humans": [published.HUMANS.get(name, "") for name in titles],
        "published": published.FIGURES,
        "published_rows": published.describe_rows(first.scores),
        "no_interval": no_interval(row for result in results for row in all_rows(result)),
        "no_substitution_interval": no_interval(
            row for line in substitutions for row in line.figures
        ),
        "preparations": _preparations(models),
        "substitutions": substitutions,
        "num_substitutions": num_substitutions,
        "margins": [pair for of_split in margins for pair in zip(models, of_split, strict=True)],
        "gallery": gallery,
        "no_pictures": no_pictures,
    }


@dataclass(frozen=True)
class DifferencesLine:
    """How the other models differ from the first one on the rows of a split, figure by figure."""

    label: str
    num_examples: int
    rows: list[tuple[Model, dict[str, PairedDifference]]]


def _differences(models: Sequence[Model]) -> list[tuple[str, list[DifferencesLine]]]:
    """Of each view the means over categories of every split; nothing where there is one model."""
    first, *others = models
    compared = [(model, means_of(compare(first.result, model.result))) for model in others]
    lines: dict[str, list[DifferencesLine]] = {}
    for view, split in compared[0][1] if compared else ():
        if view in distinct_views(first.result):
            rows = [(model, of_model[view, split]) for model, of_model in compared]
            number = next(iter(rows[0][1].values())).num_examples
            lines.setdefault(VIEW_TITLES[view], []).append(DifferencesLine(split, number, rows))
    return list(lines.items())


@dataclass(frozen=True)
class AuthorsLine:
    """A figure of the benchmark's authors for every model, and what is published."""

    title: str
    rule: str
    count: int
    values: list[AuthorsValue]
    published: list[tuple[float, str, str]]


def _authors(models: Sequence[Model]) -> list[AuthorsLine]:
    results = [model.result for model in models]
    known = known_benchmark(results[0].signature["dataset"].get("benchmark"))
    lines = []
    for of_models in zip(*(result.authors for result in results), strict=True):
        title = of_models[0].figure.title
        reported = [
            (found.values[title], found.model, found.source)
            for found in (known.published if known else ())
            if title in found.values
        ]
        first = of_models[0]
        lines.append(AuthorsLine(title, first.rule, first.count, list(of_models), reported))
    return lines


def _preparations(models: Sequence[Model]) -> str:
    """How the images of all models were prepared, or of each where they differ."""
    found = {model.letter: preparation_of(model.result) for model in models}
    if len(set(found.values())) == 1:
        return preparation_of(models[0].result)
    return " ".join(f"{letter}: {known or 'Not known.'}" for letter, known in found.items())


def _lines(view: str, results: Sequence[EvaluationResult]) -> list[Line]:
    lines = []
    for split in results[0].metrics[view]:
        of_models = [labelled_rows(split, result.metrics[view][split]) for result in results]
        for same_rows in zip(*of_models, strict=True):
            lines.append(Line(same_rows[0][0], [figures for _, figures in same_rows]))
    return lines


def _headline(split: str, of_models: Sequence[dict[str, Any]]) -> Line:
    """The mean over a split's categories, which is the figure of the only one if there is one."""
    labels = list(of_models[0]["groups"])
    label = labels[0] if len(labels) == 1 else mean_label(split, "macro")
    return Line(label, [figures["macro"] for figures in of_models])


def _substitutions(results: Sequence[EvaluationResult]) -> tuple[list[Line], int]:
    """The most frequent substitutions with their figures, and how many there are in all."""
    scores = results[0].scores
    kinds = list(zip(*(scores[c].to_pylist() for c in ("category", "substitution")), strict=True))
    counts = Counter(kind for kind in kinds if kind[1])
    places = {kind: place for place, (kind, _) in enumerate(counts.most_common(SUBSTITUTIONS))}
    rows = pa.array([kind in places for kind in kinds])
    if not places:
        return [], 0
    groups = [places[kind] for kind in kinds if kind in places]
    chosen = scores.filter(rows)
    labels, clusters = values_of(chosen, "labels"), chosen["cluster"].to_pylist()
    by_model = [
        compute_metrics(
            values_of(result.scores.filter(rows), "logits"),
            labels,
            groups=groups,
            clusters=clusters,
        )["groups"]
        for result in results
    ]
    lines = [
        Line(kind[1], [of[place] for of in by_model], category=kind[0])
        for kind, place in places.items()
    ]
    return lines, len(counts)
