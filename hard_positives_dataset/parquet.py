"""Rows -> a Parquet folder that `datasets.load_dataset` reads with nothing of ours installed.

Takes any splits with the columns of this dataset, be they from the builder, from `shapes` or
training rows. Rows that share an image must stand together; then each image is stored once
(dictionary encoding), where the library's own writers store it once a row. The folder appears whole
or not at all.
"""

from __future__ import annotations

import glob
import hashlib
import json
import mmap
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData
from tqdm.auto import tqdm

from .content import ContentHash
from .folders import new_folder

# What a file of one split takes on disk before the next one begins.
SHARD_BYTES = 500_000_000
# What a row group takes in memory, each image counted once a row. A reader expands it whole, and
# above 2 GiB cannot; the second figure cuts even among rows of one image.
GROUP_BYTES = 100_000_000
_GROUP_LIMIT = 1_000_000_000
GROUP_ROWS = 20_000  # of texts alone a group would never be full
_CAPTION_COLUMNS = ("caption", "hard_positive", "hard_negative")
_MEMORY = 2**22  # bytes of hashes that need no file


class Rows(Protocol):
    """What is asked of rows that are no dataset: images undecoded, as structs of bytes and path."""

    @property
    def features(self) -> datasets.Features:
        """The columns."""

    @property
    def info(self) -> datasets.DatasetInfo:
        """Description, licence and citation."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...


def build_parquet(
    splits: Mapping[str, datasets.Dataset | datasets.IterableDataset | Rows],
    output_dir: str | os.PathLike,
    *,
    progress: bool = True,
) -> Path:
    """Write splits as a folder of Parquet files with a dataset card.

    The same rows give the same bytes. Everything is written to a hidden folder beside `output_dir`
    and renamed at the end; what a killed run has left there is cleared by the next. A hidden lock
    file stays beside it.

    Args:
        splits: for each split name a dataset with the columns of this benchmark (at least the three
            captions), rows of one image adjacent; without a column `image`, of texts alone. Its
            description, licence and citation (`.info`) go into the card.
        output_dir: the folder to make. It must be absent or empty: nothing is overwritten.
        progress: whether to show a bar with the rate.

    Returns:
        The path of the folder, for `load_dataset(path, split=...)`.

    Raises:
        FileExistsError: `output_dir` holds something, or another build is writing it.
        ValueError: a split has no rows, lacks a column, or its images have no bytes; or
            `load_dataset` would take the path of `output_dir` for a pattern.
        OSError: the disk is full; nothing is left.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> captions = {"caption": ["a"], "hard_positive": ["b"], "hard_negative": ["c"]}
        >>> split = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))], **captions})
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = build_parquet({"replace": split}, f"{parent}/out", progress=False)
        ...     sorted(path.name for path in folder.rglob("*.*"))
        ['README.md', 'replace-00000-of-00001.parquet']
    """
    _check(splits)
    output = _checked_output(output_dir)
    with new_folder(output) as folder:
        (folder / "data").mkdir()
        counts = {
            name: _write_split(name, rows, folder / "data", progress)
            for name, rows in splits.items()
        }
        (folder / "README.md").write_text(_card(splits, counts), encoding="utf-8")
    return output


def _check(splits: Mapping[str, datasets.Dataset | datasets.IterableDataset | Rows]) -> None:
    if not splits:
        raise ValueError("Expected splits to name at least one split, got none.")
    for name, rows in splits.items():
        if not re.fullmatch(r"\w+", name):
            raise ValueError(
                f"Expected split names to be letters, digits and '_', got {name!r}. Rename it."
            )
        missing = [c for c in _CAPTION_COLUMNS if c not in (rows.features or ())]
        if missing:
            raise ValueError(
                f"Expected split {name} to have the columns of this dataset, got none called "
                f"{', '.join(missing)}. Give the rows features=...; see FEATURES in builder.py."
            )
    if any(rows.features != next(iter(splits.values())).features for rows in splits.values()):
        raise ValueError(
            "Expected all splits to have the same features, got different ones. Cast them to one."
        )


def _checked_output(output_dir: str | os.PathLike) -> Path:
    if "\0" in str(output_dir):
        raise ValueError(
            f"Expected the output to be a path, got {str(output_dir)!r} with NUL. Choose another."
        )
    output = Path(output_dir).resolve()
    if glob.has_magic(str(output)) or "::" in str(output):
        raise ValueError(
            f"Expected the output's path to have no *, ?, [ or ::, got {output}, which datasets "
            "takes for a pattern and could not load. Choose another folder."
        )
    return output


@dataclass
class _Counts:
    """What the card tells of one split."""

    rows: int = 0
    expanded_bytes: int = 0
    image_bytes: int = 0
    images: _Distinct = field(default_factory=lambda: _Distinct())
    captions: _Distinct = field(default_factory=lambda: _Distinct())
    categories: Counter = field(default_factory=Counter)
    flaws: Counter = field(default_factory=Counter)
    flawed_rows: int = 0
    content: ContentHash = field(default_factory=ContentHash)

    def add(self, row: dict, content: bytes, new_image: bool) -> None:
        self.rows += 1
        self.expanded_bytes += len(content)
        if new_image and content:
            self.image_bytes += len(content)
            self.images.add(content)
        cells = (row[column] or () for column in _CAPTION_COLUMNS)
        for text in chain.from_iterable(
            [cell] if isinstance(cell, str) else cell for cell in cells
        ):
            self.captions.add(text.encode())
        self.categories[row.get("category") or "none"] += 1
        self.flaws.update(row.get("flaws") or ())
        self.flawed_rows += bool(row.get("flaws"))


class _Distinct:
    """Counts how many different contents come, by hashes of eight bytes.

    What does not fit into a little memory lies in a temporary file: memory does not grow with rows.
    """

    def __init__(self) -> None:
        # Written in large pieces, so that it is only touched by sets that are large.
        self._file = tempfile.SpooledTemporaryFile(_MEMORY, buffering=2**20)  # noqa: SIM115

    def add(self, content: bytes) -> None:
        self._file.write(hashlib.blake2b(content, digest_size=8).digest())

    def count(self) -> int:
        """Return how many; nothing can be added afterwards."""
        with self._file as file:
            size = file.tell()
            if not size:
                return 0
            file.seek(0)  # writes out what is buffered
            hashes = np.frombuffer(
                mmap.mmap(file.fileno(), size) if size > _MEMORY else bytearray(file.read()),
                np.uint64,
            )
        hashes.sort()  # in its place
        starts = range(0, len(hashes) - 1, _MEMORY)
        pieces = (hashes[start : start + _MEMORY + 1] for start in starts)
        return 1 + sum(int(np.count_nonzero(piece[1:] != piece[:-1])) for piece in pieces)


def _write_split(
    split: str,
    rows: datasets.Dataset | datasets.IterableDataset | Rows,
    folder: Path,
    progress: bool,
) -> _Counts:
    counts = _Counts()
    schema = _portable_schema(rows.features)
    expected = (rows.info.splits or {}).get(split)
    total = len(rows) if isinstance(rows, datasets.Dataset) else expected and expected.num_examples
    encoded = rows
    if "image" in rows.features and isinstance(rows, (datasets.Dataset, datasets.IterableDataset)):
        encoded = rows.cast_column("image", datasets.Image(decode=False))
    shards = []
    with tqdm(encoded, f"Writing {split}", total, unit="row", disable=not progress) as bar:
        groups = _row_groups(bar, split, counts)
        while shard := _write_shard(groups, schema, folder / f"{split}.{len(shards)}", counts):
            shards.append(shard)
    if not shards:
        raise ValueError(f"Expected split {split} to have rows, got none.")
    for number, shard in enumerate(shards):
        shard.rename(folder / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")
    return counts


def _row_groups(rows: Iterable[dict], split: str, counts: _Counts) -> Iterator[list[dict]]:
    """Rows in groups of about `GROUP_BYTES` that end where an image ends."""
    group, size, previous = [], 0, None
    for row in rows:
        content = _bytes_of(row)
        if content is None:
            raise ValueError(
                f"Expected every image of split {split} to carry its bytes, got row {counts.rows} "
                "without. Load images into the rows; paths are not followed."
            )
        new_image = content != previous or not content
        full = size >= GROUP_BYTES or len(group) >= GROUP_ROWS
        if (full and new_image) or size >= _GROUP_LIMIT:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(content)
        previous = content
        counts.add(row, content, new_image)
    if group:
        yield group


def _bytes_of(row: dict) -> bytes | None:
    """The image of a row; nothing of texts alone, None where it is missing."""
    if "image" not in row:
        return b""
    return (row["image"] and row["image"]["bytes"]) or None


def _write_shard(
    groups: Iterator[list[dict]], schema: pa.Schema, path: Path, counts: _Counts
) -> Path | None:
    """Write groups until the file is full; None where no group is left."""
    group = next(groups, None)
    if group is None:
        return None
    # The default limit of 1 MiB gives the dictionary up at once and stores an image for every row.
    options = {"use_dictionary": True, "dictionary_pagesize_limit": 1 << 30}
    with closing(pq.ParquetWriter(path, schema, **options)) as writer:
        while group is not None:
            table = pa.Table.from_pylist(group, schema)
            writer.write_table(table)
            counts.content.add_table(table)
            full = path.stat().st_size >= SHARD_BYTES
            group = None if full else next(groups, None)
    return path


def _portable_schema(features: datasets.Features) -> pa.Schema:
    """The Arrow schema, its lists spelled so that datasets 3 and datasets 5 both read them."""
    schema = features.arrow_schema
    metadata = json.loads(schema.metadata[b"huggingface"])

    def spell(feature: object) -> object:
        if not isinstance(feature, dict):
            return feature
        if feature.get("_type") in ("List", "Sequence") and feature.get("length", -1) == -1:
            return [spell(feature["feature"])]
        return {name: spell(value) for name, value in feature.items()}

    metadata["info"]["features"] = spell(metadata["info"]["features"])
    return schema.with_metadata({"huggingface": json.dumps(metadata)})


def _card(splits: Mapping[str, datasets.Dataset], counts: dict[str, _Counts]) -> str:
    info = next(iter(splits.values())).info
    return f"""---
{_card_metadata(splits, counts)}
---

