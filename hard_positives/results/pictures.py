"""Pictures of rows that were scored, made small for a page."""

import base64
import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hard_positives.suite.columns import Columns
from hard_positives.suite.comparisons import as_box, box_digest, holds_images, picture_cells
from hard_positives.suite.rows import read_image_file
from hard_positives_dataset.images import open_image_bytes

IMAGE_SIDE = 256  # pixels of the longer side


@dataclass(frozen=True)
class Picture:
    """A small picture as a `data:` address, and its size in pixels."""

    address: str
    width: int
    height: int


class ScoredPictures:
    """The pictures of a split, which may be another revision of it than was scored."""

    def __init__(self, rows: Dataset, columns: Columns, scores: pa.Table) -> None:
        self._rows, self._crop = rows, columns.crop
        # With pairs, all comparisons of a set are of one row.
        self._row_id = "set" if columns.pairs or columns.text_only else "id"
        names = scores[self._row_id].to_pylist()
        self._order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        names = [name for name in columns.image_columns if holds_images(rows, name)]
        self._cells = [picture_cells(rows, name) for name in names]

    @cached_property
    def _places(self) -> dict[str, int]:
        if "id" not in self._rows.column_names:
            return {}
        return {str(name): place for place, name in enumerate(self._rows["id"][:])}

    def find(self, scored: dict[str, Any]) -> list[Picture | None]:
        """Find the pictures of a comparison in its row, by the row's id or else by its place."""
        name = scored[self._row_id]
        place = self._places.get(name, self._order[name])
        files = self._files(place) if place < len(self._rows) else {}
        return [_shrunk(*files[digest]) if digest in files else None for digest in scored["images"]]

    def _files(self, place: int) -> dict[str, tuple[bytes, Any]]:
        """All picture files of a row with the boxes that are cut out, by what they are known by."""
        box = tuple(map(round, as_box(self._rows[place][self._crop]))) if self._crop else None
        files = {}
        for cells, offsets in self._cells:
            for cell in range(offsets[place], offsets[place + 1]):
                try:
                    file = read_image_file(cells[cell]["image"], place)
                except (OSError, ValueError):  # gone, or not readable here
                    continue
                files[box_digest(hashlib.sha256(file).hexdigest(), box)] = file, box
        return files


def _shrunk(file: bytes, box: tuple | None) -> Picture | None:
    try:
        return shrink_image(file, box)
    except (OSError, ValueError):
        return None


def shrink_image(file: bytes, box: tuple[int, int, int, int] | None = None) -> Picture:
    """Make an image file small enough for a page: at most `IMAGE_SIDE`, never enlarged, as WebP.

    Of it only a box (left, top, width, height), where one is given. Without EXIF rotation, as
    models see it (`scoring`).
    """
    image = open_image_bytes(file).convert("RGB")
    if box is not None:
        left, top, width, height = box
        image = image.crop((left, top, left + width, top + height))
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=85)
    address = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(address, *image.size)
