"""Rows of any dataset in, comparisons out: an anchor, its candidates, and which of them are true.

    an image and captions            -> the image among the captions
    a caption and images             -> the caption among the images
    pairs of an image and a caption  -> each image among all captions, each caption among all images
    true and false captions alone    -> each true one among the others

`Columns` says what the columns of a dataset are. Each distinct image and caption is found here
once, whatever the number of rows: the benchmark's 27,443 rows of REPLACE hold 8,041 distinct images
and 50,891 distinct captions. What comes after this knows comparisons and no columns. No model here.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Image, List, concatenate_datasets

from hard_positives.lookup import near_columns
from hard_positives.suite.columns import DIRECTIONS, Columns
from hard_positives.suite.rows import column_values, picture_digests

_BLOCK = 4096  # comparisons that are looked up at once


@dataclass(frozen=True)
class Pictures:
    """Distinct pictures, by the bytes of their files and the box that is cut out.

    Attributes:
        columns: Datasets of one column `image` with undecoded files.
        places: For each picture, the number of a column and a row of it that hold the file.
        file_digests: SHA-256 of each picture's file.
        boxes: What is cut out of each: left, top, width, height; or None.
    """

    columns: list[Dataset]
    places: list[tuple[int, int]]
    file_digests: list[str]
    boxes: list[tuple[int, int, int, int] | None]

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def digests(self) -> list[str]:
        """What each picture is known by: its file's SHA-256, or that of file and box."""
        return [
            box_digest(digest, box)
            for digest, box in zip(self.file_digests, self.boxes, strict=True)
        ]


def box_digest(file_digest: str, box: tuple[int, int, int, int] | None) -> str:
    """Name a picture: by its file's SHA-256, or by that and the box that is cut out."""
    if box is None:
        return file_digest
    return hashlib.sha256(f"{file_digest} {box}".encode()).hexdigest()


