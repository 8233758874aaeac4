"""Published JSON pairs -> checked rows, each with its flaws.

The benchmark is published as pairs of JSON lists: one file with the original captions, one with the
hard positives, joined by list position only. Here a pair becomes a list of `Triple`, after checks
that find a shifted or damaged file before a model is asked anything. Nothing is corrected: captions
stay byte for byte as published, and a row that no model can get right is kept and marked.

This file reads no image and decides no order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass, replace

from .flaws import FLAWS, changes, said, text_flaws
from .folders import read_regular_file

PUBLISHED_COMMIT = "33addaae84b58d96dc8e9251b61d497c536ed23d"
PUBLISHED_REPOSITORY = "https://github.com/amitakamath/hard_positives"

# Folder names of the original captions and of the hard positives: ours, then the published ones.
LAYOUTS = (("original", "hard_positive"), ("data", "swapped_data"))
PUBLISHED_FOLDERS = LAYOUTS[1]


@dataclass(frozen=True)
class PublishedPair:
    """Two files of one name that together hold the rows of one category.

    Attributes:
        split: `replace` or `swap`.
        category: `attribute`, `relation` or `swap`.
        file_name: the name that both files have.
        blob_ids: git's ids of the published original and hard positive file.
    """

    split: str
    category: str
    file_name: str
    blob_ids: tuple[str, str]

    @property
    def id_prefix(self) -> str:
        """What the ids of its rows begin with."""
        return self.split if self.split == self.category else f"{self.split}-{self.category}"


PUBLISHED_PAIRS = (
    PublishedPair(
        "replace",
        "attribute",
        "vl_checklist_attributes.json",
        ("8502f610e15c0022e316abca4a8412972fd46089", "2f305ee08a1771a4cd33779d21d1fbebd8f5765a"),
    ),
    PublishedPair(
        "replace",
        "relation",
        "vl_checklist_relations.json",
        ("0a79261bf87069525343fd0298dcfc558ba9ac0c", "b60bbe62bc7c0d42e21f2a2b20f3c1fbd9ee7707"),
    ),
    PublishedPair(
        "swap",
        "swap",
        "visual_genome_attribution.json",
        ("64f742c8106d0a0fc996b8ae6edecb09703e278f", "064e9409a45574acbf5b9c360969e43cda063e67"),
    ),
)
SPLITS = tuple(dict.fromkeys(pair.split for pair in PUBLISHED_PAIRS))

_REPLACE_FIELDS: dict[str, type] = {
    "image_path": str,
    "image_id": str,
    "true_caption": str,
    "false_caption": str,
}
_BOX_FIELDS = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
_SWAP_FIELDS: dict[str, type] = {
    "image_path": str,
    **dict.fromkeys(_BOX_FIELDS, int),
    "true_caption": str,
    "false_caption": str,
}
_NAMED_IDS = 5
MAX_FILE_BYTES = 2**26  # of an annotation file; the published ones have less than a tenth of it


@dataclass(frozen=True)
class Triple:
    """One test case: an image with a caption, a hard positive and a hard negative.

    Attributes:
        id: for example `replace-attribute-00017`; the number is the 0-based place in the published
            file.
        image_path: the published relative path, checked to stay inside a folder.
        caption, hard_positive, hard_negative: byte for byte as published.
        category: `attribute`, `relation` or `swap`.
        substitution: what changed between caption and hard positive; empty for swap.
        image_id: the Visual Genome id.
        bbox: x, y, width, height of the crop, or None for the whole image.
        flaws: names out of `flaws.FLAWS`.
    """

    id: str
    image_path: str
    caption: str
    hard_positive: str
    hard_negative: str
    category: str
    substitution: str
    image_id: str
    bbox: tuple[int, int, int, int] | None
    flaws: tuple[str, ...] = ()


def git_blob_id(content: bytes) -> str:
    """The id that git gives to a file of this content.

    Examples:
        >>> git_blob_id(b"")
        'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_annotation_dir(
    annotation_dir: str | os.PathLike, splits: tuple[str, ...]
) -> dict[PublishedPair, tuple[bytes, bytes]]:
    """Read the file pairs of `splits`, each from whichever layout of `LAYOUTS` has it.

    Raises:
        FileNotFoundError: names every absent file and where it is published.
    """
    pairs = [pair for pair in PUBLISHED_PAIRS if pair.split in splits]
    found = {pair: _find_pair(annotation_dir, pair) for pair in pairs}
    absent = [pair for pair, paths in found.items() if paths is None]
    if absent:
        names = ", ".join(f"{pair.file_name} (split {pair.split})" for pair in absent)
        raise FileNotFoundError(
            f"Expected {annotation_dir} to hold original/ and hard_positive/ (or data/ and "
            f"swapped_data/) with the files of splits {list(splits)}, got none of: {names}. Get "
            f"them from {PUBLISHED_REPOSITORY} at commit {PUBLISHED_COMMIT} (folders data/ and "
            "swapped_data/), or ask only for the splits you have with splits=[...]."
        )
    return {pair: (_read(paths[0]), _read(paths[1])) for pair, paths in found.items()}


