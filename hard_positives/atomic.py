"""Files that are whole or not there, at whatever moment the process that writes them is killed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, beside ``path``; what was written takes its place at the end.

    An error inside leaves what was at ``path`` before. Any number of processes may write the same.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "results.json"
        >>> with write_whole(path) as partial:
        ...     _ = partial.write_text("{}")
        ...     path.exists()
        False
        >>> path.read_text()
        '{}'
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
