"""Captions, from the forms that people have them in -> one table of ids and captions.

Every caption is checked here, before a model is loaded. The table lies on disk, and so does what
brings rows of one image together: a million captions take the memory of a thousand. This file edits
nothing; `forms` reads.
"""

import json
import re
import sqlite3
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Image

from hard_positives.generation.forms import (
    Row,
    lines_of,
    read_coco,
    read_dataset,
    read_negclip,
    read_text,
)
from hard_positives.generation.on_disk import database, table_on_disk
from hard_positives.lookup import near_columns
from hard_positives.names import printable
from hard_positives_dataset.annotations import count_rows

MAX_CHARACTERS = 1000
# As they stand in a line of hard_positives_ft/swap_hp.jsonl whose caption has no "and".
NO_EDIT = "None"
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "caption": pa.string(),
        "image_id": pa.string(),
        "image_row": pa.int64(),
        "line": pa.int64(),
    }
)
_TABLES = """
    CREATE TABLE captions (
        line INTEGER PRIMARY KEY, id TEXT UNIQUE, caption TEXT, image_id TEXT, image_row INTEGER,
        file TEXT, edits TEXT
    );
    CREATE TABLE files (place INTEGER PRIMARY KEY, file TEXT UNIQUE);
"""
# COCO lists captions in no order: rows of one image stand together, else in the source's order.
_IN_ORDER = """
    SELECT id, caption, image_id, coalesce(image_row, place - 1), line, edits
    FROM captions LEFT JOIN files USING (file)
    ORDER BY min(line) OVER (PARTITION BY image_id), line
"""
_FILES = "SELECT file FROM files ORDER BY place"


@dataclass(frozen=True)
class Captions:
    """Captions to edit, rows of one image adjacent.

    Attributes:
        name: Where they came from, for the record.
        table: Columns id, caption, image_id (null where there is none), image_row (the row of
            `images`, null where there are none) and line (the place in the source, which files
            that are joined by line go by). A column named after a task, such as
            `hard_positive_swap`, holds edits that are there already: lists of strings, best first.
        images: A dataset whose column `image` holds the files, or None.
    """

    name: str
    table: pa.Table
    images: Dataset | None = None

    def __len__(self) -> int:
        return self.table.num_rows

    def with_published(self, path: str | Path, task: str) -> "Captions":
        """Add published edits: a JSON string a line, joined to the captions by line.

        Args:
            path: Such as `hard_positives_ft/swap_hp.jsonl`.
            task: `hard_positive_swap`, `hard_positive_replace`, ...; this task is not generated.

        Raises:
            ValueError: Another number of lines than captions, or a line that is no JSON string.
        """
        with database("CREATE TABLE edits (line INTEGER PRIMARY KEY, edit TEXT)") as edits:
            lines = (line.rstrip("\n") for line in lines_of(Path(path)))
            edits.executemany("INSERT INTO edits VALUES (?, ?)", enumerate(lines))
            [number] = edits.execute("SELECT count(*) FROM edits").fetchone()
            if number != len(self):
                raise ValueError(
                    f"Expected {path} to have one line for each of the {len(self):,} captions of "
                    f"{self.name}, got {number:,} lines. They are joined by line: use the caption "
                    "file that they were made from."
                )
            find = "SELECT edit FROM edits WHERE line = ?"

            def with_edits() -> Iterator[dict[str, Any]]:
                for batch in self.table.to_batches():
                    for row in batch.to_pylist():
                        [edit] = edits.execute(find, (row["line"],)).fetchone()
                        place = f"{path}, line {row['line'] + 1}"
                        yield {**row, task: _published_edit(edit, place)}

            schema = _with_task(self.table.schema, task)
            return replace(self, table=table_on_disk(schema, with_edits()))


def _with_task(schema: pa.Schema, task: str) -> pa.Schema:
    return schema.append(pa.field(task, pa.list_(pa.string())))


def _published_edit(line: str, place: str) -> list[str]:
    try:
        edit = json.loads(line)
    except (ValueError, RecursionError):
        edit = None
    if not isinstance(edit, str):
        raise ValueError(
            f"Expected {place} to be a JSON string, got {line[:80]!r}. Use the published file."
        )
    return [] if edit == NO_EDIT else [edit.strip()]


def read_captions(
    source: str | Path | Dataset,
    *,
    images: str | Path | None = None,
    split: str = "train",
    caption_column: str = "caption",
    image_column: str = "image",
) -> Captions:
    r"""Read captions, check them, and bring rows of one image together.

    Args:
        source: A COCO caption file (`.json`), NegCLIP's table (`.tsv`), text with a caption a line
            (`.txt`), a folder or Hub id for `load_dataset`, or a dataset. A cell of the caption
            column may hold one caption or a list of them. Image files that the rows of a folder or
            Hub id name must lie inside it.
        images: The folder that the file names of a `.json` or `.tsv` are relative to; without it
            the rows have no images.
        split: The split of a folder or Hub id.
        caption_column: The column of a dataset that holds captions.
        image_column: The column of a dataset that holds images; without a column `image` the rows
            have none.

    Returns:
        The captions. `id` is COCO's annotation id, the dataset's own `id`, or the place in the
        source.

    Raises:
        FileNotFoundError: The file, or an image of it, is missing.
        ValueError: A file of another form, captions that are empty, too long, no text or hold
            control characters, ids that repeat, columns that are missing.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "captions.txt"
        >>> _ = path.write_text("a red car\ntwo dogs and a cat\n")
        >>> read_captions(path).table["caption"].to_pylist()
        ['a red car', 'two dogs and a cat']
    """
    if isinstance(source, Dataset):
        return _from_dataset("a dataset", source, caption_column, image_column)
    readers = {".json": read_coco, ".tsv": read_negclip, ".txt": read_text}
    reader = readers.get(Path(source).suffix)
    if reader is None:
        from hard_positives.suite.sources import load_splits  # takes torch along

        return _from_dataset(
            str(source), load_splits(source, [split])[split], caption_column, image_column
        )
    if not Path(source).is_file():
        raise FileNotFoundError(f"Expected {source} to be a file, got none. Check the path.")
    folder = Path(images) if images else None
    with database(_TABLES) as store:
        _store(store, str(source), reader(Path(source)), folder)
        files = None if folder is None else _images_of(store, str(source), folder)
        return Captions(str(source), _in_order(store), files)


