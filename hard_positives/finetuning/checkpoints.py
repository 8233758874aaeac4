"""Checkpoints that count only with the very bytes they were written with.

A checkpoint is a folder `checkpoint-STEP` from `transformers.Trainer`. It is sealed once it is
written: the file `complete` holds the SHA-256 of all of its files. A kill, a full disk, a power cut
or a damaged disk leave a folder without a seal or with one that does not fit, which is never read.
"""

import hashlib
import re
import shutil
import warnings
from pathlib import Path

from hard_positives_dataset.folders import flush, write_whole

SEAL = "complete"


def seal(checkpoint: Path) -> None:
    """Write down the SHA-256 of every file, once all of them are on the disk."""
    flush(checkpoint)
    with write_whole(checkpoint / SEAL) as partial:
        partial.write_text(_seal_of(checkpoint), encoding="utf-8")


def is_whole(checkpoint: Path) -> bool:
    """Tell whether every file is there, no other, and each with the bytes it was written with."""
    found = checkpoint / SEAL
    return found.is_file() and found.read_bytes() == _seal_of(checkpoint).encode()


def _seal_of(checkpoint: Path) -> str:
    lines = [checkpoint.name]
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        if path != checkpoint / SEAL:
            lines.append(f"{digest_of(path)}  {path.relative_to(checkpoint).as_posix()}")
    return "\n".join([*lines, ""])


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def last_whole(folder: Path) -> Path | None:
    """Find the newest checkpoint that is whole, and remove what is newer.

    Returns:
        None if none is whole. Where one was damaged after it was sealed, a warning says so.
    """
    damaged, chosen = [], None
    for checkpoint in reversed(in_order(folder)):
        if is_whole(checkpoint):
            chosen = checkpoint
            break
        if (checkpoint / SEAL).exists():
            damaged.append(checkpoint.name)
        shutil.rmtree(checkpoint)
    if damaged:
        names = " and ".join(damaged)
        start = f"Resuming from {chosen.name}" if chosen else "Starting again from the beginning"
        warnings.warn(
            f"Expected {names} to be as it was written, got other bytes. {start}.", stacklevel=2
        )
    return chosen


def in_order(folder: Path) -> list[Path]:
    """List the checkpoints of a run, the oldest first."""
    found = [path for path in folder.glob("*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))
