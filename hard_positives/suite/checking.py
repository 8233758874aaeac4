"""A benchmark's file of one's own: some of its rows read, and what they say in words."""

from collections.abc import Iterator

from datasets import Dataset
from rich.console import Group
from rich.text import Text

from hard_positives.names import printable
from hard_positives.suite.benchmarks import BenchmarkFile
from hard_positives.suite.columns import DIRECTIONS, TEXT_TO_TEXT
from hard_positives.suite.comparisons import read_comparisons
from hard_positives.suite.loading import load_benchmark
from hard_positives.suite.rows import open_image

CHECKED_ROWS = 8


def checked_benchmark(benchmark: BenchmarkFile) -> Group:
    """Read some rows of a benchmark's file, and show one comparison and what is missing.

    Raises:
        ValueError: The rows are not as the file says.
        OSError: They are not within reach.
    """
    source = load_benchmark(benchmark, benchmark.name)
    lines = [f"{benchmark.title}: {benchmark.about}"]
    for split, rows in source.splits.items():
        lines += [f"{split}: {len(rows):,} rows", *_first_comparison(benchmark, rows)]
    number = sum(map(len, source.splits.values()))
    missing = [
        name
        for name in ("rows", "images", "size", "figures", "published")
        if not getattr(benchmark, name)
    ]
    if benchmark.rows not in (None, number):
        lines.append(f"The file says {benchmark.rows:,} rows; there are {number:,}.")
    lines.append(f"Not in the file: {', '.join(missing) or 'nothing'}.")
    return Group(*(Text(printable(line)) for line in lines))


def _first_comparison(benchmark: BenchmarkFile, rows: Dataset) -> Iterator[str]:
    comparisons = read_comparisons(
        rows.select(range(min(CHECKED_ROWS, len(rows)))), benchmark.read_columns
    )
    begin, end = comparisons.offsets[:2]
    direction = DIRECTIONS[comparisons.directions[0]]
    yield f"  {direction.replace('_', ' ')}, {end - begin} candidates:"
    for (anchor, caption), label in zip(
        comparisons.pairs[begin:end], comparisons.labels[begin:end], strict=True
    ):
        if direction == TEXT_TO_TEXT:
            of_what = repr(comparisons.captions[anchor])
        else:
            width, height = open_image(comparisons, anchor).size
            of_what = f"picture {anchor} ({width} x {height})"
        truth = "true" if label else "false"
        yield f"    {comparisons.captions[caption]!r} is {truth} of {of_what}"
