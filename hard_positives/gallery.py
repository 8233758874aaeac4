"""Rows worth looking at: which of many thousand to show, with their pictures made small.

Chooses and shrinks only; ``report`` puts the rows on a page. Captions and logits are untouched.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from datasets import Dataset, Image
from PIL import Image as PILImage

from hard_positive_metric import row_outcomes
from hard_positives.evaluation import EvaluationResult
from hard_positives.rows import CAPTION_COLUMNS

GALLERY_ROWS = 240
IMAGE_SIDE = 256  # pixels of the longer side
GALLERY_BYTES = 6_000_000  # of pictures and captions, so that a page stays far under 10 MB
NAMED = 3  # how many rows an error names


@dataclass(frozen=True)
class Example:
    """One row of the gallery.

    Attributes:
        id: Of the row.
        category: Of the row.
        substitution: Such as "white > ivory"; may be empty.
        flaws: Why the row should not count; mostly empty.
        captions: Caption, hard positive, hard negative.
        image: The picture as a ``data:`` address.
        width: Of the small picture, in pixels.
        height: Of the small picture, in pixels.
        logits: For each result three logits, in the order of ``captions``.
        outcomes: For each result one of ``hard_positive_metric.OUTCOMES``.
    """

    id: str
    category: str
    substitution: str
    flaws: list[str]
    captions: list[str]
    image: str
    width: int
    height: int
    logits: list[list[float]]
    outcomes: list[str]


@dataclass(frozen=True)
class Gallery:
    """Chosen rows, in the order of the dataset, and how they were chosen.

    Attributes:
        examples: At most ``GALLERY_ROWS``.
        num_candidates: How many rows they were chosen from.
        is_disagreement: Whether these are rows on which the results' outcomes differ.
    """

    examples: list[Example]
    num_candidates: int
    is_disagreement: bool


def choose_examples(
    results: Sequence[EvaluationResult], rows_by_split: dict[str, Dataset]
) -> Gallery:
    """Choose rows of all kinds, and fetch their captions and pictures.

    One result: rows of every category, and in it of every outcome and substitution, by turns.
    Several: the same among the rows on which their outcomes differ; all rows where none do.

    Args:
        results: Over the same rows (``comparison.check_same_rows``).
        rows_by_split: The dataset that was scored, from ``sources.load_splits``.

    Raises:
        ValueError: The dataset has other rows than the results.
    """
    check_dataset(results[0], rows_by_split)
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
    columns = ["image", *CAPTION_COLUMNS]
    files = {
        split: rows.select_columns(columns).cast_column("image", Image(decode=False))
        for split, rows in rows_by_split.items()
    }
    examples, size = {}, 0
    for row in candidates[order].tolist():
        example = _example(row, results, outcomes, files)
        own_size = len(example.image) + sum(len(text.encode()) for text in example.captions)
        if size + own_size <= GALLERY_BYTES:
            examples[row] = example
            size += own_size
    return Gallery([examples[row] for row in sorted(examples)], len(candidates), len(differing) > 0)


def check_dataset(result: EvaluationResult, rows_by_split: dict[str, Dataset]) -> None:
    """Raise unless the dataset has the result's splits, with as many rows and the same ids."""
    splits = np.array(result.scores["split"].to_pylist())
    ids = np.array(result.scores["id"].to_pylist())
    for split in dict.fromkeys(splits.tolist()):
        expected = ids[splits == split].tolist()
        rows = rows_by_split.get(split)
        if rows is None or len(rows) != len(expected):
            got = "no such split" if rows is None else f"{len(rows):,}"
            raise ValueError(
                f"Expected the dataset to have the {len(expected):,} rows of split {split!r} that "
                f"were scored, got {got}. Pass the dataset that the results were made from."
            )
        present = list(rows["id"]) if "id" in rows.column_names else expected
        odd = [pair for pair in zip(present, expected, strict=True) if pair[0] != pair[1]]
        if odd:
            named = ", ".join(f"{got} for {wanted}" for got, wanted in odd[:NAMED])
            raise ValueError(
                f"Expected the dataset to have the rows that were scored, got other ids in "
                f"{len(odd):,} rows of split {split!r}: {named}. Pass the dataset that the results "
                "were made from."
            )


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
    files: dict[str, Dataset],
) -> Example:
    of_row = results[0].scores.slice(row, 1).to_pylist()[0]
    splits = results[0].scores["split"]
    start = splits.index(of_row["split"]).as_py()  # a split's rows stand together
    source = files[of_row["split"]][row - start]
    file = source["image"]["bytes"] or Path(source["image"]["path"]).read_bytes()
    image, (width, height) = shrink_image(file)
    return Example(
        id=of_row["id"],
        category=of_row["category"],
        substitution=of_row["substitution"],
        flaws=of_row["flaws"],
        captions=[source[name] for name in CAPTION_COLUMNS],
        image=image,
        width=width,
        height=height,
        logits=[result.logits[row].tolist() for result in results],
        outcomes=outcomes[:, row].tolist(),
    )


def shrink_image(file: bytes) -> tuple[str, tuple[int, int]]:
    """Make an image file small enough for a page.

    Without EXIF rotation, as models see it (``scoring``).

    Returns:
        A WebP ``data:`` address, and width and height: at most ``IMAGE_SIDE``, never enlarged.
    """
    image = PILImage.open(io.BytesIO(file)).convert("RGB")
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), image.size
