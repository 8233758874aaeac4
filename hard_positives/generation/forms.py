"""The forms that people have captions in -> rows, one at a time.

COCO's caption files, NegCLIP's table, text with a caption a line, datasets: none of them is ever
held in memory as a whole. What a form demands is checked here; what every caption must be, in
`captions`.
"""

import ast
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from datasets import Dataset

from hard_positives.generation.on_disk import database

_PIECE = 2**16  # characters of a JSON file that are read at a time
_BLANKS = re.compile("[ \t\n\r]*")
_HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """A caption as its source has it, not yet checked.

    Attributes:
        id: Its own.
        caption: A text, if the source is in order.
        image_id: What rows of one image share.
        file: The image's file.
        image_row: The image's place among those of a dataset.
        edits: Edits that are there already: for a task's name, texts, best first.
    """

    id: str
    caption: Any
    image_id: str | None = None
    file: str | None = None
    image_row: int | None = None
    edits: dict[str, list[str]] | None = None


# --- COCO -----------------------------------------------------------------------------------------


def read_coco(path: Path) -> Iterator[Row]:
    """Read a COCO caption file: its images, then its captions, which name their image by id."""
    with database("CREATE TABLE images (id TEXT PRIMARY KEY, file TEXT)") as images:
        find = "SELECT file FROM images WHERE id = ?"
        for image in _coco_entries(path, "images", {"id": (int, str), "file_name": (str,)}):
            named = (str(image["id"]), image["file_name"])
            images.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", named)
            [file] = images.execute(find, named[:1]).fetchone()
            if file != image["file_name"]:
                raise ValueError(
                    f"Expected the images of {path} to have ids of their own, got {image['id']!r} "
                    f"for {file!r} and {image['file_name']!r}. Repair the file."
                )
        for row in _coco_entries(path, "annotations", {"id": (int, str), "image_id": (int, str)}):
            image_id = str(row["image_id"])
            [file] = images.execute(find, (image_id,)).fetchone() or [image_id]
            yield Row(str(row["id"]), row.get("caption"), image_id, file)


def _coco_entries(path: Path, name: str, fields: dict[str, tuple]) -> Iterator[dict]:
    """The entries of a list in a COCO file, once each has what is read of it."""
    words = {int: "a whole number", str: "a text"}
    for place, row in enumerate(_list_entries(path, name)):
        for field, kinds in fields.items():
            value = row.get(field) if isinstance(row, dict) else None
            if type(value) not in kinds or _HALVES.search(str(value)):
                raise ValueError(
                    f"Expected {name}[{place}] of {path} to have {field!r} as "
                    f"{' or '.join(words[kind] for kind in kinds)}, got {_shown(row)}. Repair the "
                    "file."
                )
        yield row


def _list_entries(path: Path, name: str) -> Iterator[Any]:
    """The entries of one of the lists in a COCO file."""
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))
    is_there = False
    with path.open(encoding=encoding, errors="surrogatepass") as file:
        text = _JsonText(file)
        try:
            if text.peek() != "{":
                raise _not_coco(path, type(text.value()).__name__)
            for key in text.members():
                if key != name:
                    text.skip_value()
                elif text.peek() == "[":
                    is_there = True
                    yield from text.entries()
                else:
                    raise ValueError(
                        f"Expected {name!r} of {path} to be a list, got "
                        f"{type(text.value()).__name__}. Use captions_train2017.json or one like "
                        "it."
                    )
            text.expect("")
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(
                f"Expected {path} to be a JSON file, got one that cannot be read: "
                f"{text.describe(error)}. Fetch it again."
            ) from error
    if not is_there:
        raise _not_coco(path, "other fields")


def _not_coco(path: Path, found: str) -> ValueError:
    return ValueError(
        f"Expected {path} to be a COCO caption file with 'annotations' and 'images', got {found}. "
        "Use captions_train2017.json or one like it."
    )


