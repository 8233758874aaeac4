"""Disks that are full sooner or later: each command on small file systems of every size.

Where mounting is not allowed, no file may grow beyond the size instead, which fails much alike.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from attacks.commands import leftovers, run
from attacks.trials import Attack, Outcome, Trial, right, wrong
from attacks.world import Command

PAGE = 4096


def disks_of(
    name: str, commands: Callable, small: int, full: int, *, cache: bool = False
) -> Attack:
    """Attack a command's output, or its cache."""

    @contextmanager
    def prepare(scratch: Path) -> Iterator[Callable[[Trial], Outcome]]:
        command = replace(commands()[name], scratch=scratch)
        whole, _ = command.reference
        needed = _used(whole.home / "cache" if cache else scratch / "reference" / "out")
        fill = _fill if _may_mount(scratch) else _limit
        # Always too little, by at least a page.
        yield lambda trial: fill(command, trial, trial.random.randrange(0, needed, PAGE), cache)

    return Attack(f"disks: {name}{' cache' if cache else ''}", prepare, small, full)


def _fill(command: Command, trial: Trial, room: int, cache: bool) -> Outcome:
    disk = trial.folder / "disk"
    place = trial.folder / "place" if cache else disk / "place"
    options = {"cache": disk / "cache"} if cache else {}
    with _mounted(disk):
        command.begin(place)
        (disk / "something").write_bytes(b"else")  # a size of 0 would mean no limit
        _mount("remount", _used(disk) + room, disk)
        outcome = _judge(command, place, trial.folder / "first", **options)
        _mount("remount", "100%", disk)
        return outcome if outcome.verdict == "wrong" else _again(command, place, trial, outcome)


def _limit(command: Command, trial: Trial, room: int, cache: bool) -> Outcome:
    place = trial.folder / "place"
    command.begin(place)
    outcome = _judge(command, place, trial.folder / "first", largest_file=room)
    return outcome if outcome.verdict == "wrong" else _again(command, place, trial, outcome)


def _judge(command: Command, place: Path, home: Path, **options) -> Outcome:
    done = run(command.line(place), home, **options)
    problem = command.problem(place)
    if problem:
        return wrong(problem)
    if done.process.exitcode == 0:
        return right() if command.is_done(place) else wrong("exit code 0 and no whole output")
    return done.judge_refusal()


def _again(command: Command, place: Path, trial: Trial, outcome: Outcome) -> Outcome:
    """The same command, now with room, must end with the same bytes and leave nothing behind."""
    if outcome.verdict == "refused":
        last = run(command.line(place), trial.folder / "again")
        if last.process.exitcode != 0 or not command.is_done(place):
            return wrong(f"not right with room either: {last.printed[-300:]}")
    left = leftovers(place)
    return wrong(f"left behind: {left}") if left else outcome


def _used(folder: Path) -> int:
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // PAGE) * PAGE for size in sizes)


@contextmanager
def _mounted(disk: Path) -> Iterator[None]:
    disk.mkdir()
    _mount("rw", "100%", disk)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _mount(how: str, size: int | str, disk: Path) -> None:
    options = ["-t", "tmpfs", "-o", f"{how},size={size}", "tmpfs", disk]
    subprocess.run(["mount", *options], check=True, capture_output=True)


def _may_mount(scratch: Path) -> bool:
    try:
        with _mounted(scratch / "disk"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
