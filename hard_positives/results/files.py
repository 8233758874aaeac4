"""A result in a folder: ``results.json`` and ``scores.parquet``, always of one and the same run.

Two files cannot be renamed in one step. So ``results.json`` names its scores by their SHA-256, and
new scores wait under a hidden name with that hash, beside the old ones, until ``results.json`` has
been replaced; only then do they take the place of the old. Whenever a save is cut off, either the
older result is there whole, or the new one with its scores under the hidden name, where
`read_result` finds them and the next save puts them in place.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hard_positives.lookup import near_names
from hard_positives.suite.columns import IMAGE_TO_TEXT, TEXT_TO_IMAGE, TEXT_TO_TEXT
from hard_positives_dataset.folders import (
    full_disk_explained,
    lock_for,
    put_in_place,
    write_whole,
)

RESULTS_FILE, SCORES_FILE = "results.json", "scores.parquet"
SCORES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("category", pa.string()),
        ("substitution", pa.string()),
        ("cluster", pa.string()),
        ("flaws", pa.list_(pa.string())),
        ("direction", pa.string()),
        ("set", pa.string()),
        ("images", pa.list_(pa.string())),
        ("captions", pa.list_(pa.string())),
        ("labels", pa.list_(pa.bool_())),
        ("logits", pa.list_(pa.float32())),
    ]
)
_OWN = (RESULTS_FILE, SCORES_FILE, "index.html", "report.md")
# What readers of a signature rely on.
_SIGNED = {
    ("model", "id"): str,
    ("dataset", "content_sha256"): str,
    ("dataset", "splits"): dict,
    ("views",): list,
    ("tie_rule",): str,
}
_PATIENCE = 60  # seconds for another save to end; one takes a moment
_AGAIN = "Evaluate again, or restore the file."


def prepare_folder(folder: str | Path, dataset: Any = None) -> Path:
    """Make a folder for a result, and refuse before the work where none could be kept.

    Args:
        folder: Must be absent, empty, or hold an earlier result.
        dataset: What is to be scored, so that no result is put among its rows.

    Raises:
        FileExistsError: There are other files; data would be spoiled by a ``scores.parquet``.
        OSError: The folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions do not tell: not those of root, and not on a file system without writing.
        with full_disk_explained(folder), tempfile.TemporaryFile(dir=folder):
            others = sorted(path.name for path in folder.iterdir() if _is_foreign(path.name))
    except OSError as error:
        if error.strerror is None:  # explained already
            raise
        raise type(error)(
            f"Expected {folder} to be a folder that can be written to, got: {error.strerror}. "
            "Choose another folder for the result."
        ) from error
    if others and not (folder / RESULTS_FILE).exists():
        raise FileExistsError(
            f"Expected {folder} to be absent, empty or an earlier result, got {others[0]} there. "
            "Choose another folder: scores.parquet would be taken for data."
        )
    if isinstance(dataset, (str, Path)) and folder.resolve() == Path(dataset).resolve():
        raise FileExistsError(
            f"Expected a folder for the result, got the dataset's own, {folder}. Choose another: "
            "scores.parquet would be taken for data."
        )
    return folder


def check_folder(folder: str | Path, dataset: Any = None) -> None:
    """Refuse as `prepare_folder` does, and leave nothing behind: a run may end without a result."""
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        prepare_folder(folder, dataset)
    finally:
        for path in missing:
            with suppress(OSError):  # another run has put something there
                path.rmdir()


def find_results(folder: str | Path) -> Iterator[Path]:
    """Yield the folders of results in what `evaluate_all` wrote, or the folder if it is one."""
    folder = Path(folder)
    inside = sorted(path.parent for path in folder.glob("*/*/results.json"))
    is_one = not inside or (folder / "results.json").is_file()
    yield from [folder] if is_one else inside


def _is_foreign(name: str) -> bool:
    return name not in _OWN and not name.startswith(".")


def write_result(
    folder: Path, signature: dict[str, Any], scores: pa.Table, figures: dict[str, Any]
) -> None:
    """Put a result into a folder in the place of the one that is there.

    Several processes may do so at once; the last one's result stays. After any failure the older
    result is there as it was.

    Raises:
        OSError: No room, or the folder cannot be written to.
    """
    buffer = io.BytesIO()
    pq.write_table(scores, buffer, compression="zstd")
    content = buffer.getvalue()
    scores_sha256 = hashlib.sha256(content).hexdigest()
    record = {"signature": signature, "scores_sha256": scores_sha256, **figures}
    text = _sealed(record)
    with full_disk_explained(folder), lock_for(folder / RESULTS_FILE, wait=_PATIENCE):
        try:
            _settle(folder)
            with write_whole(folder / _waiting_name(scores_sha256)) as partial:
                partial.write_bytes(content)
            with write_whole(folder / RESULTS_FILE) as partial:
                partial.write_text(text, encoding="utf-8")
        finally:
            _settle(folder)


def _sealed(record: dict[str, Any]) -> str:
    """Write a record as JSON with the SHA-256 of that text, in which the hash itself is empty."""
    text = json.dumps({**record, "results_sha256": ""}, indent=2) + "\n"
    seal = hashlib.sha256(text.encode()).hexdigest()
    return text.removesuffix('""\n}\n') + f'"{seal}"\n}}\n'


def _is_sealed(text: str, seal: Any) -> bool:
    if not isinstance(seal, str) or len(seal) != 64:
        return False
    return hashlib.sha256(text.replace(seal, "").encode()).hexdigest() == seal


