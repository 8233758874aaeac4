"""Rows worth looking at: which of many thousand to show, with their pictures made small.

Chooses and shrinks only; `report` puts the rows on a page. Captions and logits are those of the
result; a dataset gives pictures only, and only those whose bytes were scored.
"""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from datasets import Dataset, Image

from hard_positive_metric import row_outcomes
from hard_positives.results.evaluation import EvaluationResult
from hard_positives.suite.rows import CAPTION_COLUMNS, read_image_file
from hard_positives_dataset.images import open_image_bytes

GALLERY_ROWS = 240
IMAGE_SIDE = 256  # pixels of the longer side
GALLERY_BYTES = 6_000_000  # of pictures and captions, so that a page stays far under 10 MB


@dataclass(frozen=True)
class Picture:
    """A small picture as a `data:` address, and its size in pixels."""

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """One row of the gallery.

    Attributes:
        id: Of the row.
        category: Of the row.
        substitution: Such as "white > ivory"; may be empty.
        flaws: Why the row should not count; mostly empty.
        captions: Caption, hard positive, hard negative, as scored.
        picture: What was scored, made small; None where it could not be had.
        logits: For each result three logits, in the order of `captions`.
        outcomes: For each result one of `hard_positive_metric.OUTCOMES`.
    """

    id: str
    category: str
    substitution: str
    flaws: list[str]
    captions: list[str]
    picture: Picture | None
    logits: list[list[float]]
    outcomes: list[str]


@dataclass(frozen=True)
class Gallery:
    """Chosen rows, in the order of the dataset, and how they were chosen.

    Attributes:
        examples: At most `GALLERY_ROWS`.
        num_candidates: How many rows they were chosen from.
        is_disagreement: Whether these are rows on which the results' outcomes differ.
    """

    examples: list[Example]
    num_candidates: int
    is_disagreement: bool

    @property
    def num_without_picture(self) -> int:
        """How many examples are shown without the picture that was scored."""
        return sum(example.picture is None for example in self.examples)


def choose_examples(
    results: Sequence[EvaluationResult], rows_by_split: Mapping[str, Dataset]
) -> Gallery:
    """Choose rows of all kinds, and fetch their pictures.

    One result: rows of every category, and in it of every outcome and substitution, by turns.
    Several: the same among the rows on which their outcomes differ; all rows where none do.

    Args:
        results: Over the same rows (`comparison.check_same_rows`).
        rows_by_split: The dataset that was scored, from `sources.load_source`; may lack rows, or
            hold others: a picture is taken only if its bytes are those that were scored.
    """
    outcomes = np.stack([row_outcomes(result.logits).outcome for result in results])  # (M, N)
    differing = np.flatnonzero((outcomes != outcomes[0]).any(axis=0))
    candidates = differing if len(differing) else np.arange(outcomes.shape[1])
    scores = results[0].scores
    keys = [
        np.array(scores["category"].to_pylist())[candidates],
        np.array([" ".join(column) for column in outcomes[:, candidates].T]),
        np.array(scores["substitution"].to_pylist())[candidates],
    ]
    order = _by_turns(np.arange(len(candidates)), keys)[:GALLERY_ROWS]
    pictures = {split: _Pictures(rows) for split, rows in rows_by_split.items()}
    examples, size = {}, 0
    for row in candidates[order].tolist():
        example = _example(row, results, outcomes, pictures)
        own_size = len(example.picture.address) if example.picture else 0
        own_size += sum(len(text.encode()) for text in example.captions)
        if size + own_size <= GALLERY_BYTES:
            examples[row] = example
            size += own_size
    return Gallery([examples[row] for row in sorted(examples)], len(candidates), len(differing) > 0)


def _by_turns(rows: np.ndarray, keys: Sequence[np.ndarray]) -> list[int]:
    """Order rows so that every beginning holds all values of the first key about equally often.

    Among the rows of one value the same holds for the second key, and so on.
    """
    if not keys or len(rows) < 2:
        return rows.tolist()
    first, rest = keys[0], keys[1:]
    groups = [_by_turns(rows[first[rows] == value], rest) for value in np.unique(first[rows])]
    return [row for row in chain(*zip_longest(*groups)) if row is not None]


def _example(
    row: int,
    results: Sequence[EvaluationResult],
    outcomes: np.ndarray,
    pictures: Mapping[str, "_Pictures"],
) -> Example:
    scores = results[0].scores
    of_row = scores.slice(row, 1).to_pylist()[0]
    start = scores["split"].index(of_row["split"]).as_py()  # a split's rows stand together
    of_split = pictures.get(of_row["split"])
    return Example(
        id=of_row["id"],
        category=of_row["category"],
        substitution=of_row["substitution"],
        flaws=of_row["flaws"],
        captions=[of_row[name] for name in CAPTION_COLUMNS],
        picture=of_split.find(of_row, row - start) if of_split else None,
        logits=[result.logits[row].tolist() for result in results],
        outcomes=outcomes[:, row].tolist(),
    )


class _Pictures:
    """The pictures of a split, which may be another revision of it than was scored."""

    def __init__(self, rows: Dataset):
        self._rows = rows

    @cached_property
    def _images(self) -> Dataset:
        return self._rows.select_columns(["image"]).cast_column("image", Image(decode=False))

    @cached_property
    def _places(self) -> dict[str, int]:
        if "id" not in self._rows.column_names:
            return {}
        return {str(name): place for place, name in enumerate(self._rows["id"][:])}

    def find(self, scored: dict[str, Any], place: int) -> Picture | None:
        """Find the picture of a row of the scores, by its id or else by its place."""
        place = self._places.get(scored["id"], place)
        if "image" not in self._rows.column_names or place >= len(self._rows):
            return None
        try:
            file = read_image_file(self._images[place]["image"], place)
            is_scored = hashlib.sha256(file).hexdigest() == scored["image_sha256"]
            return shrink_image(file) if is_scored else None
        except (OSError, ValueError):  # gone, or not readable here
            return None


def shrink_image(file: bytes) -> Picture:
    """Make an image file small enough for a page: at most `IMAGE_SIDE`, never enlarged, as WebP.

    Without EXIF rotation, as models see it (`scoring`).
    """
    image = open_image_bytes(file).convert("RGB")
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=85)
    address = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(address, *image.size)
