"""A row as people judge it: a picture and captions, known by its content. Nothing is read here."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from hard_positives.suite.columns import IMAGE_TO_TEXT


@dataclass(frozen=True)
class Row:
    """A picture, its captions, and which of them the dataset calls true.

    Attributes:
        split: The split that it is of.
        category: Of the dataset; figures are reported by it.
        cluster: What is not independent, such as the photograph.
        image: The picture's SHA-256; empty where captions stand alone. Then the first caption is
            taken to be true, and the others are judged by it.
        captions: The original first.
        labels: Of each caption, whether the dataset calls it true.

    Examples:
        >>> triple = ("a cat", "a kitty", "a dog")
        >>> Row("test", "object", "1", "ab12", triple, (True, True, False)).key[:8]
        '6c0a5c83'
    """

    split: str
    category: str
    cluster: str
    image: str
    captions: tuple[str, ...]
    labels: tuple[bool, ...]

    @cached_property
    def key(self) -> str:
        """SHA-256 of what is judged, so that a judgment is never taken for one of another row."""
        content = json.dumps([self.image, self.captions, self.labels])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def given(self) -> str | None:
        """The caption that is taken to be true, where there is no picture."""
        return None if self.image else self.captions[0]

    @property
    def asked(self) -> list[str]:
        """The distinct captions that people judge."""
        return [text for text in dict.fromkeys(self.captions) if text != self.given]


def rows_of(scores: pa.Table) -> Iterator[Row]:
    """Yield what was scored as rows that people can have judged: an image with captions.

    Args:
        scores: As in `hard_positives.EvaluationResult`.
    """
    names = ("split", "category", "cluster", "direction", "images", "captions", "labels")
    for one in scores.select(names).to_pylist():
        if one["direction"] == IMAGE_TO_TEXT:
            captions, labels = tuple(one["captions"]), tuple(one["labels"])
            yield Row(
                one["split"], one["category"], one["cluster"], one["images"][0], captions, labels
            )
