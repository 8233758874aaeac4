"""Cells of a dataset in, what they stand for out: pictures, texts, and what is known of a row.

Cells come from other people: what is no picture or no text is refused with the number of its row.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import ClassLabel, Dataset
from PIL import Image as PILImage

from hard_positives_dataset.images import MAX_IMAGE_BYTES, open_image_bytes

if TYPE_CHECKING:
    from hard_positives.suite.comparisons import Comparisons


def picture_digests(images: Dataset) -> Iterator[str]:
    """Yield the SHA-256 of every file in the undecoded column `image`."""
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


def about_rows(
    rows: Dataset,
    split: str,
    image_digests: Sequence[str],
    category: str | None = None,
    cluster: str | None = None,
    together: str | None = None,
) -> dict[str, list[str] | list[list[str]]]:
    """Bring into one form what is known of rows beside images and captions.

    Whole numbers become text and class labels their names. Without `id`, rows are numbered;
    without `category`, a split is one; without `image_id`, rows of the same picture belong
    together; without `flaws`, or where these are null, a row has none.

    Args:
        rows: One split.
        split: Its name.
        image_digests: What to know each row's image by.
        category: The column of categories, if it has another name.
        cluster: The column of what is not independent, if it is another than `image_id`.
        together: The column of sets, if there are any.

    Returns:
        `id`, `category`, `substitution`, `cluster`, `set` and `flaws`, one entry for each row.

    Raises:
        TypeError: A column is of a wrong type.
        ValueError: A column has nulls, or two rows share an `id`. All errors name the column.
    """
    about: dict[str, Any] = {
        "id": [f"{split}-{place:05d}" for place in range(len(rows))],
        "category": [split] * len(rows),
        "substitution": [""] * len(rows),
        "cluster": list(image_digests),
        "set": [None] * len(rows),
        "flaws": [[] for _ in range(len(rows))],
    }
    columns = {name: name for name in about}
    columns |= {"category": category or "category", "cluster": cluster or together or "image_id"}
    columns["set"] = together or ""  # a column `set` of others may be anything
    for name, column in columns.items():
        if column in rows.column_names:
            about[name] = _flaws(rows) if name == "flaws" else _texts(rows, column, split)
    repeated = [value for value, times in Counter(about["id"]).items() if times > 1]
    if repeated:
        raise ValueError(
            f"Expected the column 'id' of split {split!r} to name every row once, got "
            f"{repeated[0]!r} and {len(repeated) - 1} others several times. Remove repeated rows, "
            "or the column: rows are then numbered."
        )
    return about


def _texts(rows: Dataset, name: str, split: str) -> list[str]:
    feature, values = rows.features[name], column_values(rows, name)
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
    values = [[] if value is None else value for value in column_values(rows, "flaws")]
    if not all(
        isinstance(value, list) and all(isinstance(flaw, str) for flaw in value) for value in values
    ):
        raise TypeError(
            f"Expected the column 'flaws' to hold lists of text, got {rows.features['flaws']}. Use "
            "dataset.cast_column, and [] for a row without flaws."
        )
    return values


def column_values(rows: Dataset, name: str) -> list:
    """Return a column as Python objects, images undecoded."""
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


def open_image(index: "Comparisons", place: int) -> PILImage.Image:
    """Decode a distinct picture, and cut out its box; see `decode_image`.

    Raises:
        ValueError: Also where a file has changed since it was indexed: its embedding would be kept
            under the digest of the earlier one; or where the box is not inside the picture.
    """
    pictures = index.pictures
    column, row = pictures.places[place]
    cell = pictures.columns[column][row]["image"]
    file = read_image_file(cell, row)
    if cell["bytes"] is None and hashlib.sha256(file).hexdigest() != pictures.file_digests[place]:
        raise ValueError(
            f"Expected the image file of row {row} to stay as it is while it is scored, got other "
            f"bytes in {cell['path']}. Run the same again."
        )
    image = decode_image({"bytes": file, "path": None}, row)
    if pictures.boxes[place] is None:
        return image
    left, top, width, height = pictures.boxes[place]
    if left + width > image.width or top + height > image.height:
        raise ValueError(
            f"Expected the box of row {row} to lie inside its picture of {image.width} x "
            f"{image.height} pixels, got {pictures.boxes[place]} (left, top, width, height). "
            "Repair or remove the row."
        )
    return image.crop((left, top, left + width, top + height))
