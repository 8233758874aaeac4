"""Results in, something to look at out: for now the table in the terminal.

Percent appear here only; everywhere else a figure is a fraction.
"""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hard_positives.evaluation import EvaluationResult

COLUMNS = {
    "original": "original_accuracy",
    "augmented": "augmented_accuracy",
    "brittleness": "brittleness",
    "drop": "drop",
    "ties": "tie_rate",
}
VIEW_TITLES = {"as_published": "as published", "clean": "clean"}
# Three scores in random order: c above c_n; c_n last; c_n between; c first and c_n second.
CHANCE = ("50.0", "33.3", "33.3", "16.7", "0.0")
# Second-hand: read in summaries of the paper, not in its own table.
HUMANS = ("97", "97", "0", "0", "")
EXPLANATION = (
    "% of rows ± half of the 95 % interval, clustered by image. Original: the caption beats the "
    "hard negative. Augmented: the hard positive does too. Brittleness: the hard negative falls "
    "between the two. Drop: original - augmented. A tie is wrong. Human figures are second-hand."
)


def render_table(result: EvaluationResult) -> Table:
    """Lay a result out as the paper's table, in percent.

    Args:
        result: From :func:`hard_positives.evaluate` or ``EvaluationResult.load``.

    Returns:
        A rich table, 80 columns wide: ``rich.print`` it. The clean view is left out where no row
        has a flaw. A line with ties at half credit follows a line whose figures these change.

    Examples:
        >>> import rich
        >>> rich.print(render_table(EvaluationResult.load("results/clip")))  # doctest: +SKIP
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.caption = result.signature["model"]["id"], EXPLANATION
    table.caption_justify = "left"
    table.add_column("", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for view in _distinct_views(result.metrics):
        table.add_row(Text(VIEW_TITLES[view], style="bold"))
        for split, figures in result.metrics[view].items():
            for label, row in _labelled_rows(split, figures):
                _add_figures(table, label, row)
        table.add_section()
    table.add_row("chance", "", *CHANCE, style="dim")
    table.add_row("REPLACE humans", "", *HUMANS, style="dim")
    return table


def _distinct_views(metrics: dict[str, Any]) -> list[str]:
    if metrics["clean"] == metrics["as_published"]:
        return ["as_published"]
    return [view for view in VIEW_TITLES if metrics[view]]


def _labelled_rows(split: str, figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from figures["groups"].items()
    if len(figures["groups"]) > 1:
        yield f"{split.upper()} macro", figures["macro"]
        yield f"{split.upper()} micro", figures


def _add_figures(table: Table, label: str, figures: dict[str, Any]) -> None:
    strict = [_percent(figures[name]) for name in COLUMNS.values()]
    intervals = [_half_interval(figures, name) for name in COLUMNS.values()]
    cells = [f"{value} ±{half}" for value, half in zip(strict, intervals, strict=True)]
    table.add_row(f" {label}", f"{figures['num_examples']:,}", *cells)
    halves = [_percent(figures[f"{name}_half_credit"]) for name in list(COLUMNS.values())[:3]]
    if halves != strict[:3]:
        table.add_row("  ties as half", "", *halves, style="dim")


def _half_interval(figures: dict[str, Any], name: str) -> str:
    return _percent((figures[f"{name}_ci_high"] - figures[f"{name}_ci_low"]) / 2)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
