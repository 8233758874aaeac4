"""One bit flipped in a file that a command reads: it must notice, do it again, or not mind.

The whole command runs each time. Where it ends well, it must end with the bytes of a run on
undamaged files; a warning counts as refused.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

from attacks.commands import run, run_well
from attacks.trials import Attack, Outcome, Trial, refused, right, wrong
from attacks.world import Command


def flips_in(
    files: str, name: str, pattern: str, commands: Callable, small: int, full: int, *, stopped=""
) -> Attack:
    """Attack the files that a command finds when it begins.

    Args:
        files: What they are.
        name: Of the command.
        pattern: Which files of its place, before or between two runs, as a glob.
        commands: Gives the commands by name.
        small: Trials of the small size, like `full`.
        stopped: Files that a killed run has left by when they are damaged, as a glob.
    """

    @contextmanager
    def prepare(scratch: Path) -> Iterator[Callable[[Trial], Outcome]]:
        command = replace(commands()[name], scratch=scratch)
        state = scratch / "state"
        command.begin(state)
        if stopped:
            _stop_half_way(command, state, stopped)
        elif not list(state.glob(pattern)):  # what one run leaves for the next
            run_well(command.line(state), state / "home")
            shutil.rmtree(state / "out")
        unharmed = _run(command, state, scratch / "unharmed")
        if unharmed.verdict != "right":
            raise RuntimeError(f"{name} minds files that are not damaged: {unharmed.detail}")
        yield lambda trial: _run(command, state, trial.folder / "place", trial.random, pattern)

    return Attack(f"flips: {files}", prepare, small, full)


def _stop_half_way(command: Command, state: Path, pattern: str) -> None:
    """Kill it with two of the files there and work still to be done."""
    whole, _ = command.reference
    for change in range(whole.changes // 2, whole.changes):
        command.begin(state)
        run(command.line(state), state / "home", die_before=change)
        if len(list(state.glob(pattern))) > 1:
            return
    raise RuntimeError(f"{command.name} leaves no {pattern}")


def _run(
    command: Command, state: Path, place: Path, random: Random | None = None, pattern: str = ""
) -> Outcome:
    """Run it on a copy of what it found, with a bit flipped if `random` says where."""
    shutil.copytree(state, place)
    where = flip(random, place, pattern) if random else "no flip"
    done = run(command.line(place), place / "home")
    if done.process.exitcode == 0:
        if "Warning" in done.printed:
            return refused(f"{where}: {done.printed}")
        return right() if command.is_done(place) else wrong(f"{where}: accepted without a word")
    outcome = done.judge_refusal()
    return replace(outcome, detail=f"{where}: {outcome.detail}")


def flip(random: Random, folder: Path, pattern: str) -> str:
    """Flip one bit of one of the files and say which."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and path.stat().st_size)
    path = random.choice(files)
    content = bytearray(path.read_bytes())
    place = random.randrange(len(content))
    content[place] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return f"byte {place} of {path.relative_to(folder)}"