def _find_pair(annotation_dir: str | os.PathLike, pair: PublishedPair) -> list[str] | None:
    for layout in LAYOUTS:
        paths = [os.path.join(annotation_dir, folder, pair.file_name) for folder in layout]
        if all(os.path.isfile(path) for path in paths):
            return paths
    return None


def _read(path: str) -> bytes:
    try:
        return read_regular_file(path, MAX_FILE_BYTES)
    except ValueError as problem:
        raise ValueError(
            f"Expected {path} to be an annotation file, got {problem}. Use the published file."
        ) from None


def read_triples(contents: dict[PublishedPair, tuple[bytes, bytes]], split: str) -> list[Triple]:
    """The checked rows of one split in published order, flaws marked.

    Args:
        contents: for each pair the bytes of the original and the hard positive file.
        split: `replace` or `swap`.

    Raises:
        ValueError: the files are damaged or do not belong together; counts all rows concerned and
            names the first few.
    """
    triples = []
    for pair, (original, hard_positive) in contents.items():
        if pair.split == split:
            triples += _join(pair, _parse(pair, original), _parse(pair, hard_positive))
    return mark_flaws(triples)


def _parse(pair: PublishedPair, content: bytes) -> list[dict]:
    try:
        rows = json.loads(content)
    except ValueError as error:
        raise ValueError(
            f"Expected {pair.file_name} to be JSON in UTF-8, got {error}. Download it again."
        ) from error
    except RecursionError:
        raise ValueError(
            f"Expected {pair.file_name} to be a JSON list of rows, got lists or objects nested "
            "without end. Download it again."
        ) from None
    if not isinstance(rows, list):
        raise ValueError(
            f"Expected {pair.file_name} to be a JSON list of rows, got {type(rows).__name__}. Use "
            "the published file."
        )
    return rows


def _join(pair: PublishedPair, originals: list[dict], positives: list[dict]) -> list[Triple]:
    if len(originals) != len(positives):
        raise ValueError(
            f"Expected both files {pair.file_name} to be of one length, got {len(originals)} "
            f"original and {len(positives)} hard positive rows. They are joined by position: use "
            "the two files of one commit."
        )
    fields = _SWAP_FIELDS if pair.split == "swap" else _REPLACE_FIELDS
    for rows in (originals, positives):
        _refuse(pair, "complete", {i: _field_problem(row, fields) for i, row in enumerate(rows)})
        _refuse(pair, "safe", {i: _path_problem(row["image_path"]) for i, row in enumerate(rows)})
    same = ["image_path", *_BOX_FIELDS]
    if pair.split == "replace":
        same = ["image_path", "image_id", "false_caption"]
    differing = {
        i: next((f"another {name}" for name in same if one[name] != other[name]), None)
        for i, (one, other) in enumerate(zip(originals, positives, strict=True))
    }
    _refuse(pair, "the same test case in both files", differing)
    return [
        _triple(pair, i, one, other)
        for i, (one, other) in enumerate(zip(originals, positives, strict=True))
    ]


def _refuse(pair: PublishedPair, expected: str, problems: dict[int, str | None]) -> None:
    """Raise one error that counts the rows of every problem."""
    ids = defaultdict(list)
    for position, problem in problems.items():
        if problem:
            ids[problem].append(_row_id(pair, position))
    if ids:
        raise ValueError(
            f"Expected every row of {pair.file_name} to be {expected}, got {count_rows(ids)}. Use "
            f"the two files of one commit as published at {PUBLISHED_REPOSITORY}."
        )


