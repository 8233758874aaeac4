"""A benchmark's file of one's own: some of its rows read, shown in words and a picture."""

from collections.abc import Iterator

from datasets import Dataset
from PIL.Image import Image
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text
from rich_pixels import Pixels

from hard_positives.names import printable
from hard_positives.suite.benchmarks import BenchmarkFile
from hard_positives.suite.columns import DIRECTIONS, TEXT_TO_TEXT
from hard_positives.suite.comparisons import read_comparisons
from hard_positives.suite.loading import load_benchmark
from hard_positives.suite.rows import open_image

CHECKED_ROWS = 8
THUMBNAIL = 48  # columns of the terminal at the most, and half lines


def checked_benchmark(benchmark: BenchmarkFile) -> Group:
    """Read some rows of a benchmark's file, and show one comparison and what is missing.

    Raises:
        ValueError: The rows are not as the file says.
        OSError: They are not within reach.
    """
    source = load_benchmark(benchmark, benchmark.name)
    lines: list[RenderableType] = [f"{benchmark.title}: {benchmark.about}"]
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
    return Group(*(Text(printable(line)) if isinstance(line, str) else line for line in lines))


class _Thumbnail:
    """A picture in blocks of colour, where the terminal has colours."""

    def __init__(self, picture: Image) -> None:
        self._picture = picture.convert("RGB")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if console.color_system:
            self._picture.thumbnail((min(THUMBNAIL, options.max_width), THUMBNAIL))
            yield Pixels.from_image(self._picture)


def _first_comparison(benchmark: BenchmarkFile, rows: Dataset) -> Iterator[RenderableType]:
    comparisons = read_comparisons(
        rows.select(range(min(CHECKED_ROWS, len(rows)))), benchmark.read_columns
    )
    begin, end = comparisons.offsets[:2]
    pairs, labels = comparisons.pairs[begin:end], comparisons.labels[begin:end]
    direction = DIRECTIONS[comparisons.directions[0]]
    yield f"  {direction.replace('_', ' ')}, {end - begin} candidates:"
    pictures = {}
    if direction != TEXT_TO_TEXT:
        pictures = {place: open_image(comparisons, place) for place, _ in pairs}
    for (anchor, caption), label in zip(pairs, labels, strict=True):
        if anchor in pictures:
            width, height = pictures[anchor].size
            of_what = f"picture {anchor} ({width} x {height})"
        else:
            of_what = repr(comparisons.captions[anchor])
        truth = "true" if label else "false"
        yield f"    {comparisons.captions[caption]!r} is {truth} of {of_what}"
    for place, picture in pictures.items():
        yield f"    Picture {place}:"
        yield _Thumbnail(picture)
