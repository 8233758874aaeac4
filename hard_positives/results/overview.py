"""Models by datasets: what stands on top of a page of several datasets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hard_positive_metric import FIGURES
from hard_positives.results.figures import TITLES, interval, percent
from hard_positives.results.parts import ORDER
from hard_positives.results.plane import marks_of


@dataclass(frozen=True)
class Column:
    """A split of a dataset with the mean over its categories, for every model by its letter."""

    dataset: str
    split: str
    num_examples: int
    figures: dict[str, dict[str, Any]]
    chance: dict[str, str]  # in percent or empty, of the figures that the dataset shows

    def has(self, letter: str, name: str) -> bool:
        """Whether the model was scored here and the figure is shown for this dataset."""
        return name in self.chance and name in self.figures.get(letter, {})

    def is_best(self, letter: str, name: str) -> bool:
        """Whether no other model shows a better figure; False where there is no other model."""
        values = {one: of[name] for one, of in self.figures.items() if self.has(one, name)}
        best = max if FIGURES[name].better == "higher" else min
        return len(values) > 1 and percent(values[letter]) == percent(best(values.values()))


def overview_of(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lay all models out on all datasets, from what `parts.content_of` tells of each."""
    models = {model.letter: model for part in parts for model in part["models"]}
    columns = [column for part in parts for column in _columns(part)]
    of_model = {
        letter: {name for name in ORDER for column in columns if column.has(letter, name)}
        for letter in models
    }
    shown = set().union(*of_model.values())
    return {
        "models": [models[letter] for letter in sorted(models, key=lambda it: (len(it), it))],
        "figure_titles": {name: TITLES[name].capitalize() for name in ORDER if name in shown},
        "better": {name: figure.better for name, figure in FIGURES.items()},
        "has_hard_positives": any(part["has_hard_positives"] for part in parts),
        "no_interval": max(part["no_interval"] for part in parts),
        "preparations": "",  # each part says it
        "columns": columns,
        "headlines_of": [_headline(part) for part in parts],
        "opened": _opening(parts),
        "marks": marks_of(list(_points(parts))),
        "numbered": {
            number: part["dataset"]
            for number, part in enumerate(parts, 1)
            if part["has_hard_positives"]
        },
        "of_model": of_model,
        "with_chance": {name for name in shown for column in columns if column.chance.get(name)},
    }


def _headline(part: dict[str, Any]) -> dict[str, Any]:
    """The one figure of a dataset, for every model by its letter."""
    about = {"dataset": part["dataset"], "anchor": part["anchor"]}
    if part["authors"]:
        line = part["authors"][0]
        cells = {
            model.letter: {"value": value.estimate.value, "interval": interval(value.ends, "value")}
            for model, value in zip(part["models"], line.values, strict=True)
        }
        return {**about, "title": line.title, "cells": cells}
    name = "augmented_accuracy" if part["has_hard_positives"] else "original_accuracy"
    cells = {
        model.letter: {"value": _mean_over_splits(part, model.place, name), "interval": ""}
        for model in part["models"]
    }
    return {**about, "title": TITLES[name], "cells": cells}


def _points(parts: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """What stands on a badge, what it means, and the figures, of every model on every dataset."""
    for number, part in enumerate(parts, 1):
        for model in part["models"] if part["has_hard_positives"] else ():
            figures = {
                name: _mean_over_splits(part, model.place, name)
                for name in ("original_accuracy", "brittleness")
            }
            yield f"{model.letter}{number}", f"{model.name} on {part['dataset']}", figures


def _opening(parts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first dataset that has an opening, rather one with hard positives."""
    order = sorted(parts, key=lambda part: not part["has_hard_positives"])
    return next((part for part in order if part["opening"]), None)


def _mean_over_splits(part: dict[str, Any], place: int, name: str) -> float:
    """The mean of the splits that have the figure."""
    macros = [of_models[place]["macro"] for of_models in part["splits"].values()]
    return fmean(macro[name] for macro in macros if name in macro)


def _columns(part: dict[str, Any]) -> Iterator[Column]:
    letters = [model.letter for model in part["models"]]
    for place, (split, of_models) in enumerate(part["splits"].items()):
        macros = {
            letter: figures["macro"] for letter, figures in zip(letters, of_models, strict=True)
        }
        _, cells = part["chance"][place if len(part["chance"]) > 1 else 0]
        chance = dict(zip(part["figure_titles"], cells, strict=True))
        yield Column(part["dataset"], split, of_models[0]["num_examples"], macros, chance)