# Hard positives

{info.description or "Images with captions, hard positives and hard negatives."}

```python
from datasets import load_dataset

rows = load_dataset("<this folder or repository>", split="{next(iter(splits))}")
```

| split | rows | by category | distinct images | distinct captions | rows without flaws |
|---|---|---|---|---|---|
{_count_table(counts)}

Rows of one image stand together; the number in `id` is the row's place in its source.

{_content_lines(counts)}

## Flaws

{_flaw_table(counts)}

## Licence and terms

{info.license or "Not stated."}

## Citation

```bibtex
{info.citation or ""}
```
"""


def _card_metadata(splits: Mapping[str, datasets.Dataset], counts: dict[str, _Counts]) -> str:
    files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits]
    data = DatasetCardData(
        configs=[{"config_name": "default", "data_files": files}],
        hard_positives={
            "content_sha256": {name: count.content.hexdigest() for name, count in counts.items()}
        },
    )
    info = datasets.DatasetInfo(
        features=next(iter(splits.values())).features,
        splits=datasets.SplitDict(
            {
                name: datasets.SplitInfo(name, count.expanded_bytes, count.rows)
                for name, count in counts.items()
            }
        ),
        dataset_size=sum(count.expanded_bytes for count in counts.values()),
        download_size=sum(count.image_bytes for count in counts.values()),
    )
    datasets.info.DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    return data.to_yaml()


def _count_table(counts: dict[str, _Counts]) -> str:
    return "\n".join(
        f"| `{name}` | {count.rows:,} | "
        + ", ".join(f"{category} {number:,}" for category, number in count.categories.items())
        + f" | {count.images.count():,} | {count.captions.count():,} | "
        + f"{count.rows - count.flawed_rows:,} |"
        for name, count in counts.items()
    )


def _content_lines(counts: dict[str, _Counts]) -> str:
    lines = [f"* `{name}`: `{count.content.hexdigest()}`" for name, count in counts.items()]
    return "\n".join(["SHA-256 of every column of every row, images by their bytes:", "", *lines])


def _flaw_table(counts: dict[str, _Counts]) -> str:
    lines = [
        f"| `{name}` | `{flaw}` | {number:,} |"
        for name, count in counts.items()
        for flaw, number in sorted(count.flaws.items())
    ]
    if not lines:
        return "No row is marked with a flaw."
    return "\n".join(["| split | flaw | rows |", "|---|---|---|", *lines])
