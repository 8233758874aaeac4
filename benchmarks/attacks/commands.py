"""The command line in forked processes: imported once, started in milliseconds, killed at will."""

import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import datasets
import psutil

from attacks.trials import Outcome, fork, refused, wrong
from hard_positives import Rules
from hard_positives.cli import app
from hard_positives.generation import run as generation
from hard_positives.scoring import encoding, matching

# What the commands import or load when they run, here once for all.
for name in (
    *("finetuning.run", "generation.language_model", "results.pages"),
    *("hub.dataset", "hub.metric", "hub.results"),
):
    importlib.import_module(f"hard_positives.{name}")
Rules().prepare()

# Small, so that small data has several of what is put in place one by one, or shared.
for place, size_name, size in (
    (encoding, "IMAGES_PER_CHUNK", 4),
    (encoding, "CAPTIONS_PER_CHUNK", 16),
    (matching, "IMAGES_PER_CHUNK", 4),
    (generation, "BATCH_SIZE", 5),
    (Rules, "chunk_size", 20),
):
    getattr(place, size_name)  # a name that is no more would change nothing
    setattr(place, size_name, size)
# Before each of these the disk holds something else: the moments for a kill.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.truncate"}


class Run:
    """A command in a process group of its own.

    Args:
        arguments: Of the command line.
        home: Folder for the caches, temporary files and what is printed.
        die_before: Kill it with SIGKILL right before so many changes to files under `home.parent`.
        largest_file: In bytes; a longer one fails to be written as on a full disk.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        home: Path,
        *,
        die_before: int | None = None,
        largest_file: int | None = None,
        cache: Path | None = None,
    ):
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.began = home, time.monotonic()
        words = [str(argument) for argument in arguments]
        options = (words, home, cache or home / "cache", die_before, largest_file)
        self.process = fork.Process(target=_run, args=options)
        self.process.start()

    @property
    def seconds(self) -> float:
        """How long it took, once it has ended."""
        return self.ended - self.began

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for its end, at most so long; its exit code, None while it runs."""
        self.process.join(seconds)
        if self.process.exitcode is not None:
            self.ended = time.monotonic()
        return self.process.exitcode

    def kill(self) -> None:
        """Kill the process alone, as the kernel does when memory ends."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.process.exitcode == -signal.SIGKILL

    @property
    def printed(self) -> str:
        """What it wrote to the terminal."""
        return (self.home / "printed.txt").read_text(errors="replace")

    @property
    def changes(self) -> int:
        """How many changes to files a run made that came to its end."""
        return int((self.home / "changes.txt").read_text())

    def left_processes(self, patience: float = 5.0) -> list[str]:
        """Processes of its group that do not end by themselves, killed here after being named."""
        until = time.monotonic() + patience
        while (left := _group(self.process.pid)) and time.monotonic() < until:
            time.sleep(0.02)
        names = [" ".join(process.cmdline())[-60:] for process in left]
        for process in left:
            process.kill()
        return names

    def judge_refusal(self) -> Outcome:
        """Whether it ended with exit code 1 and one sentence."""
        lines = self.printed.splitlines()
        said = [line for line in lines if line.startswith("Error: ")]
        if self.process.exitcode == 1 and len(said) == 1 and "Traceback" not in self.printed:
            if "Expected " in said[0]:
                return refused(said[0])
            return wrong(f"bare error: {said[0]}")
        return wrong(f"exit code {self.process.exitcode}: {' / '.join(lines[-3:])}")


def run(arguments: Sequence[object], home: Path, **options) -> Run:
    """Run a command to its end."""
    done = Run(arguments, home, **options)
    done.wait()
    return done


def run_well(arguments: Sequence[object], home: Path, **options) -> Run:
    """Run a command that has to succeed."""
    done = run(arguments, home, **options)
    if done.process.exitcode != 0:
        raise RuntimeError(f"{arguments} ended with {done.process.exitcode}: {done.printed}")
    return done


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, or the file itself; empty where there is none."""
    if folder.is_file():
        return {folder.name: folder.read_bytes()}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[str]:
    """Hidden files and folders that are no locks."""
    hidden = (path for path in folder.rglob(".*") if path.suffix != ".lock")
    return [str(path.relative_to(folder)) for path in hidden]


def _group(number: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def _run(words, home, cache, die_before, largest_file) -> None:
    os.setsid()
    signal.alarm(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (home / "printed.txt").open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"HARD_POSITIVES_CACHE": str(cache), "NO_COLOR": "1", "COLUMNS": "200"}
    datasets.config.HF_DATASETS_CACHE = home / "datasets"
    tempfile.tempdir = str(home / "tmp")
    (home / "tmp").mkdir(exist_ok=True)
    if largest_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    changes = _kill_before(die_before, str(home.parent))
    try:
        app(words, prog_name="hard-positives")
    finally:
        sys.stdout.flush()
        (home / "changes.txt").write_text(str(changes()))


def _where(arguments: tuple) -> str:
    """The path that an audited call changes; removal of a folder names files within an open one."""
    path, opened = arguments[0], arguments[-1]
    if not isinstance(path, (str, os.PathLike)):
        return ""
    inside = len(arguments) > 1 and isinstance(opened, int) and not os.path.isabs(path)
    folder = Path(f"/proc/self/fd/{opened}") if inside and opened > 2 else None
    return os.path.join(os.readlink(folder) if folder and folder.exists() else "", path)


def _kill_before(number: int | None, folder: str):
    """Count changes to files under a folder, by Python's own audit; die right before one."""
    process, count = os.getpid(), 0

    def audit(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in CHANGES) or os.getpid() != process:
            return
        if not _where(arguments).startswith(folder):
            return
        if count == number:
            os.kill(process, signal.SIGKILL)
        count += 1

    sys.addaudithook(audit)
    return lambda: count
