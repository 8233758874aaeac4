"""Results in, something to look at out: for now the table in the terminal.

Percent appear here only; everywhere else a figure is a fraction.
"""

from collections.abc import Iterator
from typing import Any

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
# Three scores in random order: c first of two; c_n last of three; c_n in the middle; c > c_n > c_p.
CHANCE = ("50.0", "33.3", "33.3", "16.7", "0.0")
# Read in summaries of the paper, not in its own table; for REPLACE.
HUMANS = ("97", "97", "0", "0", "")
VIEW_TITLES = {"as_published": "as published (all rows)", "clean": "clean (rows without flaws)"}


def render_table(result: EvaluationResult) -> Table:
    """Lay a result out as the paper's table, in percent, each figure with half its 95 % interval.

    Args:
        result: From :func:`hard_positives.evaluate` or ``EvaluationResult.load``.

    Returns:
        A rich table: print it with ``rich.print``. Views without a difference are shown once.

    Examples:
        >>> import rich
        >>> rich.print(render_table(EvaluationResult.load("results/clip")))  # doctest: +SKIP
    """
    table = Table(
        title=result.signature["model"]["id"],
        caption="% of rows, ± half of the 95 % interval (clustered by image). Higher is better for "
        "original and augmented, lower for brittleness, drop and ties.",
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("rows", justify="right")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for view in _distinct_views(result.metrics):
        table.add_row(Text(VIEW_TITLES[view], style="bold"))
        for split, figures in result.metrics[view].items():
            for label, row in _labelled_rows(split, figures):
                table.add_row(f"  {label}", f"{row['num_examples']:,}", *_cells(row))
            table.add_section()
    table.add_row("chance", "", *CHANCE, style="dim")
    table.add_row("humans on REPLACE (second-hand)", "", *HUMANS, style="dim")
    return table


def _distinct_views(metrics: dict[str, Any]) -> list[str]:
    if metrics["clean"] == metrics["as_published"]:
        return ["as_published"]
    return [view for view in VIEW_TITLES if metrics[view]]


def _labelled_rows(split: str, figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from figures["groups"].items()
    if len(figures["groups"]) > 1:
        yield (
            f"{split.upper()} macro",
            {"num_examples": figures["num_examples"], **figures["macro"]},
        )
        yield f"{split.upper()} micro", figures


def _cells(figures: dict[str, Any]) -> list[str]:
    return [_with_interval(figures, name) for name in COLUMNS.values()]


def _with_interval(figures: dict[str, Any], name: str) -> str:
    half = (figures[f"{name}_ci_high"] - figures[f"{name}_ci_low"]) / 2
    return f"{100 * figures[name]:.1f} ±{100 * half:4.1f}"
