"""One hash for the content of rows: what a card states, a result records and a reader compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import datasets


class ContentHash:
    """SHA-256 over rows in their order, whatever file or process they come from.

    Examples:
        >>> content = ContentHash()
        >>> content.add({"caption": "a cat", "id": "1"})
        >>> content.add({"id": "2", "caption": "a dog"})
        >>> content.hexdigest()[:8]
        'ef53cc59'
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in one row.

        Args:
            row: Column -> text, number, null or a list of these. An image stands in it as the
                hexadecimal SHA-256 of its bytes, in the column's place.
        """
        # default: what JSON has no word for, such as a date, stands in it as text.
        self._digest.update(json.dumps(dict(row), sort_keys=True, default=str).encode() + b"\n")

    def add_table(self, rows: pa.Table, image_digests: Sequence[str] | None = None) -> None:
        """Take in rows as they stand in a Parquet file.

        Args:
            rows: All columns; those of images undecoded, as structs of bytes and path.
            image_digests: What stands for the column `image`, a row each; computed if left out.
        """
        digests = {
            name: list(_image_digests(rows[name]))
            for name, kind in zip(rows.schema.names, rows.schema.types, strict=True)
            if _holds_images(kind) and (name != "image" or image_digests is None)
        }
        if image_digests is not None:
            digests["image"] = list(image_digests)
        others = rows.drop_columns([name for name in digests if name in rows.column_names])
        for place, row in enumerate(others.to_pylist()):
            self.add({**row, **{name: values[place] for name, values in digests.items()}})

    def hexdigest(self) -> str:
        """Return the hash of the rows so far."""
        return self._digest.hexdigest()


def content_of(rows: datasets.Dataset, image_digests: Sequence[str] | None = None) -> str:
    """Hash the content of a split: what the card of a folder made by `build` states for it.

    Every column of every row in order, images by the SHA-256 of their bytes. So another caption,
    pixel, flaw or order gives another hash; file names and compression do not.

    Args:
        rows: One split, whole and with all its columns.
        image_digests: The hexadecimal SHA-256 of the bytes in the column `image`, a row each, where
            they are known already. Then no image is read.

    Examples:
        >>> import datasets
        >>> content_of(datasets.Dataset.from_dict({"caption": ["a cat"], "id": ["1"]}))[:8]
        '131aa031'
    """
    import datasets  # not at the top: results are hashed without it

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    digests = None if image_digests is None else iter(image_digests)
    if digests is not None and "image" in rows.column_names:
        rows = rows.remove_columns("image")
    content = ContentHash()
    for table in rows.with_format("arrow").iter(batch_size=256):  # Arrow: no image is copied
        known = None if digests is None else list(islice(digests, len(table)))
        content.add_table(table, known)
    return content.hexdigest()


def _holds_images(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _image_digests(cells: pa.ChunkedArray) -> Iterator[str | None]:
    previous, digest = None, None
    for cell in cells:
        if not cell.is_valid or not cell["bytes"].is_valid:
            yield None
            continue
        content = cell["bytes"].as_buffer()
        # Rows of one image mostly stand together, and comparing is faster.
        if previous is None or not content.equals(previous):
            previous, digest = content, hashlib.sha256(content).hexdigest()
        yield digest
