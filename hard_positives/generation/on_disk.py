"""Tables and look-ups that lie in temporary files, so that memory does not grow with them.

The files have no name, or lose it at once: nothing is left of them, whatever ends the process. What
is small stays in memory. This file knows nothing of captions.
"""

import mmap
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from hard_positives_dataset.folders import full_disk, full_disk_explained

_BATCH_ROWS = 1000
_MEMORY = 2**22  # bytes of a table that need no file
_REMEDY = "Free space there, or name another folder in TMPDIR, and run the same again."


def table_on_disk(schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Write rows to a temporary file and map it into memory: the system keeps what is being read.

    Raises:
        OSError: The disk of temporary files is full.

    Examples:
        >>> table_on_disk(pa.schema({"caption": pa.string()}), [{"caption": "a cat"}]).num_rows
        1
    """
    rows = iter(rows)
    with (
        full_disk_explained(Path(tempfile.gettempdir()), _REMEDY),
        tempfile.SpooledTemporaryFile(_MEMORY) as file,
    ):
        with pa.ipc.new_stream(pa.PythonFile(file, "w"), schema) as writer:
            while batch := list(islice(rows, _BATCH_ROWS)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
        size = file.tell()
        file.seek(0)  # writes out what is buffered
        is_large = size > _MEMORY
        content = (
            mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if is_large else file.read()
        )
        return pa.ipc.open_stream(pa.py_buffer(content)).read_all()


@contextmanager
def database(tables: str) -> Iterator[sqlite3.Connection]:
    """Give a database with these tables; it is gone with the block.

    Raises:
        OSError: The disk of temporary files is full.

    Examples:
        >>> with database("CREATE TABLE edits (line INTEGER PRIMARY KEY, edit TEXT)") as lines:
        ...     _ = lines.execute("INSERT INTO edits VALUES (7, 'a cat')")
        ...     lines.execute("SELECT edit FROM edits WHERE line = 7").fetchone()
        ('a cat',)
    """
    with closing(sqlite3.connect("")) as connection:  # no name: a file of SQLite's own
        # What is cut off is gone anyway, so nothing needs to be undone or to survive.
        connection.executescript("PRAGMA journal_mode = OFF; PRAGMA cache_size = -16384;" + tables)
        try:
            yield connection
        except sqlite3.OperationalError as error:
            raise full_disk(Path(tempfile.gettempdir()), str(error), _REMEDY) from error
