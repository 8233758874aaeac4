"""What an attack is; how its trials run side by side and are counted.

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
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

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

    def add(self, outcome: Outcome, repeat: str) -> None:
        """Count one trial; `repeat` says how to have it again."""
        self.verdicts[outcome.verdict] += outcome.times
        if outcome.verdict == "wrong":
            self.wrong.append(f"{repeat}: {outcome.detail}")
        if outcome.verdict == "skipped":
            self.skipped = outcome.detail


def right(detail: str = "", times: int = 1) -> Outcome:
    return Outcome("right", detail, times)


def refused(detail: str = "", times: int = 1) -> Outcome:
    return Outcome("refused", detail, times)


def wrong(detail: str = "", times: int = 1) -> Outcome:
    return Outcome("wrong", detail, times)


class Hang(BaseException):
    """A trial took longer than `SLOWEST`. No `Exception`: nothing may catch it."""


def verdict_of(error: Exception) -> Outcome:
    """Refused where an error is typed and a sentence of ours."""
    if isinstance(error, TYPED) and "Expected " in str(error):
        return refused(str(error))
    return wrong(f"{'bare' if isinstance(error, TYPED) else 'untyped'} error: {error!r:.300}")


def judge(call: Callable[[], Any], expected: Any) -> Outcome:
    """Call what reads something damaged: right where it returns what is expected all the same."""
    try:
        found = call()
    except Exception as error:
        return verdict_of(error)
    return right() if found == expected else wrong("accepted without a word")


# --- running ------------------------------------------------------------------------------------


def run_attack(
    attack: Attack,
    numbers: Sequence[int],
    *,
    seed: int = 0,
    jobs: int,
    scratch: Path,
    show: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Run the trials of these numbers.

    Args:
        attack: What to run.
        numbers: Of the trials.
        seed: Another seed makes other trials.
        jobs: Processes to run them in, 0 for this one, which no trial can then harm.
        scratch: Folder for a folder of the attack's own, removed afterwards.
        show: Called after each trial.
    """
    tally, began = Tally(attack.name), time.monotonic()
    folder = scratch / re.sub(r"\W+", "_", attack.name)
    folder.mkdir()
    run = partial(_outcomes, jobs=jobs) if jobs else _outcomes_here
    with attack.prepare(folder) as attempt:
        for number, outcome in run(partial(_try, attack, attempt, seed, folder), numbers):
            tally.add(outcome, f"--only '{attack.name}' --seed {seed} --trial {number}")
            tally.seconds = time.monotonic() - began
            show(tally)
    shutil.rmtree(folder, ignore_errors=True)
    return tally


def _outcomes_here(
    try_one: Callable[[int], Outcome], numbers: Sequence[int]
) -> Iterator[tuple[int, Outcome]]:
    yield from ((number, try_one(number)) for number in numbers)


def _outcomes(
    try_one: Callable[[int], Outcome], numbers: Sequence[int], *, jobs: int
) -> Iterator[tuple[int, Outcome]]:
    def start(lane: Sequence[int]) -> None:
        receiver, sender = fork.Pipe(duplex=False)
        fork.Process(target=_work, args=(try_one, lane, sender)).start()
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


def _work(
    try_one: Callable[[int], Outcome],
    lane: Sequence[int],
    sender: multiprocessing.connection.Connection,
) -> None:
    signal.signal(signal.SIGALRM, _hang)
    for number in lane:
        signal.alarm(SLOWEST)
        try:
            outcome = try_one(number)
        except Hang:
            outcome = wrong(f"no end within {SLOWEST} s")
        signal.alarm(0)
        for left in multiprocessing.active_children():
            left.kill()
        sender.send(outcome)


def _hang(*_: object) -> None:
    raise Hang


def _try(attack: Attack, attempt: Attempt, seed: int, folder: Path, number: int) -> Outcome:
    place = folder / f"trial-{number}"
    place.mkdir()
    try:
        return attempt(Trial(number, random.Random(f"{seed}/{attack.name}/{number}"), place))
    except Exception:
        return wrong(traceback.format_exc(limit=-4))
    finally:
        shutil.rmtree(place, ignore_errors=True)
