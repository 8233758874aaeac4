"""The finding in one row: where its candidates land on each model's line of similarity."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from hard_positives.results.gallery import Example, Gallery

if TYPE_CHECKING:
    from hard_positives.results.parts import Model

LINES = 6  # at most, of the first models


@dataclass(frozen=True)
class Opening:
    """A row that shows what the figures count.

    Attributes:
        example: The row.
        lines: The first models, each with where every candidate is between the lowest logit of the
            row (0) and the highest (1).
        model: Whose outcome in this row the caption counts.
        count: How many rows end so for this model.
        total: Of how many.
    """

    example: Example
    lines: "list[tuple[Model, list[float]]]"
    model: "Model"
    count: int
    total: int


def opening_of(models: "Sequence[Model]", gallery: Gallery) -> Opening | None:
    """Choose a row in which a model ranks a false candidate between true ones, or above them.

    Rather one that another model gets right, with a picture, without flaws, of few short candidates
    that lie apart. None where no row compares captions.
    """
    first = models[:LINES]
    of_captions = [one for one in gallery.examples if all(of.text for of in one.candidates)]
    if not of_captions:
        return None
    example, model = max(
        ((example, model) for example in of_captions for model in first),
        key=lambda pair: _clarity(*pair),
    )
    outcome = example.outcomes[model.place]
    splits = model.result.metrics["as_published"].values()
    return Opening(
        example,
        [(one, _places([of.logits[one.place] for of in example.candidates])) for one in first],
        model,
        count=sum(figures[f"num_{outcome}"] for figures in splits),
        total=sum(figures["num_examples"] for figures in splits),
    )


def _clarity(example: Example, model: "Model") -> tuple[float, ...]:
    wanted = {"only_caption_above": 2, "none_above": 1}
    places = sorted(_places([of.logits[model.place] for of in example.candidates]))
    return (
        wanted.get(example.outcomes[model.place], 0),
        "all_above" in example.outcomes,
        example.picture is not None,
        not example.flaws,
        all(len(of.text) <= 120 for of in example.candidates),
        -len(example.candidates),
        min(high - low for low, high in pairwise(places)),
    )


def _places(logits: Sequence[float]) -> list[float]:
    low, high = min(logits), max(logits)
    return [(logit - low) / (high - low) if high > low else 0.5 for logit in logits]
