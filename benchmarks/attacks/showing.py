"""How attacks are shown: bars while they run, one table in the end."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from attacks.trials import Tally


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
