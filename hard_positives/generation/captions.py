"""Captions, from the forms that people have them in -> one table of ids and captions.

COCO's caption files, text with a caption a line, NegCLIP's TSV, and any dataset with a caption
column. Everything is checked here, before a model is loaded. This file edits nothing.
"""

import ast
import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Image

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
    }
)


@dataclass(frozen=True)
class Captions:
    """Captions to edit, rows of one image adjacent.

    Attributes:
        name: Where they came from, for the record.
        table: Columns id, caption, image_id (null where there is none) and image_row (the row of
            `images`, null where there are none). A column named after a task, such as
            `hard_positive_swap`, holds edits that are there already: lists of strings, best first.
        images: A dataset whose column `image` holds the files, or None.
        lines: For each row of `table` its place in the source, which files that are joined by line
            go by.
    """

    name: str
    table: pa.Table
    images: Dataset | None = None
    lines: Sequence[int] = ()

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
        lines = [line.rstrip("\n") for line in _lines_of(Path(path))]
        if len(lines) != len(self):
            raise ValueError(
                f"Expected {path} to have one line for each of the {len(self):,} captions of "
                f"{self.name}, got {len(lines):,} lines. They are joined by line: use the caption "
                "file that they were made from."
            )
        edits = [_published_edit(line, f"{path}, line {i + 1}") for i, line in enumerate(lines)]
        ordered = pa.array([edits[line] for line in self.lines], pa.list_(pa.string()))
        return replace(self, table=self.table.append_column(task, ordered))


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
        image_column: The column of a dataset that holds images; without such a column the rows have
            none.

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
        >>> read_captions(path).table.to_pylist()[1]
        {'id': 'line-0000001', 'caption': 'two dogs and a cat', 'image_id': None, 'image_row': None}
    """
    if isinstance(source, Dataset):
        return _from_dataset("a dataset", source, caption_column, image_column)
    readers = {".json": _read_coco, ".tsv": _read_negclip, ".txt": _read_text}
    reader = readers.get(Path(source).suffix)
    if reader is None:
        from hard_positives.suite.sources import load_splits  # takes torch along

        return _from_dataset(
            str(source), load_splits(source, [split])[split], caption_column, image_column
        )
    if not Path(source).is_file():
        raise FileNotFoundError(f"Expected {source} to be a file, got none. Check the path.")
    return _collect(str(source), reader(Path(source)), Path(images) if images else None)


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    caption: Any
    image_id: str | None = None
    file_name: str | None = None
    edits: dict[str, list[str]] | None = None


def _read_coco(path: Path) -> Iterator[_Row]:
    content = _json_of(path)
    if not isinstance(content, dict) or not {"annotations", "images"} <= content.keys():
        raise ValueError(
            f"Expected {path} to be a COCO caption file with 'annotations' and 'images', got "
            f"{'other fields' if isinstance(content, dict) else type(content).__name__}. Use "
            "captions_train2017.json or one like it."
        )
    files: dict[str, str] = {}
    for image in _coco_rows(path, content, "images", {"id": (int, str), "file_name": (str,)}):
        if files.setdefault(str(image["id"]), image["file_name"]) != image["file_name"]:
            raise ValueError(
                f"Expected the images of {path} to have ids of their own, got {image['id']!r} for "
                f"{files[str(image['id'])]!r} and {image['file_name']!r}. Repair the file."
            )
    for row in _coco_rows(path, content, "annotations", {"id": (int, str), "image_id": (int, str)}):
        image_id = str(row["image_id"])
        yield _Row(str(row["id"]), row.get("caption"), image_id, files.get(image_id, image_id))


def _coco_rows(path: Path, content: dict, name: str, fields: dict[str, tuple]) -> Iterator[dict]:
    """The entries of a list in a COCO file, once each has what is read of it."""
    if not isinstance(content[name], list):
        raise ValueError(
            f"Expected {name!r} of {path} to be a list, got {type(content[name]).__name__}. Use "
            "captions_train2017.json or one like it."
        )
    words = {int: "a whole number", str: "a text"}
    for place, row in enumerate(content[name]):
        for field, kinds in fields.items():
            value = row.get(field) if isinstance(row, dict) else None
            if type(value) not in kinds:
                raise ValueError(
                    f"Expected {name}[{place}] of {path} to have {field!r} as "
                    f"{' or '.join(words[kind] for kind in kinds)}, got {_shown(row)}. Repair the "
                    "file."
                )
        yield row


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        problem = "brackets inside brackets" if isinstance(error, RecursionError) else error
        raise ValueError(
            f"Expected {path} to be a JSON file, got one that cannot be read: {problem}. Fetch it "
            "again."
        ) from error


def _read_negclip(path: Path) -> Iterator[_Row]:
    reader = csv.DictReader(_lines_of(path, newline=""), delimiter="\t", strict=True)
    try:
        columns = reader.fieldnames or []
        if not {"title", "filepath", "neg_caption"} <= set(columns):
            raise ValueError(
                f"Expected {path} to have NegCLIP's columns title, filepath and neg_caption, got "
                f"{_shown(columns)}. Use its train_neg_clip.tsv or valid_neg_clip.tsv."
            )
        for place, row in enumerate(reader):
            yield _negclip_row(row, place, f"{path}, line {reader.line_num}")
    except csv.Error as error:
        raise ValueError(
            f"Expected {path}, line {reader.reader.line_num} to be a line of NegCLIP's table, got "
            f"one that cannot be read: {error}. Repair or remove it."
        ) from error


def _negclip_row(row: dict[str, Any], place: int, line: str) -> _Row:
    try:
        negatives = ast.literal_eval(row["neg_caption"])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        negatives = None  # what Python's reader raises on nested, cut or foreign text
    if not isinstance(negatives, list) or not all(isinstance(text, str) for text in negatives):
        raise ValueError(
            f"Expected neg_caption in {line} to be a list of texts such as ['a cat'], got "
            f"{_shown(row['neg_caption'])}. Repair or remove this line."
        )
    file = row["filepath"]
    if not isinstance(file, str) or not file:
        raise ValueError(
            f"Expected filepath in {line} to name an image, got nothing. Repair or remove this "
            "line."
        )
    image = re.sub(r"^0+(?=.)", "", re.findall(r"\d*$", Path(file).stem)[0])
    edits = {"hard_negative_swap": [text.strip() for text in negatives]}
    return _Row(f"line-{place:07d}", row["title"], image or file, file, edits)


def _read_text(path: Path) -> Iterator[_Row]:
    for place, line in enumerate(_lines_of(path)):
        yield _Row(f"line-{place:07d}", line.rstrip("\n"))


def _lines_of(path: Path, newline: str | None = None) -> io.StringIO:
    """The lines of a UTF-8 file, without the mark that some editors put at its start."""
    content = path.read_bytes()
    try:
        return io.StringIO(content.decode("utf-8-sig"), newline)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"Expected {path} to be text in UTF-8, got other bytes in line {line}. Save it as "
            "UTF-8."
        ) from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _from_dataset(
    name: str, dataset: Dataset | DatasetDict, caption_column: str, image_column: str
) -> Captions:
    if caption_column not in dataset.column_names:
        raise ValueError(
            f"Expected {name} to have the column {caption_column!r}, got {dataset.column_names}. "
            "Name the column that holds captions."
        )
    names = [column for column in ("id", "image_id") if column in dataset.column_names]
    texts = dataset.select_columns([*names, caption_column])
    rows, image_rows = [], []
    for place, row in enumerate(texts):
        own = f"row-{place:07d}" if row.get("id") is None else str(row["id"])
        cell = row[caption_column]
        several = isinstance(cell, list)
        for number, caption in enumerate(cell if several else [cell]):
            image = None if row.get("image_id") is None else str(row["image_id"])
            rows.append(_Row(f"{own}-{number}" if several else own, caption, image or own))
            image_rows.append(place)
    if image_column not in dataset.column_names:
        return _table(name, rows, [None] * len(rows), None)
    images = dataset.select_columns([image_column])
    if image_column != "image":
        images = images.rename_column(image_column, "image")
    return _table(name, rows, image_rows, images.cast_column("image", Image(decode=False)))


def _collect(name: str, rows: Iterable[_Row], folder: Path | None) -> Captions:
    rows = list(rows)
    if folder is None or rows[:1] == [] or rows[0].file_name is None:
        return _table(name, rows, [None] * len(rows), None)
    files = {file: place for place, file in enumerate(dict.fromkeys(row.file_name for row in rows))}
    root = folder.resolve()
    unsafe = [file for file in files if not _is_inside(root, file)]
    if unsafe:
        raise ValueError(
            f"Expected the image paths of {name} to stay inside {folder}, got {unsafe[0]!r}. "
            "Repair the file; of a link, name the folder that it leads to."
        )
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise FileNotFoundError(
            f"Expected the images of {name} under {folder}, got none for {len(absent):,} of "
            f"{len(files):,} ({printable(', '.join(absent[:3]))}). Name the folder that these "
            "paths are relative to."
        )
    images = Dataset.from_dict({"image": [str(folder / file) for file in files]})
    places = [files[row.file_name] for row in rows]
    return _table(name, rows, places, images.cast_column("image", Image(decode=False)))


def _is_inside(root: Path, file: str) -> bool:
    if Path(file).is_absolute() or ".." in Path(file).parts:
        return False
    try:
        return (root / file).resolve().is_relative_to(root)
    except (ValueError, OSError, RuntimeError):  # no path at all, or links in a circle
        return False


def _table(
    name: str, rows: list[_Row], image_rows: Sequence[int | None], images: Dataset | None
) -> Captions:
    _check(name, rows)
    first: dict[str | None, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row.image_id, place)
    # COCO lists captions in no order: rows of one image stand together, else in the source's order.
    lines = list(range(len(rows)))
    if len(first) > 1:
        lines = sorted(lines, key=lambda place: first[rows[place].image_id])
    columns = {
        "id": [rows[line].id for line in lines],
        "caption": [rows[line].caption.strip() for line in lines],
        "image_id": [rows[line].image_id for line in lines],
        "image_row": [image_rows[line] for line in lines],
    }
    table = pa.table(columns, SCHEMA)
    for task in rows[0].edits or ():
        edits = pa.array([rows[line].edits[task] for line in lines], pa.list_(pa.string()))
        table = table.append_column(task, edits)
    return Captions(name, table, images, lines)


def _check(name: str, rows: Sequence[_Row]) -> None:
    if not rows:
        raise ValueError(f"Expected {name} to hold captions, got none. Check the file.")
    problems, seen = defaultdict(list), set()
    for row in rows:
        problem = "repeated id" if row.id in seen else _problem(row)
        seen.add(row.id)
        if problem:
            problems[problem].append(printable(row.id))
    if problems:
        raise ValueError(
            f"Expected {name} to hold captions of 1 to {MAX_CHARACTERS} characters under ids of "
            f"their own, got {count_rows(problems)}. Repair or remove these rows."
        )


def _problem(row: _Row) -> str | None:
    caption = row.caption
    if not isinstance(caption, str):
        return f"a {type(caption).__name__} instead of a text"
    if not caption.strip():
        return "an empty caption"
    if len(caption) > MAX_CHARACTERS:
        return f"a caption of more than {MAX_CHARACTERS} characters"
    names = (row.id, row.image_id or "", row.file_name or "")
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
