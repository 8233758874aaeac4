"""Rows worth looking at: which of many thousand to show, with their pictures.

Chooses only; `pages` shows them. Captions and logits are those of the result; a dataset gives
pictures only, and only those whose bytes were scored (`pictures`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from hard_positive_metric import row_outcomes
from hard_positives.results.result import EvaluationResult, values_of
from hard_positives.suite.columns import IMAGE_TO_TEXT, TEXT_TO_IMAGE, Columns

if TYPE_CHECKING:
    from datasets import Dataset

    from hard_positives.results.pictures import Picture, ScoredPictures

GALLERY_ROWS = 240
GALLERY_BYTES = 6_000_000  # of pictures and captions, so that a page stays far under 10 MB


@dataclass(frozen=True)
class Candidate:
    """What an anchor is compared with.

    Attributes:
        kind: "caption" or "image" for the original, "hard positive", "hard negative".
        is_true: Whether it is true of the anchor.
        text: A caption; empty for a picture.
        picture: None for a caption, and where it could not be had.
        logits: For each result.
    """

    kind: str
    is_true: bool
    text: str
    picture: "Picture | None"
    logits: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """One comparison of the gallery.

    Attributes:
        id: Of the comparison.
        category: Of the row.
        substitution: Such as "white > ivory"; may be empty.
        flaws: Why the row should not count; mostly empty.
        text: The caption that images were compared for; empty where the anchor is a picture.
        picture: The picture that captions were compared for, made small; None where the anchor is
            a caption, and where it could not be had.
        candidates: As scored.
        outcomes: For each result one of `hard_positive_metric.OUTCOMES`.
    """

    id: str
    category: str
    substitution: str
    flaws: list[str]
    text: str
    picture: "Picture | None"
    candidates: list[Candidate]
    outcomes: list[str]

    @property
    def pictures(self) -> "list[Picture | None]":
        """All pictures that belong to it; None for each that could not be had."""
        if not self.text:
            return [self.picture]
        return [candidate.picture for candidate in self.candidates if not candidate.text]

    def others(self, candidate: Candidate) -> list[str]:
        """The captions that a candidate's edits show against: the original, or all of its edits."""
        first, *rest = self.candidates
        return [of.text for of in rest] if candidate is first else [first.text]

    @property
    def size(self) -> int:
        """About how many bytes of a page it takes."""
        texts = [self.text, *(candidate.text for candidate in self.candidates)]
        addresses = [picture.address for picture in self.pictures if picture]
        return sum(map(len, addresses)) + sum(len(text.encode()) for text in texts)


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
        return sum(None in example.pictures for example in self.examples)


def choose_examples(
    results: Sequence[EvaluationResult],
    rows_by_split: "Mapping[str, Dataset]",
    columns: Columns | None = None,
    *,
    share: float = 1.0,
) -> Gallery:
    """Choose rows of all kinds, and fetch their pictures.

    One result: rows of every category, and in it of every outcome and substitution, by turns.
    Several: the same among the rows on which their outcomes differ; all rows where none do.

    Args:
        results: Over the same rows (`comparison.check_same_rows`).
        rows_by_split: The dataset that was scored, from `sources.load_source`; may lack rows, or
            hold others: a picture is taken only if its bytes are those that were scored.
        columns: What the columns of the dataset are.
        share: Of `GALLERY_ROWS` and `GALLERY_BYTES`, where several galleries share a page.
    """
    labels = values_of(results[0].scores, "labels")
    outcomes = np.stack([row_outcomes(r.logits, labels).outcome for r in results])  # (M, N)
    differing = np.flatnonzero((outcomes != outcomes[0]).any(axis=0))
    candidates = differing if len(differing) else np.arange(outcomes.shape[1])
    scores = results[0].scores
    keys = [
        np.array(scores["category"].to_pylist())[candidates],
        np.array([" ".join(column) for column in outcomes[:, candidates].T]),
        np.array(scores["substitution"].to_pylist())[candidates],
    ]
    order = _by_turns(np.arange(len(candidates)), keys)[: int(GALLERY_ROWS * share)]
    pictures = {}
    if rows_by_split:
        from hard_positives.results.pictures import ScoredPictures  # needs `datasets`

        for split, rows in rows_by_split.items():
            of_split = scores.filter(pc.equal(scores["split"], split))
            pictures[split] = ScoredPictures(rows, columns or Columns(), of_split)
    examples, size = {}, 0
    for row in candidates[order].tolist():
        example = _example(row, results, outcomes, pictures)
        if size + example.size <= GALLERY_BYTES * share:
            examples[row] = example
            size += example.size
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
    pictures: Mapping[str, "ScoredPictures"],
) -> Example:
    of_row = results[0].scores.slice(row, 1).to_pylist()[0]
    of_split = pictures.get(of_row["split"])
    found = of_split.find(of_row) if of_split else [None] * len(of_row["images"])
    to_captions = of_row["direction"] == IMAGE_TO_TEXT
    number = len(of_row["labels"])
    kinds = _kinds(of_row["labels"], "image" if of_row["direction"] == TEXT_TO_IMAGE else "caption")
    to_images = of_row["direction"] == TEXT_TO_IMAGE
    texts = [""] * number if to_images else of_row["captions"][-number:]
    of_candidates = found if to_images else [None] * number
    logits = list(zip(*(r.scores["logits"][row].as_py() for r in results), strict=True))
    return Example(
        id=of_row["id"],
        category=of_row["category"],
        substitution=of_row["substitution"],
        flaws=of_row["flaws"],
        text="" if to_captions else of_row["captions"][0],
        picture=found[0] if to_captions else None,
        candidates=list(map(Candidate, kinds, of_row["labels"], texts, of_candidates, logits)),
        outcomes=outcomes[:, row].tolist(),
    )


def _kinds(labels: Sequence[bool], original: str) -> list[str]:
    kinds = ["hard positive" if label else "hard negative" for label in labels]
    kinds[labels.index(True)] = original
    return kinds