def _from_dataset(
    name: str, dataset: Dataset | DatasetDict, caption_column: str, image_column: str
) -> Captions:
    needed = [caption_column, *([image_column] if image_column != "image" else [])]
    missing = [column for column in needed if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"Expected {name} to have the column {missing[0]!r}, got {dataset.column_names}. Name "
            "the column that holds captions, and that of images if there is one."
            f"{near_columns(missing[:1], dataset.column_names)}"
        )
    images = None
    if image_column in dataset.column_names:
        images = dataset.select_columns([image_column])
        if image_column != "image":
            images = images.rename_column(image_column, "image")
        images = images.cast_column("image", Image(decode=False))
    with database(_TABLES) as store:
        _store(store, name, read_dataset(dataset, caption_column, images is not None))
        return Captions(name, _in_order(store), images)


def _store(
    store: sqlite3.Connection, name: str, rows: Iterable[Row], folder: Path | None = None
) -> None:
    """Keep the rows on disk; raise what is wrong with any of them."""
    problems, line = defaultdict(list), -1
    for line, row in enumerate(rows):
        if folder is not None and row.file is not None:
            _store_file(store, name, row.file, folder)
        problem = _problem(row)
        if not problem:
            edits = row.edits and json.dumps(row.edits)
            kept = (line, row.id, row.caption.strip(), row.image_id, row.image_row, row.file, edits)
            values = "INSERT OR IGNORE INTO captions VALUES (?, ?, ?, ?, ?, ?, ?)"
            problem = "" if store.execute(values, kept).rowcount else "repeated id"
        if problem:
            problems[problem].append(printable(row.id))
    if line < 0:
        raise ValueError(f"Expected {name} to hold captions, got none. Check the file.")
    if problems:
        raise ValueError(
            f"Expected {name} to hold captions of 1 to {MAX_CHARACTERS} characters under ids of "
            f"their own, got {count_rows(problems)}. Repair or remove these rows."
        )


def _store_file(store: sqlite3.Connection, name: str, file: str, folder: Path) -> None:
    new = store.execute("INSERT OR IGNORE INTO files (file) VALUES (?)", (file,)).rowcount
    if new and not _is_inside(folder.resolve(), file):
        raise ValueError(
            f"Expected the image paths of {name} to stay inside {folder}, got {file!r}. "
            "Repair the file; of a link, name the folder that it leads to."
        )


def _is_inside(root: Path, file: str) -> bool:
    if Path(file).is_absolute() or ".." in Path(file).parts:
        return False
    try:
        return (root / file).resolve().is_relative_to(root)
    except (ValueError, OSError, RuntimeError):  # no path at all, or links in a circle
        return False


def _images_of(store: sqlite3.Connection, name: str, folder: Path) -> Dataset | None:
    """The image files, each once, after a look at whether they are there."""
    [number] = store.execute("SELECT count(*) FROM files").fetchone()
    absent, first = 0, []
    for (file,) in store.execute(_FILES):
        if not (folder / file).is_file():
            absent += 1
            first += [file] if len(first) < 3 else []
    if absent:
        raise FileNotFoundError(
            f"Expected the images of {name} under {folder}, got none for {absent:,} of "
            f"{number:,} ({printable(', '.join(first))}). Name the folder that these paths are "
            "relative to."
        )
    features = Features({"image": Image(decode=False)})
    cells = ({"bytes": None, "path": str(folder / file)} for (file,) in store.execute(_FILES))
    table = table_on_disk(features.arrow_schema, ({"image": cell} for cell in cells))
    # With a fingerprint, since datasets would copy the table to make one.
    return Dataset(table, fingerprint=uuid.uuid4().hex) if number else None


def _in_order(store: sqlite3.Connection) -> pa.Table:
    [edits] = store.execute("SELECT edits FROM captions LIMIT 1").fetchone()
    schema = reduce(_with_task, json.loads(edits or "{}"), SCHEMA)
    rows = (
        {**dict(zip(SCHEMA.names, values, strict=True)), **json.loads(edits or "{}")}
        for *values, edits in store.execute(_IN_ORDER)
    )
    return table_on_disk(schema, rows)


def _problem(row: Row) -> str | None:
    caption = row.caption
    if not isinstance(caption, str):
        return f"a {type(caption).__name__} instead of a text"
    if not caption.strip():
        return "an empty caption"
    if len(caption) > MAX_CHARACTERS:
        return f"a caption of more than {MAX_CHARACTERS} characters"
    names = (row.id, row.image_id or "", row.file or "")
    if any(has_unfit_characters(text) for text in (caption, *names)):
        return "control characters or halves of characters"
    return None


def has_unfit_characters(text: str) -> bool:
    r"""Whether a text holds what no caption does: controls, turned directions, half characters.

    They say nothing of a picture, and a model, a terminal and a page each make something else of
    them. Tabs and line breaks, which people do leave in captions, count as the blanks that they are
    for a tokenizer.

    Examples:
        >>> [has_unfit_characters(text) for text in ("a red\tcar", "a\x00car", "a \u202erac")]
        [False, True, True]
    """
    return _UNFIT.search(text) is not None