@dataclass(frozen=True)
class Comparisons:
    """N comparisons with M candidates in all, over distinct pictures and captions.

    Attributes:
        pictures: The distinct pictures.
        captions: The distinct captions.
        directions: (N,) of `DIRECTIONS`, by their numbers: 0, the anchor is a picture and the
            candidates are captions; 1, the other way round; 2, both are captions.
        anchors: (N,) places in `pictures` or `captions`.
        candidates: (M,) places in `captions` or `pictures`, those of a comparison side by side.
        offsets: (N + 1,) where the candidates of each comparison begin and end.
        labels: (M,) bool, whether a candidate is true of its anchor.
        rows: (N,) the row of the dataset that each comparison is of.
        names: What tells the comparisons of a row apart; empty texts where a row is one.
    """

    pictures: Pictures
    captions: list[str]
    directions: np.ndarray
    anchors: np.ndarray
    candidates: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    names: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.anchors)

    @property
    def image_digests(self) -> list[str]:
        """What each distinct picture is known by, as 64 hexadecimal digits."""
        return self.pictures.digests

    @cached_property
    def caption_digests(self) -> list[str]:
        """SHA-256 of each distinct caption."""
        return [hashlib.sha256(text.encode()).hexdigest() for text in self.captions]

    @cached_property
    def pairs(self) -> np.ndarray:
        """(M, 2) the picture and the caption of every candidate, or the two captions."""
        lengths = np.diff(self.offsets)
        pairs = np.stack([np.repeat(self.anchors, lengths), self.candidates], axis=1)
        turned = np.repeat(self.directions, lengths) == 1
        pairs[turned] = pairs[turned, ::-1]
        return pairs

    def blocks(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield comparisons of one direction and number of candidates, some thousand at once.

        Yields:
            The direction; (n,) places of the comparisons; (n, K) places of their candidates among
            the M.
        """
        lengths = np.diff(self.offsets)
        for direction, length in np.unique(np.stack([self.directions, lengths]), axis=1).T:
            alike = np.flatnonzero((self.directions == direction) & (lengths == length))
            for start in range(0, len(alike), _BLOCK):
                block = alike[start : start + _BLOCK]
                yield DIRECTIONS[direction], block, self.offsets[block, None] + np.arange(length)

    def listed(self, values: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """Give each comparison its own of M values: (N, K), or a list of N where K differs."""
        lengths = np.diff(self.offsets)
        if (lengths == lengths[0]).all():
            return values.reshape(len(self), -1)
        return np.split(values, self.offsets[1:-1])

    def digests_of(self, comparison: int) -> list[str]:
        """Tell the pictures of a comparison by their digests: the anchor, or all candidates."""
        if self.directions[comparison] == 2:
            return []
        picture_places = self.pairs[self.offsets[comparison] : self.offsets[comparison + 1], 0]
        places = picture_places[:1] if self.directions[comparison] == 0 else picture_places
        return [self.pictures.digests[place] for place in places]


def read_comparisons(
    rows: Dataset | Mapping[str, Dataset], columns: Columns | None = None
) -> Comparisons:
    """Read the comparisons of a dataset, or of its splits one after another.

    Args:
        rows: One split, or several by name with the same columns.
        columns: What its columns are.

    Raises:
        TypeError: `rows` is no dataset, or a column is of a wrong type.
        ValueError: A column is missing, there are no rows, a row has no positive or no negative, a
            label that fits none of its candidates, or an image that cannot be read.

    Examples:
        >>> from datasets import load_dataset
        >>> rows = load_dataset("hard_positives_dataset", split="swap")
        >>> comparisons = read_comparisons(rows)
        >>> len(comparisons), len(comparisons.pairs), len(comparisons.pictures)
        (1000, 3000, 500)
    """
    columns = columns or Columns()
    splits = list(rows.values()) if isinstance(rows, Mapping) else [rows]
    for split in splits:
        check_columns(split, columns)
    names = [*columns.image_columns, *columns.text_columns, columns.label, columns.crop]
    names = list(dict.fromkeys(filter(None, names)))
    together = concatenate_datasets([split.select_columns(names) for split in splits])
    reader = _Reader(together, columns)
    if columns.text_only:
        reader.read_texts()
    elif columns.pairs:
        reader.read_pairs()
    else:
        reader.read_rows()
    return reader.comparisons()


def check_columns(rows: Dataset, columns: Columns) -> None:
    """Raise unless a dataset has rows and the columns, of types that they can have."""
    if not isinstance(rows, Dataset):
        raise TypeError(
            f"Expected the rows to be a datasets.Dataset, got {type(rows).__name__}. "
            "Pass one split, such as load_dataset(..., split='replace')."
        )
    missing = [name for name in columns.needed if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"Expected the dataset to have the columns {columns.needed}, got "
            f"{rows.column_names}. Rename or add {missing}, or say which columns to take "
            f"(--image, --positive, --negative, ...).{near_columns(missing, rows.column_names)}"
        )
    for name in columns.image_columns:
        if not holds_images(rows, name):
            raise TypeError(
                f"Expected the column {name!r} to be of type Image, got {rows.features[name]}. Use "
                f"dataset.cast_column({name!r}, datasets.Image())."
            )
    if len(rows) == 0:
        raise ValueError("Expected the dataset to have rows, got none. Check the split or filter.")


def holds_images(rows: Dataset, name: str) -> bool:
    """Whether a dataset has a column of this name, of images or of lists of images."""
    feature = rows.features.get(name)
    return isinstance(getattr(feature, "feature", feature), Image)


class _Reader:
    """Collects distinct pictures and captions, and the comparisons that are made of them."""

    def __init__(self, rows: Dataset, columns: Columns) -> None:
        self.rows, self.columns = rows, columns
        self.pictures = Pictures([], [], [], [])
        self.places_of_pictures: dict[tuple, int] = {}
        self.captions: dict[str, int] = {}
        self.anchors: list[int] = []
        self.candidates: list[list[int]] = []
        self.labels: list[list[bool]] = []
        self.directions: list[int] = []
        self.numbers: list[int] = []
        self.names: list[str] = []

    def read_rows(self) -> None:
        """Make one comparison of each row."""
        columns, to_images = self.columns, self.columns.caption is not None
        read = self._pictures_in if to_images else self._texts_in
        anchors = (
            self._texts_in(columns.caption)
            if to_images
            else self._pictures_in(columns.image, self._boxes())
        )
        _refuse_lists(anchors, columns.caption or columns.image)
        of_column = [read(name) for name in columns.compared]
        candidates = [list(chain(*cells)) for cells in zip(*of_column, strict=True)]
        if columns.candidates:
            labels = self._labels(candidates)
        else:
            is_true = [name in columns.positives for name in columns.compared]
            labels = [
                [true for true, cell in zip(is_true, cells, strict=True) for _ in cell]
                for cells in zip(*of_column, strict=True)
            ]
        _check_labels(labels)
        self.anchors = [anchor for [anchor] in anchors]
        self.candidates, self.labels = candidates, labels
        self.directions = [int(to_images)] * len(self.rows)
        self.numbers, self.names = list(range(len(self.rows))), [""] * len(self.rows)

    def read_texts(self) -> None:
        """Make of each row a comparison for each of its true captions."""
        columns = self.columns
        true, false = (
            [list(chain(*cells)) for cells in zip(*map(self._texts_in, names), strict=True)]
            for names in (columns.positives, columns.negatives)
        )
        for row, (positives, negatives) in enumerate(zip(true, false, strict=True)):
            if len(positives) < 2 or not negatives:
                raise ValueError(
                    "Expected every row to have two true captions and a false one for text_only, "
                    f"got {len(positives)} and {len(negatives)} in row {row}. Leave out such rows."
                )
            for place, anchor in enumerate(positives):
                others = positives[:place] + positives[place + 1 :]
                self.anchors.append(anchor)
                self.candidates.append(others + negatives)
                self.labels.append([True] * len(others) + [False] * len(negatives))
                self.directions.append(2)
                self.numbers.append(row)
                self.names.append(str(place))

    def read_pairs(self) -> None:
        """Make of each row a comparison for each image and for each caption."""
        images = [
            self._one_each(image, self._pictures_in(image)) for image, _ in self.columns.pairs
        ]
        texts = [self._one_each(text, self._texts_in(text)) for _, text in self.columns.pairs]
        for row in range(len(self.rows)):
            sides = [column[row] for column in images], [column[row] for column in texts]
            for direction, (anchors, others) in enumerate((sides, sides[::-1])):
                for place, anchor in enumerate(anchors):
                    self.anchors.append(anchor)
                    # The right one first, the others in their order.
                    rest = [other for at, other in enumerate(others) if at != place]
                    self.candidates.append([others[place], *rest])
                    self.labels.append([True] + [False] * len(rest))
                    self.directions.append(direction)
                    self.numbers.append(row)
                    self.names.append(self.columns.pairs[place][direction])

    def comparisons(self) -> Comparisons:
        """Return all that was read."""
        lengths = list(map(len, self.candidates))
        return Comparisons(
            pictures=self.pictures,
            captions=list(self.captions),
            directions=np.array(self.directions, dtype=np.int8),
            anchors=np.array(self.anchors),
            candidates=np.fromiter(chain(*self.candidates), int, sum(lengths)),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            labels=np.fromiter(chain(*self.labels), bool, sum(lengths)),
            rows=np.array(self.numbers),
            names=self.names,
        )

    def _texts_in(self, name: str) -> list[list[int]]:
        """Read a column of texts or of lists of texts: the places of each row's captions."""
        cells = _as_lists(column_values(self.rows, name))
        wrong = [row for row, cell in enumerate(cells) if not all(type(t) is str for t in cell)]
        if wrong:
            odd = next(text for text in cells[wrong[0]] if type(text) is not str)
            raise TypeError(
                f"Expected the column {name!r} to hold strings, got {odd!r} in row "
                f"{wrong[0]} ({len(wrong)} such rows). Remove or repair these rows."
            )
        known = self.captions
        return [[known.setdefault(text, len(known)) for text in cell] for cell in cells]

    def _pictures_in(self, name: str, boxes: Sequence[Any] | None = None) -> list[list[int]]:
        """Read a column of images or of lists of images: the places of each row's pictures."""
        cells, offsets = picture_cells(self.rows, name)
        boxes = boxes or [None] * len(cells)
        pictures, known, number = self.pictures, self.places_of_pictures, len(self.pictures.columns)
        pictures.columns.append(cells)
        places = []
        for row, (digest, box) in enumerate(zip(picture_digests(cells), boxes, strict=True)):
            place = known.setdefault((digest, box), len(known))
            if place == len(pictures):
                pictures.places.append((number, row))
                pictures.file_digests.append(digest)
                pictures.boxes.append(box)
            places.append(place)
        return [places[a:b] for a, b in pairwise(offsets)]

    def _boxes(self) -> list[tuple[int, int, int, int]] | None:
        name = self.columns.crop
        if name is None:
            return None
        values = list(map(as_box, column_values(self.rows, name)))
        for row, box in enumerate(values):
            numbers = isinstance(box, list) and all(isinstance(n, (int, float)) for n in box)
            if not (numbers and len(box) == 4 and min(box[:2]) >= 0 and min(box[2:]) >= 1):
                raise ValueError(
                    f"Expected the column {name!r} to hold boxes of left, top, width and height in "
                    f"pixels, got {box!r} in row {row}. Repair or remove the row."
                )
        return [tuple(round(number) for number in box) for box in values]

    def _labels(self, candidates: Sequence[Sequence[int]]) -> list[list[bool]]:
        """Read which candidate of each row is true."""
        name, feature = self.columns.label, self.rows.features[self.columns.label]
        values = column_values(self.rows, name)
        if isinstance(feature, ClassLabel):
            # Either the names are the candidates themselves, or the numbers are places.
            names = [None if value is None else feature.names[value] for value in values]
            rows = zip(names, candidates, strict=True)
            if all(self._is_true(name, places) is not None for name, places in rows):
                values = names
        labels = []
        for row, (value, places) in enumerate(zip(values, candidates, strict=True)):
            of_row = self._is_true(value, places)
            if of_row is None:
                raise ValueError(
                    f"Expected the column {name!r} to hold the place of the right one among the "
                    f"{len(places)} of {list(self.columns.candidates)} from 0, itself, or "
                    f"{len(places)} of 1 and 0, got {value!r} in row {row}. Repair or remove the "
                    "row."
                )
            labels.append(of_row)
        return labels

    def _is_true(self, value: Any, places: Sequence[int]) -> list[bool] | None:
        if isinstance(value, list) and len(value) == len(places) and set(value) <= {0, 1}:
            return [bool(true) for true in value]
        if type(value) is str and self.columns.caption is None:
            wanted = self.captions.get(value)
            # Of a caption that is there twice, as flawed rows have it, one is false: a tie.
            value = list(places).index(wanted) if wanted in places else None
        if type(value) is int and 0 <= value < len(places):
            return [place == value for place in range(len(places))]
        return None

    def _one_each(self, name: str, cells: Sequence[Sequence[int]]) -> list[int]:
        _refuse_lists(cells, name)
        return [place for [place] in cells]


def picture_cells(rows: Dataset, name: str) -> tuple[Dataset, np.ndarray]:
    """Return the undecoded pictures of a column, and where those of each row begin and end."""
    feature = rows.features[name]
    column = rows.select_columns([name]).rename_columns({name: "image"})
    if isinstance(feature, Image):
        cells = column.cast_column("image", Image(decode=False))
        return cells, np.arange(len(cells) + 1)
    column = column.cast_column("image", List(Image(decode=False)))
    lists = pa.concat_arrays(
        [
            chunk
            for table in column.with_format("arrow").iter(1024)
            for chunk in table["image"].chunks
        ]
    )
    lengths = [length or 0 for length in lists.value_lengths().to_pylist()]
    table = pa.table({"image": lists.flatten()})
    cells = Dataset(table).cast_column("image", Image(decode=False))
    return cells, np.concatenate([[0], np.cumsum(lengths)])


def as_box(value: Any) -> Any:
    """Return left, top, width and height of a cell as a list; what is no box, as it is."""
    if isinstance(value, Mapping) and set(value) == {"x", "y", "w", "h"}:
        return [value[key] for key in ("x", "y", "w", "h")]
    return value


def _as_lists(values: Iterable[Any]) -> list[list]:
    return [value if isinstance(value, list) else [value] for value in values]


def _refuse_lists(cells: Sequence[Sequence[int]], name: str) -> None:
    wrong = [row for row, cell in enumerate(cells) if len(cell) != 1]
    if wrong:
        raise ValueError(
            f"Expected the column {name!r} to hold one in every row, got {len(cells[wrong[0]])} in "
            f"row {wrong[0]} ({len(wrong)} such rows). Make a row for each."
        )


def _check_labels(labels: Sequence[Sequence[bool]]) -> None:
    for kind, wanted in (("positive", True), ("negative", False)):
        without = [row for row, of_row in enumerate(labels) if wanted not in of_row]
        if without:
            raise ValueError(
                f"Expected every row to have at least one {kind}, got none in row {without[0]} "
                f"({len(without)} such rows). Remove or repair these rows."
            )
