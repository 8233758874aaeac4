"""A dataset's rows as questions with a yes or no for an answer: a config that inspect-ai can run.

inspect-ai reads ``eval.yaml`` of a dataset on the Hub and asks a generative model what stands in a
column. An image must stand in a column, too, as text (a data URI), which the dataset's own column
of images is not; so the config holds each image again.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hard_positives.models.kinds import QUESTION
from hard_positives.suite.columns import CAPTION_COLUMNS

CONFIG = "yes_no"
_ROWS = 256  # at a time, and in a row group: images are expanded where they are read
_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("row", "kind", "category", "question")),
        *(pa.field(name, pa.string()) for name in ("answer", "image")),
    ]
)


def write_questions(files: Sequence[Path], folder: Path) -> list[Path]:
    """Write three questions for every row of these Parquet files, each image of a group once."""
    written = []
    for file in files:
        written.append(folder / file.name)
        options = {"use_dictionary": True, "dictionary_pagesize_limit": 1 << 30}
        with pq.ParquetWriter(written[-1], _SCHEMA, compression="zstd", **options) as writer:
            for rows in _batches(file):
                questions = [question for row in rows for question in _questions(row)]
                writer.write_table(pa.Table.from_pylist(questions, _SCHEMA))
    return written


def _batches(file: Path) -> Iterator[list[dict[str, Any]]]:
    reader = pq.ParquetFile(file)
    wanted = {"id", "image", "category", *CAPTION_COLUMNS} & set(reader.schema_arrow.names)
    for batch in reader.iter_batches(_ROWS, columns=sorted(wanted)):
        yield batch.to_pylist()


def _questions(row: dict[str, Any]) -> Iterator[dict[str, str | None]]:
    image = _data_uri(row["image"]["bytes"])
    for kind in CAPTION_COLUMNS:
        yield {
            "row": row.get("id"),
            "kind": kind,
            "category": row.get("category"),
            "question": QUESTION.format(row[kind]),
            "answer": "No" if kind == "hard_negative" else "Yes",
            "image": image,
        }


def _data_uri(content: bytes) -> str:
    kind = Image.MIME[Image.open(io.BytesIO(content)).format]
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def card_config(splits: Sequence[str]) -> dict[str, Any]:
    """What the card says of the config."""
    files = [{"split": split, "path": f"{CONFIG}/{split}-*.parquet"} for split in splits]
    return {"config_name": CONFIG, "data_files": files}


def inspect_task(split: str) -> dict[str, Any]:
    """What ``eval.yaml`` says of a split: inspect-ai's fields, solvers and scorers."""
    return {
        "id": f"{split}_{CONFIG}",
        "config": CONFIG,
        "split": split,
        "field_spec": {
            "input": "question",
            "input_image": "image",
            "target": "answer",
            "metadata": ["row", "kind", "category"],
        },
        "solvers": [{"name": "generate"}],
        "scorers": [{"name": "pattern", "args": {"pattern": r"^\W*(yes|no)\b"}}],
    }
