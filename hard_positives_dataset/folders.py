"""Files and folders that are whole or not there.

Whatever happens to the process that writes them: an error, a full disk, SIGKILL, a power cut. What
is written goes beside its target under a hidden name, is flushed to the disk, and takes the
target's place in one step. What dead writers have left is removed by the next writer.

Nothing here knows of rows or models.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FREE_SPACE = "Free space or choose another folder, and run the same again."
_NAME_BYTES = 255 - len("..incomplete")  # file systems take 255, the hidden names beside it more
_DAY = 86_400  # seconds, after which a partial file of another machine counts as left behind


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, beside `path`; what was written takes its place at the end.

    An error inside leaves what was at `path` before. Any number of processes may write the same.

    Raises:
        OSError: The disk is full; the message says what to do.

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
    remove_partials(path.parent)
    partial = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex}.partial")
    try:
        with full_disk_explained(path):
            yield partial
            put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove the hidden files that writers which are dead by now have left in a folder."""
    for partial in folder.glob(".*.partial"):
        if _is_left_behind(partial):
            partial.unlink(missing_ok=True)


def read_regular_file(path: str | os.PathLike, max_bytes: int) -> bytes:
    """Read a file that somebody else has named, and no more than that.

    A FIFO would wait for ever and a device may never end, so neither is opened.

    Raises:
        ValueError: It is no regular file, or a larger one; the message is a phrase such as
            "a device", for a sentence that names the file or the row.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{kinds.get(stat.S_IFMT(mode), 'a device')} instead of a file")
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        size = max(os.path.getsize(path), len(content))
        raise ValueError(f"a file of {size:,} bytes, more than {max_bytes:,}")
    return content


def _is_left_behind(partial: Path) -> bool:
    found = re.fullmatch(r"\..*\.([\w-]+)\.(\d+)\.[0-9a-f]{32}\.partial", partial.name)
    if found is None:
        return False
    host, process = found.groups()
    if host == _host() and os.name == "posix":
        return not _is_alive(int(process))
    try:
        return time.time() - partial.stat().st_mtime > _DAY
    except FileNotFoundError:
        return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _host() -> str:
    return re.sub(r"[^\w-]", "-", platform.node()) or "unknown"


def put_in_place(partial: Path, path: Path) -> None:
    """Rename a file, or a folder with all that it holds, once it is on the disk.

    So a power cut leaves it whole under one of the two names.
    """
    flush(partial)
    os.replace(partial, path)
    _flush_one(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all that it holds, is on the disk."""
    for written in (*path.rglob("*"), path):
        _flush_one(written)


def _flush_one(path: Path) -> None:
    if os.name == "nt":  # has no way to flush a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def full_disk_explained(output: Path, remedy: str = _FREE_SPACE) -> Iterator[None]:
    """Turn the error of a full disk into one that names `output` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        explained = full_disk(output, os.strerror(error.errno), remedy)
        explained.errno = error.errno  # set apart: the message would begin with the number
        raise explained from error


def full_disk(output: Path, why: str, remedy: str = _FREE_SPACE) -> OSError:
    """Make the error of a full disk, for libraries that raise one of their own."""
    return OSError(
        f"Expected room on the disk for {output}, got: {why}. What was there before is unchanged. "
        f"{remedy}"
    )


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a hidden folder that becomes `output` if the block succeeds, and is removed if not.

    Raises:
        ValueError: `output` is a name that no folder can have.
        FileExistsError: `output` holds something, or another process is making it.
        OSError: The disk is full; nothing is left.
    """
    _check_name(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.incomplete")
    with lock_for(output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(
                f"Expected {output} to be absent or an empty folder, got something there. Remove "
                "it or choose another folder."
            )
        # Who holds the lock knows that the folder of this name belongs to a dead run.
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with full_disk_explained(output):
                temporary.mkdir()
                yield temporary
                put_in_place(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_name(output: Path) -> None:
    size = len(os.fsencode(output.name))
    if size > _NAME_BYTES:
        raise ValueError(
            f"Expected the output's name to take at most {_NAME_BYTES} bytes, got {size}: "
            f"{output.name}. Choose a shorter name."
        )


@contextmanager
def lock_for(output: Path, wait: float = 0) -> Iterator[None]:
    """Hold the right to make `output`; a hidden lock file stays beside it.

    Args:
        output: The file or folder to make.
        wait: Seconds to wait for another process that holds it.

    Raises:
        ValueError: `output` is a name that no folder can have.
        FileExistsError: Another process holds it.
    """
    _check_name(output)
    lock = FileLock(output.with_name(f".{output.name}.lock"), timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"Expected {output} to be free, got another process that is writing it. Wait for it, "
            "or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()