def _waiting_name(scores_sha256: str) -> str:
    return f".scores-{scores_sha256}.parquet"


def _settle(folder: Path) -> None:
    """Put the scores in place that ``results.json`` names; remove those of saves that failed."""
    try:
        named = _waiting_name(json.loads((folder / RESULTS_FILE).read_bytes())["scores_sha256"])
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
        named = None
    for waiting in folder.glob(_waiting_name("*")):
        if waiting.name == named:
            put_in_place(waiting, folder / SCORES_FILE)
        else:
            waiting.unlink()


def read_result(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Read scores and signature, also while another process replaces them.

    Raises:
        FileNotFoundError: The folder holds no complete result.
        ValueError: A file is damaged, edited, of another version, or of another run.
    """
    path = folder / RESULTS_FILE
    before = None
    while True:
        try:
            with open(path, "rb") as file:
                status, text = os.fstat(file.fileno()), file.read()
        except FileNotFoundError:
            kind, advice = "file", "Run hard-positives evaluate with --output for it."
            if not folder.exists():
                near = near_names(str(folder))
                kind, advice = "folder", f"Did you mean {' or '.join(near)}?" if near else advice
            raise FileNotFoundError(
                f"Expected {folder} to hold {RESULTS_FILE}, got no such {kind}. {advice}"
            ) from None
        record = _read_record(path, text)
        for content in _possible_scores(folder, record["scores_sha256"]):
            if hashlib.sha256(content).hexdigest() == record["scores_sha256"]:
                return _read_scores(folder / SCORES_FILE, content), record["signature"]
        version = (status.st_ino, status.st_mtime_ns)
        if version == before:  # else both files may have been replaced between the two reads
            raise ValueError(
                f"Expected {folder / SCORES_FILE} to have SHA-256 {record['scores_sha256']}, got "
                f"another. It is damaged, or of another run than {RESULTS_FILE}. {_AGAIN}"
            )
        before = version


def _possible_scores(folder: Path, scores_sha256: str) -> Iterator[bytes]:
    # The waiting one first: it becomes the other, so that one of the two reads meets it.
    with suppress(FileNotFoundError):
        yield (folder / _waiting_name(scores_sha256)).read_bytes()
    try:
        yield (folder / SCORES_FILE).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Expected {folder} to hold {SCORES_FILE}, got no such file. {_AGAIN}"
        ) from None


def _read_record(path: Path, text: bytes) -> dict[str, Any]:
    try:
        decoded = text.decode().replace("\r\n", "\n")  # as git may check it out
        record = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected {path} to be the JSON of a result, got a damaged or foreign file ({error}). "
            f"{_AGAIN}"
        ) from error
    kinds = {"signature": dict, "scores_sha256": str, "metrics": dict}
    if not isinstance(record, dict) or any(
        not isinstance(record.get(key), kind) for key, kind in kinds.items()
    ):
        raise ValueError(
            f"Expected {path} to hold {', '.join(kinds)} of a result, got something else. {_AGAIN}"
        )
    if "results_sha256" not in record:
        raise ValueError(
            f"Expected {path} to hold results_sha256, got a result of an older version without. "
            "Evaluate again."
        )
    if not _is_sealed(decoded, record["results_sha256"]):
        raise ValueError(
            f"Expected {path} to be as it was saved, got it edited or damaged: it has not the "
            f"SHA-256 that it states. {_AGAIN}"
        )
    for keys, kind in _SIGNED.items():
        value = record["signature"]
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise ValueError(
                f"Expected the signature in {path} to hold {'.'.join(keys)} ({kind.__name__}), got "
                f"{value!r}. Evaluate again."
            )
    return record


def _read_scores(path: Path, content: bytes) -> pa.Table:
    try:
        # Without threads: a process that ends at once after reading with them sometimes aborts.
        table = pq.read_table(pa.BufferReader(content), use_threads=False, pre_buffer=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected {path} to be Parquet, got a file that cannot be read ({error}). {_AGAIN}"
        ) from error
    if not table.schema.equals(SCORES_SCHEMA):
        raise ValueError(
            f"Expected {path} to have the columns {SCORES_SCHEMA.names} of a result, got "
            f"{[f'{field.name} ({field.type})' for field in table.schema]}. It is of an older "
            "version, which this one does not read, or no result: evaluate again."
        )
    _check_lists(path, table)
    return table


def _check_lists(path: Path, scores: pa.Table) -> None:
    """Refuse rows that are no comparisons, such as other programs may write."""
    sizes = {
        name: np.diff(scores[name].combine_chunks().offsets.to_numpy())
        for name in ("images", "captions", "labels", "logits")
    }
    directions = np.array(scores["direction"].to_pylist(), dtype=str)
    to_text = directions == IMAGE_TO_TEXT
    alone = directions == TEXT_TO_TEXT
    candidates = np.where(to_text, sizes["captions"], sizes["images"])
    anchors = np.where(to_text, sizes["images"], sizes["captions"])
    candidates = np.where(alone, sizes["captions"] - 1, candidates)
    anchors = np.where(alone, 1 + sizes["images"], anchors)  # no image
    right = (to_text | alone | (directions == TEXT_TO_IMAGE)) & (anchors == 1)
    right &= (sizes["labels"] == candidates) & (sizes["logits"] == candidates)
    if not right.all():
        raise ValueError(
            f"Expected {path} to hold an anchor and as many labels and logits as candidates in "
            f"every row, got others in row {np.flatnonzero(~right)[0]}. {_AGAIN}"
        )
