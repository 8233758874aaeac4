"""SIGKILL at any moment of any command, and the same command again until it is done.

Half of the kills come at a random time, more of them near the end; the other half right before one
of the changes that the command makes to files, so that the moment between two renames is met, too:
the first kills of the trials go through these changes from the last one backwards.
Only the process itself is killed, as the kernel does when memory ends: its workers must end alone.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from attacks.commands import Run, leftovers, run
from attacks.trials import Attack, Outcome, Trial, right, wrong

MOST_KILLS = 3  # of one output


def kills_of(name: str, commands: Callable, small: int, full: int) -> Attack:
    """Attack a command; each trial kills it one to three times."""

    @contextmanager
    def prepare(scratch: Path) -> Iterator[Callable[[Trial], Outcome]]:
        command = replace(commands()[name], scratch=scratch)
        _ = command.reference
        yield lambda trial: _kill_again_and_again(command, trial)

    return Attack(f"kills: {name}", prepare, small, full)


def _kill_again_and_again(command, trial: Trial) -> Outcome:
    wanted, kills, pace = trial.random.randint(1, MOST_KILLS), 0, 1.0
    place = trial.folder / "place"
    command.begin(place)
    while kills < wanted:
        killed = _run_and_kill(command, trial, place, pace, first=pace == 1.0 and not kills)
        left = killed.left_processes()
        problem = f"processes left: {left}" if left else command.problem(place)
        if killed.process.exitcode > 0:
            problem = f"it does not go on: {killed.printed[-300:]}"
        if problem:
            return wrong(f"{problem}, after kill {kills + 1}", times=kills + 1)
        if killed.was_killed:
            kills += 1
        elif kills == 0:  # it was too fast: once more, and killed sooner
            shutil.rmtree(place / "home")
            command.begin(place)
            pace *= 0.7
        if command.is_done(place):
            break
    return _finish(command, place, kills)


def _run_and_kill(command, trial: Trial, place: Path, pace: float, first: bool) -> Run:
    whole, _ = command.reference
    uniform = trial.random.uniform
    if trial.number % 2 if first else trial.random.random() < 0.5:
        share = trial.random.choice((uniform(0, 1), uniform(0.7, 1)))
        change = int(share * pace * whole.changes)
        if first:
            change = -(1 + trial.number // 2) % max(whole.changes, 1)
        running = Run(command.line(place), place / "home", die_before=change)
        running.wait()
        return running
    share = trial.random.choice((uniform(0, 1), uniform(0.8, 1.05)))
    running = Run(command.line(place), place / "home")
    running.wait(share * pace * whole.seconds)
    running.kill()
    return running


def _finish(command, place: Path, kills: int) -> Outcome:
    if command.is_done(place):
        return right(times=kills)
    last = run(command.line(place), place / "home")
    if last.process.exitcode != 0:
        return wrong(f"it does not go on: {last.printed[-300:]}", times=kills)
    left = leftovers(place)
    if left:
        return wrong(f"left behind: {left}", times=kills)
    return right(times=kills) if command.is_done(place) else wrong("other final bytes", kills)
