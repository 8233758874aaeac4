"""Rows in, distinct images and distinct captions out, and where each row finds its own.

The benchmark repeats itself: 27,443 rows of REPLACE hold 8,041 distinct images and 50,891 distinct
captions. What is found here is what models (``encoders``) run over. No model here.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PILImage

from hard_positives_dataset.images import MAX_IMAGE_BYTES, open_image_bytes

CAPTION_COLUMNS = ("caption", "hard_positive", "hard_negative")


def check_columns(dataset: Dataset, caption_columns: Sequence[str] = CAPTION_COLUMNS) -> None:
    """Raise unless ``dataset`` has rows, an image column and the caption columns."""
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"Expected the rows to be a datasets.Dataset, got {type(dataset).__name__}. "
            "Pass one split, such as load_dataset(..., split='replace')."
        )
    missing = [name for name in ("image", *caption_columns) if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"Expected the dataset to have the columns {['image', *caption_columns]}, got "
            f"{dataset.column_names}. Rename or add {missing}."
        )
    if not isinstance(dataset.features["image"], Image):
        raise TypeError(
            f"Expected the column 'image' to be of type Image, got {dataset.features['image']}. "
            "Use dataset.cast_column('image', datasets.Image())."
        )
    if len(dataset) == 0:
        raise ValueError("Expected the dataset to have rows, got none. Check the split or filter.")


@dataclass(frozen=True)
class RowIndex:
    """What N rows need to have encoded, and where each row finds it.

    Attributes:
        images: A dataset whose column ``image`` holds undecoded files.
        first_rows: For each distinct image, a row of ``images`` that holds it.
        image_digests: SHA-256 of each distinct image's bytes.
        captions: The distinct captions.
        image_of_row: (N,) index into ``first_rows``.
        captions_of_row: (N, K) index into ``captions``.
    """

    images: Dataset
    first_rows: list[int]
    image_digests: list[str]
    captions: list[str]
    image_of_row: np.ndarray
    captions_of_row: np.ndarray

    def __len__(self) -> int:
        return len(self.image_of_row)

    @cached_property
    def caption_digests(self) -> list[str]:
        """SHA-256 of each distinct caption."""
        return [hashlib.sha256(text.encode()).hexdigest() for text in self.captions]


def index_rows(dataset: Dataset, caption_columns: Sequence[str] = CAPTION_COLUMNS) -> RowIndex:
    """Find the distinct images (by their bytes) and captions (by their text) of a dataset."""
    images = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
    digests = list(_image_digests(images))
    distinct = {digest: place for place, digest in enumerate(dict.fromkeys(digests))}
    image_of_row = np.array([distinct[digest] for digest in digests])
    first_rows = np.unique(image_of_row, return_index=True)[1].tolist()

    columns = [_values(dataset, name) for name in caption_columns]
    _check_captions(columns, caption_columns)
    captions = {text: place for place, text in enumerate(dict.fromkeys(chain(*columns)))}
    captions_of_row = np.array([[captions[text] for text in column] for column in columns]).T
    return RowIndex(
        images, first_rows, list(distinct), list(captions), image_of_row, captions_of_row
    )


def _image_digests(images: Dataset) -> Iterator[str]:
    tables = images.with_format("arrow").iter(batch_size=256)  # Arrow: no file is copied
    cells = (cell for table in tables for cell in table["image"])
    previous, digest = None, ""
    for row, cell in enumerate(cells):
        file = _file_buffer(cell, row)
        # Rows of one image mostly stand together, and comparing is faster.
        if previous is None or not file.equals(previous):
            previous, digest = file, hashlib.sha256(file).hexdigest()
        yield digest


def _file_buffer(cell: pa.StructScalar, row: int) -> pa.Buffer:
    if cell.is_valid and cell["bytes"].is_valid:
        return cell["bytes"].as_buffer()
    return pa.py_buffer(read_image_file(cell.as_py(), row))


def _check_captions(columns: list[list], names: Sequence[str]) -> None:
    for name, column in zip(names, columns, strict=True):
        wrong = [row for row, text in enumerate(column) if not isinstance(text, str)]
        if wrong:
            raise TypeError(
                f"Expected the column {name!r} to hold strings, got {column[wrong[0]]!r} in row "
                f"{wrong[0]} ({len(wrong)} such rows). Remove or repair these rows."
            )


def about_rows(
    rows: Dataset, split: str, image_digests: Sequence[str]
) -> dict[str, list[str] | list[list[str]]]:
    """Bring into one form what is known of rows beside image and captions.

    Whole numbers become text and class labels their names. Without ``id``, rows are numbered;
    without ``category``, a split is one; without ``image_id``, rows of the same picture belong
    together; without ``flaws``, or where these are null, a row has none.

    Args:
        rows: One split.
        split: Its name.
        image_digests: What to know each row's image by.

    Returns:
        ``id``, ``category``, ``substitution``, ``image_id`` and ``flaws``, one entry for each row.

    Raises:
        TypeError: A column is of a wrong type.
        ValueError: A column has nulls, or two rows share an ``id``. All errors name the column.
    """
    about = {
        "id": [f"{split}-{place:05d}" for place in range(len(rows))],
        "category": [split] * len(rows),
        "substitution": [""] * len(rows),
        "image_id": list(image_digests),
        "flaws": [[] for _ in range(len(rows))],
    }
    for name in about:
        if name in rows.column_names:
            about[name] = _flaws(rows) if name == "flaws" else _texts(rows, name, split)
    repeated = [value for value, times in Counter(about["id"]).items() if times > 1]
    if repeated:
        raise ValueError(
            f"Expected the column 'id' of split {split!r} to name every row once, got "
            f"{repeated[0]!r} and {len(repeated) - 1} others several times. Remove repeated rows, "
            "or the column: rows are then numbered."
        )
    return about


def _texts(rows: Dataset, name: str, split: str) -> list[str]:
    feature, values = rows.features[name], _values(rows, name)
    nulls = [row for row, value in enumerate(values) if value is None]
    if nulls and name == "substitution":
        values = ["" if value is None else value for value in values]
    elif nulls:
        raise ValueError(
            f"Expected the column {name!r} of split {split!r} to have a value in every row, got "
            f"null in {len(nulls)} rows, first {nulls[0]}. Fill it, or remove these rows."
        )
    if isinstance(feature, ClassLabel):
        return [feature.names[value] for value in values]
    kinds = {type(value) for value in values}
    if not kinds <= {str} and not kinds <= {int, str}:
        raise TypeError(
            f"Expected the column {name!r} of split {split!r} to hold text, whole numbers or class "
            f"labels, got {feature}. Use dataset.cast_column."
        )
    return list(map(str, values))


def _flaws(rows: Dataset) -> list[list[str]]:
    values = [[] if value is None else value for value in _values(rows, "flaws")]
    if not all(
        isinstance(value, list) and all(isinstance(flaw, str) for flaw in value) for value in values
    ):
        raise TypeError(
            f"Expected the column 'flaws' to hold lists of text, got {rows.features['flaws']}. Use "
            "dataset.cast_column, and [] for a row without flaws."
        )
    return values


def _values(rows: Dataset, name: str) -> list:
    try:
        return rows.with_format("arrow")[name].to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected the column {name!r} to hold UTF-8 text, got other bytes ({error}). The data "
            "is damaged: build or download it again."
        ) from error


def read_image_file(cell: dict[str, Any] | None, row: int) -> bytes:
    """Return the bytes of an undecoded cell of an image column.

    A file that the cell names must be a regular one. Which files it may name is decided where the
    rows were loaded (``sources``).

    Raises:
        ValueError: There is no image, or no regular file of a size that images have.
    """
    if cell is not None and cell["bytes"] is not None:
        return cell["bytes"]
    if cell is None or cell["path"] is None:
        raise ValueError(
            f"Expected row {row} to have an image, got none. Remove or repair the row."
        )
    try:
        return Path(regular_file(cell["path"])).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected the image of row {row} to be a file that can be read, got "
            f"{cell['path']!r}: {getattr(error, 'strerror', None) or error}. Repair or remove the "
            "row."
        ) from error


def regular_file(path: str) -> str:
    """Return the path of a file that may be read as an image; nothing is opened.

    Raises:
        ValueError: It is missing, a folder, a device, a pipe or a socket, or of more than
            ``MAX_IMAGE_BYTES``.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValueError(f"no such file ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("no regular file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ValueError(f"a file of {status.st_size:,} bytes, more than {MAX_IMAGE_BYTES:,}")
    return path


def decode_image(cell: dict[str, Any] | None, row: int) -> PILImage.Image:
    """Decode an undecoded cell of an image column to RGB.

    Not by datasets' own decoding, which rotates by EXIF: the published loader does not. Formats,
    size and pixels are limited (``hard_positives_dataset.images``).

    Raises:
        ValueError: There is no image, or the bytes are no whole one within the limits.
    """
    file = read_image_file(cell, row)
    try:
        return open_image_bytes(file).convert("RGB")
    except (ValueError, OSError) as error:
        raise ValueError(
            f"Expected row {row} to hold a readable image, got {error}. Repair or remove the row."
        ) from error


def open_image(rows: RowIndex, place: int) -> PILImage.Image:
    """Decode a distinct image; see :func:`decode_image`.

    Raises:
        ValueError: Also where a file has changed since it was indexed: its embedding would be kept
            under the digest of the earlier one.
    """
    row = rows.first_rows[place]
    cell = rows.images[row]["image"]
    file = read_image_file(cell, row)
    if cell["bytes"] is None and hashlib.sha256(file).hexdigest() != rows.image_digests[place]:
        raise ValueError(
            f"Expected the image file of row {row} to stay as it is while it is scored, got other "
            f"bytes in {cell['path']}. Run the same again."
        )
    return decode_image({"bytes": file, "path": None}, row)


class PreparedImages(torch.utils.data.Dataset):
    """The distinct images as a model's processor prepares them, for a ``DataLoader``."""

    def __init__(self, rows: RowIndex, image_processor: Callable):
        self.rows = rows
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.rows.first_rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        inputs = self.image_processor(open_image(self.rows, place), return_tensors="pt")
        return {name: values[0] for name, values in inputs.items()}
