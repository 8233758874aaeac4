"""What an attack is; how its trials run side by side, are counted and shown.

An attack prepares what it damages and gives a function of one trial:

    @contextmanager
    def cut_files(scratch: Path) -> Iterator[Callable[[Trial], Outcome]]:
        whole = write_something(scratch)

        def cut(trial: Trial) -> Outcome:
            damaged = whole[: trial.random.randrange(len(whole))]
            return judge(lambda: read(damaged), expected=read(whole))

        yield cut

A trial depends on the seed, the attack's name and its number alone, so each can be repeated alone.
Nothing here knows what is attacked.
"""

import multiprocessing
import multiprocessing.connection
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# What the command line turns into one sentence and exit code 1; all else is a fault of ours.
TYPED = (ValueError, TypeError, OSError, ImportError)
SLOWEST = 120  # seconds, after which a trial counts as hanging
fork = multiprocessing.get_context("fork")  # what was imported and prepared is there at once


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        verdict: `right`: as if nothing had happened, or done again. `refused`: a typed error, or a
            warning. `wrong`: all else. `skipped`: cannot be tried on this machine.
        detail: What was seen.
        times: How often the trial attacked.
    """

    verdict: str
    detail: str = ""
    times: int = 1


@dataclass(frozen=True)
class Trial:
    """One trial: its number, its own random numbers, its own folder."""

    number: int
    random: random.Random
    folder: Path


Attempt = Callable[[Trial], Outcome]


@dataclass(frozen=True)
class Attack:
    """An attack by name, with how many trials make its small and its full size."""

    name: str
    prepare: Callable[[Path], AbstractContextManager[Attempt]]
    small: int
    full: int


@dataclass
class Tally:
    """What has come of an attack so far."""

    attack: str
    verdicts: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0


def right(detail: str = "", times: int = 1) -> Outcome:
    return Outcome("right", detail, times)


def refused(detail: str = "", times: int = 1) -> Outcome:
    return Outcome("refused", detail, times)


def wrong(detail: str = "", times: int = 1) -> Outcome:
    return Outcome("wrong", detail, times)


class Hang(BaseException):
    """A trial took longer than `SLOWEST`. No `Exception`: nothing may catch it."""


def judge(call: Callable[[], Any], expected: Any) -> Outcome:
    """Call what reads something damaged: right where it returns what is expected all the same."""
    try:
        found = call()
    except TYPED as error:
        named = "Expected " in str(error)
        return refused(str(error)) if named else wrong(f"bare error: {error!r}")
    return right() if found == expected else wrong("accepted without a word")


# --- running ------------------------------------------------------------------------------------


def run_attack(
    attack: Attack, numbers: Sequence[int], *, seed: int, jobs: int, scratch: Path, show: Callable
) -> Tally:
    """Run the trials of these numbers in `jobs` processes; what each shows goes to `show`."""
    tally, began = Tally(attack.name), time.monotonic()
    folder = scratch / re.sub(r"\W+", "_", attack.name)
    folder.mkdir()
    with attack.prepare(folder) as attempt:
        for number, outcome in _outcomes(attack, attempt, numbers, seed, jobs, folder):
            tally.verdicts[outcome.verdict] += outcome.times
            if outcome.verdict == "wrong":
                tally.wrong.append(f"--only '{attack.name}' --trial {number}: {outcome.detail}")
            if outcome.verdict == "skipped":
                tally.skipped = outcome.detail
            tally.seconds = time.monotonic() - began
            show(tally)
    shutil.rmtree(folder, ignore_errors=True)
    return tally


def _outcomes(
    attack: Attack, attempt: Attempt, numbers: Sequence[int], seed: int, jobs: int, folder: Path
) -> Iterator[tuple[int, Outcome]]:
    def start(lane: Sequence[int]) -> multiprocessing.connection.Connection:
        receiver, sender = fork.Pipe(duplex=False)
        worker = fork.Process(target=_work, args=(attack, attempt, lane, seed, folder, sender))
        worker.start()
        sender.close()
        lanes[receiver] = list(lane)

    lanes: dict[multiprocessing.connection.Connection, list[int]] = {}
    for job in range(jobs):
        start(numbers[job::jobs])
    while lanes:
        for receiver in multiprocessing.connection.wait(list(lanes)):
            lane = lanes[receiver]
            try:
                outcome = receiver.recv()
                yield lane.pop(0), outcome
            except EOFError:
                del lanes[receiver]
                if lane:  # it died of this trial: on with the next one
                    yield lane[0], wrong("the process that tried it died")
                    start(lane[1:])


def _work(attack, attempt, lane, seed, folder, sender) -> None:
    signal.signal(signal.SIGALRM, _hang)
    for number in lane:
        place = folder / f"trial-{number}"
        place.mkdir()
        trial = Trial(number, random.Random(f"{seed}/{attack.name}/{number}"), place)
        signal.alarm(SLOWEST)
        try:
            outcome = attempt(trial)
        except Hang:
            outcome = wrong(f"no end within {SLOWEST} s")
        except Exception:
            outcome = wrong(traceback.format_exc(limit=-4))
        signal.alarm(0)
        for left in multiprocessing.active_children():
            left.kill()
        shutil.rmtree(place, ignore_errors=True)
        sender.send(outcome)


def _hang(*_: object) -> None:
    raise Hang


# --- showing ------------------------------------------------------------------------------------


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int], Callable[[Tally], None]]]:
    """Give a function that begins a bar, which gives the function that moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    # Drawn by this thread: processes are forked all the time, and a fork wants no other thread.
    with Progress(*columns, console=console, auto_refresh=False) as bars:

        def begin(name: str, total: int) -> Callable[[Tally], None]:
            task = bars.add_task(name, total=total, rate="")
            drawn = 0.0

            def show(tally: Tally) -> None:
                nonlocal drawn
                bars.advance(task)
                if time.monotonic() - drawn > 0.1 or bars.tasks[task].finished:
                    tried, wrongs = tally.verdicts.total(), tally.verdicts["wrong"]
                    rate = f"{tried / max(tally.seconds, 1e-9):,.1f} a second, {wrongs} wrong"
                    bars.update(task, rate=rate, refresh=True)
                    drawn = time.monotonic()

            return show

        yield begin


def render(tallies: Sequence[Tally]) -> Table:
    """Lay out all attacks in one table."""
    table = Table("attack", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("tried", "right", "refused", "wrong", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("")
    for tally in tallies:
        counts = tally.verdicts
        shown = [counts.total() - counts["skipped"], counts["right"], counts["refused"]]
        style = "red" if counts["wrong"] else None
        table.add_row(
            tally.attack,
            *(f"{number:,}" for number in [*shown, counts["wrong"]]),
            f"{tally.seconds:.0f}",
            tally.skipped,
            style=style,
        )
    return table


def say(console: Console, tallies: Sequence[Tally]) -> int:
    """Print the table and each wrong trial with what repeats it; the exit code."""
    for line in (line for tally in tallies for line in tally.wrong):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(render(tallies))
    sys.stdout.flush()
    return int(any(tally.wrong for tally in tallies))