class _JsonText:
    """The text of a JSON file, of which no more is held than the value that is being read.

    Not ijson's reader: a file of brackets inside brackets makes that fill the memory.
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0
        self._let_go = 0  # characters before `_text`
        self._decoder = json.JSONDecoder()

    def members(self) -> Iterator[str]:
        """Give each key of an object; its value is to be read before the next."""
        for _ in self._items("{", "}"):
            key = self.value()
            self.expect(":")
            yield key

    def entries(self) -> Iterator[Any]:
        """Give each value of a list."""
        for _ in self._items("[", "]"):
            yield self.value()

    def skip_value(self) -> None:
        """Read a value; of a list no more than one entry at a time."""
        if self.peek() == "[":
            for _ in self.entries():
                pass
        else:
            self.value()

    def value(self) -> Any:
        """Read what comes next."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._read_on():
                    continue
                raise
            # "12" may be the beginning of "123".
            if end < len(self._text) or not self._read_on():
                self._at = end
                return value

    def peek(self) -> str:
        """The next character that is no blank; empty at the end of the file."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def expect(self, mark: str) -> None:
        """Read a mark; an empty one is the end of the file."""
        if self.peek() != mark:
            expected = f"{mark!r}" if mark else "the end"
            raise json.JSONDecodeError(f"Expecting {expected}", self._text, self._at)
        self._at += len(mark)

    def describe(self, error: Exception) -> str:
        """Say what is wrong, and where in the file."""
        if isinstance(error, json.JSONDecodeError):
            return f"{error.msg} at character {self._let_go + error.pos:,}"
        return "brackets inside brackets" if isinstance(error, RecursionError) else str(error)

    def _items(self, opening: str, closing: str) -> Iterator[None]:
        self.expect(opening)
        if self.peek() != closing:
            yield
            while self.peek() != closing:
                self.expect(",")
                yield
        self.expect(closing)

    def _read_on(self) -> bool:
        """Take in as much again; what has been read is let go."""
        rest = self._text[self._at :]
        piece = self._file.read(max(_PIECE, len(rest)))
        if piece:
            self._let_go += self._at
            self._text, self._at = rest + piece, 0
        return bool(piece)


# --- NegCLIP and text -----------------------------------------------------------------------------


def read_negclip(path: Path) -> Iterator[Row]:
    """Read NegCLIP's table, whose negatives are edits that are there already."""
    reader = csv.DictReader(lines_of(path, newline=""), delimiter="\t", strict=True)
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


def _negclip_row(row: dict[str, Any], place: int, line: str) -> Row:
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
    return Row(f"line-{place:07d}", row["title"], image or file, file, edits=edits)


def read_text(path: Path) -> Iterator[Row]:
    """Read a caption a line."""
    for place, line in enumerate(lines_of(path)):
        yield Row(f"line-{place:07d}", line.rstrip("\n"))


def lines_of(path: Path, newline: str | None = None) -> Iterator[str]:
    """The lines of a UTF-8 file, without the mark that some editors put at its start.

    Raises:
        ValueError: It is no UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield from file
    except UnicodeDecodeError as error:
        with path.open("rb") as content:
            line = next(place for place, text in enumerate(content, 1) if not _is_utf_8(text))
        raise ValueError(
            f"Expected {path} to be text in UTF-8, got other bytes in line {line}. Save it as "
            "UTF-8."
        ) from error


def _is_utf_8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- datasets -------------------------------------------------------------------------------------


def read_dataset(dataset: Dataset, caption_column: str, with_images: bool) -> Iterator[Row]:
    """Read the captions of a dataset; a cell holds one or several."""
    names = [column for column in ("id", "image_id") if column in dataset.column_names]
    for place, row in enumerate(dataset.select_columns([*names, caption_column])):
        own = f"row-{place:07d}" if row.get("id") is None else str(row["id"])
        image = None if row.get("image_id") is None else str(row["image_id"])
        cell = row[caption_column]
        several = isinstance(cell, list)
        for number, caption in enumerate(cell if several else [cell]):
            own_id = f"{own}-{number}" if several else own
            yield Row(own_id, caption, image or own, image_row=place if with_images else None)
