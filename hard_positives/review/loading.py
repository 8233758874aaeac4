"""A dataset's folder in, rows that people can judge and their pictures out."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from datasets import Dataset

from hard_positives.review.rows import Row
from hard_positives.suite.benchmarks import find_benchmark
from hard_positives.suite.columns import Columns
from hard_positives.suite.comparisons import Comparisons, read_comparisons
from hard_positives.suite.loading import load_rows
from hard_positives.suite.rows import about_rows, open_image

PICTURE_SIDE = 1024  # pixels of the longer side, at most


@dataclass(frozen=True)
class ReviewedFolder:
    """A dataset's folder that people judge.

    Attributes:
        folder: Where it is.
        splits: Its rows as a dataset, by split.
        rows: The same as people judge them, those of all splits one after another.
        comparisons: Their pictures and captions.
        anchors: Of each row, the place of its picture among these.
    """

    folder: Path
    splits: dict[str, Dataset]
    rows: list[Row]
    comparisons: Comparisons
    anchors: list[int]

    @cached_property
    def order(self) -> list[int]:
        """The places of distinct rows as they are shown: at random, the same for everyone.

        So whoever stops early has judged a random sample, and people have judged the same rows.
        """
        first = {row.key: place for place, row in reversed(list(enumerate(self.rows)))}
        return [first[key] for key in sorted(first)]  # of hashes

    def picture(self, place: int) -> bytes:
        """The picture of a row as PNG, at most `PICTURE_SIDE` pixels, as models see it."""
        image = open_image(self.comparisons, self.anchors[place])
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def open_folder(folder: str | os.PathLike, splits: Sequence[str] | None = None) -> ReviewedFolder:
    """Read a dataset's folder; see `hard_positives.write_accepted` for which.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Rows that are no image with captions, or what `hard_positives.evaluate` raises
            for a dataset.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"Expected {folder} to be a dataset's folder, got no such folder. Make one with "
            "hard-positives build, generate or augment."
        )
    known = find_benchmark(folder)
    columns = Columns() if known is None else known.read_columns
    if columns.pairs or columns.caption is not None:
        raise ValueError(
            f"Expected rows of an image with captions, got those of {folder} with several images. "
            "Review what hard-positives augment makes of them."
        )
    loaded = load_rows(folder, splits).splits
    has_images = all(columns.image in rows.column_names for rows in loaded.values())
    if not has_images and columns == Columns():
        columns = replace(columns, text_only=True)
    comparisons = read_comparisons(loaded, columns)
    rows, anchors = _rows(loaded, columns, comparisons)
    return ReviewedFolder(Path(folder), loaded, rows, comparisons, anchors)


def _rows(
    splits: dict[str, Dataset], columns: Columns, comparisons: Comparisons
) -> tuple[list[Row], list[int]]:
    """Make a row of each row of the dataset; of captions alone, of its first comparison."""
    first = [at for at, name in enumerate(comparisons.names) if name in ("", "0")]
    anchors = comparisons.anchors[first].tolist()
    known_by = comparisons.caption_digests
    if not columns.text_only:
        known_by = comparisons.pictures.file_digests
    candidates = comparisons.listed(comparisons.candidates)
    labels = comparisons.listed(comparisons.labels)
    rows: list[Row] = []
    for split, of_split in splits.items():
        places = range(len(rows), len(rows) + len(of_split))
        files = [known_by[anchors[at]] for at in places]
        about = about_rows(of_split, split, files, columns.category, columns.cluster, columns.set)
        for at, category, cluster in zip(places, about["category"], about["cluster"], strict=True):
            captions = [comparisons.captions[one] for one in candidates[first[at]]]
            true, image = list(map(bool, labels[first[at]])), ""
            if columns.text_only:
                captions, true = [comparisons.captions[anchors[at]], *captions], [True, *true]
            else:
                image = comparisons.image_digests[anchors[at]]
            rows.append(
                Row(split, str(category), str(cluster), image, tuple(captions), tuple(true))
            )
    return rows, anchors
