"""Judgments in SQLite, in the dataset's folder: each is kept at once, and none is ever changed.

    FOLDER/judgments.sqlite: number, annotator, row, caption, judgment, at

A caption that is judged again gets a further line, and the last one counts. With a write-ahead log
that is flushed at every judgment, a kill or a power cut loses none that was answered, and several
processes may write and read at a time.
"""

import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock

from hard_positives_dataset.folders import lock_for

JUDGMENTS_FILE = "judgments.sqlite"
JUDGMENTS = TRUE, FALSE, CANNOT_TELL = ("true", "false", "cannot tell")
Judged = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Row -> annotator -> caption -> judgment."""

_PATIENCE = 30  # seconds for another process that writes
_OURS = 0x48705276  # SQLite's application_id
_SCHEMA = f"""
CREATE TABLE judgments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    annotator TEXT NOT NULL,
    row TEXT NOT NULL,
    caption TEXT NOT NULL,
    judgment TEXT NOT NULL CHECK (judgment IN {JUDGMENTS}),
    at TEXT NOT NULL
);
CREATE INDEX by_annotator ON judgments (annotator);
CREATE TRIGGER never_changed BEFORE UPDATE ON judgments
    BEGIN SELECT RAISE(ABORT, 'judgments are never changed'); END;
CREATE TRIGGER never_removed BEFORE DELETE ON judgments
    BEGIN SELECT RAISE(ABORT, 'judgments are never removed'); END;
PRAGMA application_id = {_OURS};
"""
_COLUMNS = "row, annotator, caption, judgment"


class Judgments:
    """The judgments of a dataset's folder, to be added to; made where there are none.

    Raises:
        OSError: The folder cannot be written to.
        ValueError: The file there is damaged or another program's.

    Examples:
        >>> import tempfile
        >>> judgments = Judgments(tempfile.mkdtemp())
        >>> judgments.add("ann", "52c5318b", "a cat", "true")
        >>> judgments.add("ann", "52c5318b", "a cat", "false")
        >>> judgments.of("ann")
        {'52c5318b': {'a cat': 'false'}}
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        path = Path(folder) / JUDGMENTS_FILE
        try:
            # Locked: SQLite lets two processes that make the log at once collide.
            with lock_for(path, wait=_PATIENCE):
                self._opened = sqlite3.connect(path, timeout=_PATIENCE, check_same_thread=False)
                if not _is_ours(self._opened, path):
                    self._opened.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
                self._opened.execute("PRAGMA journal_mode = WAL")
                self._opened.execute("PRAGMA synchronous = FULL")
        except (OSError, sqlite3.OperationalError) as error:
            raise OSError(
                f"Expected {folder} to be writable, so that judgments are kept there, got: {error}."
                " Copy the dataset's folder to where you may write."
            ) from error
        self._lock = Lock()

    def add(self, annotator: str, row: str, caption: str, judgment: str) -> None:
        """Keep a judgment; it is on the disk when this returns.

        Args:
            annotator: Who judged.
            row: The row's key.
            caption: The caption that was judged.
            judgment: One of `JUDGMENTS`.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        with self._lock, self._opened:
            self._opened.execute(
                "INSERT INTO judgments (annotator, row, caption, judgment, at) VALUES (?,?,?,?,?)",
                (annotator, row, caption, judgment, now),
            )

    def of(self, annotator: str) -> dict[str, dict[str, str]]:
        """What one annotator says: row -> caption -> judgment."""
        query = f"SELECT {_COLUMNS} FROM judgments WHERE annotator = ? ORDER BY number"
        with self._lock:
            found = _last_ones(self._opened.execute(query, (annotator,)))
        return {row: by_annotator[annotator] for row, by_annotator in found.items()}

    def close(self) -> None:
        """Close the file."""
        self._opened.close()


def read_judgments(folder: str | os.PathLike) -> Judged:
    """Read what people say, also while others judge; empty where nobody has judged.

    Raises:
        ValueError: The file there is damaged or another program's.
    """
    path = Path(folder).resolve() / JUDGMENTS_FILE
    if not path.is_file():
        return {}
    # The log's index must be written beside the file, even to read.
    mode = "mode=ro" if os.access(path.parent, os.W_OK) else "immutable=1"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?{mode}", _PATIENCE, uri=True)) as opened:
            if not _is_ours(opened, path):
                return {}
            query = f"SELECT {_COLUMNS} FROM judgments ORDER BY number"
            return _last_ones(opened.execute(query))
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error


def _is_ours(opened: sqlite3.Connection, path: Path) -> bool:
    """Whether there are judgments; False in an empty file. Datasets come from other people."""
    opened.execute("PRAGMA trusted_schema = OFF")
    try:
        held = opened.execute("SELECT type FROM sqlite_master WHERE name = 'judgments'").fetchall()
        [application] = opened.execute("PRAGMA application_id").fetchone()
        is_empty = opened.execute("SELECT 1 FROM sqlite_master").fetchone() is None
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise _damaged(path, error) from error
    if not is_empty and (held != [("table",)] or application != _OURS):
        raise _damaged(path, "a file of another program")
    return not is_empty


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"Expected {path} to hold judgments, got: {why}. Restore the file, or move it away to "
        "start anew."
    )


def _last_ones(lines: Iterable[tuple[str, str, str, str]]) -> dict[str, dict[str, dict[str, str]]]:
    judged: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for row, annotator, caption, judgment in lines:
        judged[row][annotator][caption] = judgment
    return {row: dict(by_annotator) for row, by_annotator in judged.items()}
