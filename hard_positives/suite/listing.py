"""Benchmarks as people read them: the list of all, and one in full; no row is read here."""

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from hard_positives.names import printable
from hard_positives.suite.benchmarks import BenchmarkFile
from hard_positives.terminal import FittedTable


def benchmarks_table(benchmarks: Iterable[BenchmarkFile]) -> Table:
    """Lay out all benchmarks: how large, what is compared, where the rows come from."""
    table = FittedTable(box=box.SIMPLE_HEAD, title="hard-positives evaluate MODEL --dataset NAME")
    table.dispensable = ("HP", "rows")
    table.caption = (
        "Compared: true + false candidates, or images x captions, both ways. HP: with hard "
        "positives. All of one, and what to get first: hard-positives benchmarks NAME."
    )
    table.caption_justify = "left"
    table.add_column("NAME", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("compared", no_wrap=True)
    table.add_column("HP", no_wrap=True)
    table.add_column("where", no_wrap=True)
    for one in benchmarks:
        rows = "" if one.rows is None else f"{one.rows:,}"
        table.add_row(one.name, rows, one.compared, "yes" if one.hard_positives else "", _from(one))
    return table


def _from(benchmark: BenchmarkFile) -> str:
    if benchmark.build:
        return "built first"
    if not benchmark.parts:
        return "bundled"
    return "Hub, on request" if benchmark.gated else "Hub"


def benchmark_in_full(benchmark: BenchmarkFile) -> Table:
    """Lay out all that one benchmark's file says."""
    table = Table(box=box.SIMPLE_HEAD, title=benchmark.title, show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    lines = {
        "asks": benchmark.about,
        "paper": benchmark.paper,
        "licence": benchmark.licence,
        "rows": benchmark.rows and f"{benchmark.rows:,}",
        "images": benchmark.images and f"{benchmark.images:,}",
        "compared": f"{benchmark.compared}, {' and '.join(benchmark.directions)}".replace("_", " "),
        "hard positives": "yes" if benchmark.hard_positives else "no",
        "columns": "; ".join(f"{key}: {value}" for key, value in benchmark.columns.items()),
        "Hub": "\n".join(f"{split}: {part.id}" for split, part in benchmark.parts.items()),
        "size": benchmark.size,
        "access": benchmark.gated,
        "first": benchmark.build,
        "authors count": "\n".join(
            f"{figure.title}: {figure.figure.replace('_', ' ')}, {figure.mean}"
            for figure in benchmark.figures
        ),
        "published": "\n".join(
            f"{found.model}: {', '.join(f'{k} {v:g}' for k, v in found.values.items())} "
            f"({found.source})"
            for found in benchmark.published
        ),
    }
    for name, text in lines.items():
        if text:
            table.add_row(name, Text("\n".join(map(printable, text.split("\n")))))
    return table