def count_rows(ids: dict[str, list[str]]) -> str:
    """Rows by reason, with the first few ids: how every error here names rows.

    Examples:
        >>> count_rows({"no caption": ["swap-00001", "swap-00004"]})
        'no caption in 2 rows (swap-00001, swap-00004)'
    """
    parts = []
    for reason, rows in ids.items():
        named = ", ".join(rows[:_NAMED_IDS]) + (", ..." if len(rows) > _NAMED_IDS else "")
        parts.append(f"{reason} in {len(rows)} row{'s' if len(rows) > 1 else ''} ({named})")
    return "; ".join(parts)


def _row_id(pair: PublishedPair, position: int) -> str:
    return f"{pair.id_prefix}-{position:05d}"


def _field_problem(row: object, fields: dict[str, type]) -> str | None:
    if not isinstance(row, dict):
        return f"{type(row).__name__} instead of an object"
    for name, kind in fields.items():
        if name not in row:
            return f"no field {name}"
        # type(), not isinstance(): JSON's true would pass for an int.
        if type(row[name]) is not kind:
            return f"{name} of type {type(row[name]).__name__} instead of {kind.__name__}"
        if kind is str and not _is_unicode(row[name]):
            return f"{name} that is not valid Unicode"
        if kind is int and abs(row[name]) >= 2**31:
            return f"{name} outside the 32-bit integers"
    return None


def _is_unicode(text: str) -> bool:
    # JSON can spell half of a surrogate pair, which no file format downstream can hold.
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _path_problem(path: str) -> str | None:
    if "\\" in path or "\0" in path:
        return "image_path with a backslash or NUL"
    if ":" in path:
        return "image_path with a URL scheme or drive"
    if path.startswith("/"):
        return "absolute image_path"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "image_path with an empty part, '.' or '..'"
    return None


def _triple(pair: PublishedPair, position: int, original: dict, positive: dict) -> Triple:
    swap = pair.split == "swap"
    caption, hard_positive = original["true_caption"], positive["true_caption"]
    # Should the two files disagree (SWAP only), the published script compares with this one.
    hard_negative = positive["false_caption"]
    texts = (caption, hard_positive, hard_negative)
    path = original["image_path"]
    return Triple(
        id=_row_id(pair, position),
        image_path=path,
        caption=caption,
        hard_positive=hard_positive,
        hard_negative=hard_negative,
        category=pair.category,
        substitution="" if swap else substitution(caption, hard_positive),
        image_id=os.path.splitext(os.path.basename(path))[0] if swap else original["image_id"],
        bbox=tuple(original[name] for name in _BOX_FIELDS) if swap else None,
        flaws=() if swap else tuple(text_flaws(*texts, pair.category)),
    )


def substitution(caption: str, hard_positive: str) -> str:
    """What changed between a caption and its hard positive, in words.

    A change that occurs twice is named once. Where words were only dropped or added, a neighbouring
    word that stayed is named with them, so that neither side is empty. A replacement inside a
    longer word shows the longer words, since these are what a model reads.

    Returns:
        `"before > after"`, several joined with `", "`; empty where nothing changed.

    Examples:
        >>> substitution("white dog ON grass", "ivory dog ON grass")
        'white > ivory'
        >>> substitution("cup on top of table", "cup on table")
        'on top of > on'
        >>> substitution("white whiteboard", "ivory ivoryboard")
        'white > ivory, whiteboard > ivoryboard'
    """
    found = changes(caption, hard_positive)
    return ", ".join(dict.fromkeys(f"{before} > {after}" for before, after in found))


def mark_flaws(triples: list[Triple]) -> list[Triple]:
    """Add the flaws that show only beside the other rows of the split, in the order of `FLAWS`.

    Source: the texts but for spaces and the case of letters. Two rows are of the same image if path
    and box agree: another box is another picture.
    """
    positives, seen, marked = defaultdict(set), set(), []
    for triple in triples:
        positives[triple.image_path, triple.bbox] |= {
            said(triple.caption),
            said(triple.hard_positive),
        }
    for triple in triples:
        image = (triple.image_path, triple.bbox)
        caption, hard_positive, hard_negative = content = (
            said(triple.caption),
            said(triple.hard_positive),
            said(triple.hard_negative),
        )
        flaws = set(triple.flaws)
        if hard_negative not in (caption, hard_positive) and hard_negative in positives[image]:
            flaws.add("contradicted")
        if (image, content) in seen:
            flaws.add("duplicate")
        seen.add((image, content))
        marked.append(replace(triple, flaws=tuple(name for name in FLAWS if name in flaws)))
    return marked
