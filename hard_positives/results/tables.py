"""Results in, tables for the terminal out, in percent and at most 80 columns wide.

Names and captions come from other people: whatever they hold is shown as text.
"""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hard_positives.names import printable
from hard_positives.results.comparison import PairedDifference, compare
from hard_positives.results.evaluation import EvaluationResult
from hard_positives.results.figures import (
    DASH,
    TITLES,
    VIEW_TITLES,
    all_rows,
    chance_lines,
    dataset_name_of,
    distinct_views,
    half_interval,
    labelled_rows,
    mean_label,
    name_of,
    no_interval,
    percent,
    preparation_of,
    shown_figures,
)
from hard_positives.suite import published
from hard_positives.suite.comparisons import DIRECTIONS

# What the table's footing says of the figures that it shows.
EXPLANATIONS = {
    "original_accuracy": "Original: the caption beats the hard negative.",
    "augmented_accuracy": "Augmented: the hard positive does too.",
    "brittleness": "Brittleness: the hard negative falls between the two.",
    "drop": "Drop: original - augmented.",
    "set_accuracy": "Sets: all comparisons of a set are right.",
    "tie_rate": "A tie is wrong.",
}
COMPARISON_EXPLANATION = (
    "% of rows; difference = second - first with its 95 % interval. Won, lost: rows that only the "
    "second, only the first model has right. p: test of no difference. Interval and p count rows "
    "of one image as dependent; \u2013: too few images for either."
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
    names, are_triples = shown_figures(result), published.are_triples(result.scores)
    footing = [
        "% of rows ± half of the 95 % interval, clustered by image.",
        *(EXPLANATIONS[name] for name in names),
        "Human figures are second-hand." if are_triples else "",
        no_interval(all_rows(result)),
        preparation_of(result),
    ]
    columns = ["rows", *(TITLES[name] for name in names)]
    table = _new_table(_text(name_of(result)), " ".join(filter(None, footing)), columns)
    for view in distinct_views(result):
        table.add_row(Text(VIEW_TITLES[view], style="bold"))
        for split, figures in result.metrics[view].items():
            for label, row in labelled_rows(split, figures):
                _add_figures(table, label, row, names)
        table.add_section()
    for label, chance in chance_lines(result):
        cells = [percent(chance[name]) if name in chance else "" for name in names]
        table.add_row(_text(label), "", *cells, style="dim")
    if are_triples:
        humans = [published.HUMANS.get(name, "") for name in names]
        table.add_row("REPLACE humans", "", *humans, style="dim")
    return table


def render_summary(results: Sequence[EvaluationResult]) -> Table:
    """Lay several models out on several datasets, split by split, in percent.

    Args:
        results: Of any models and datasets.

    Returns:
        A rich table: for each dataset and split a line for each model, with the mean over
        categories of every figure as published.
    """
    shown = set().union(*map(shown_figures, results))
    names = [name for name in TITLES if name in shown]
    explanation = "% of rows, mean over categories \u00b1 half of the 95 % interval; as published."
    columns = ["rows", *(TITLES[name] for name in names)]
    table = _new_table(Text("models by datasets"), explanation, columns)
    parts = {}
    for result in results:
        shown = set(shown_figures(result))
        for split, figures in result.metrics["as_published"].items():
            macro = {**figures["macro"], "num_examples": figures["num_examples"]}
            for hidden in set(names) - shown:
                macro.pop(hidden, None)
            key = (dataset_name_of(result), result.signature["dataset"]["content_sha256"], split)
            parts.setdefault(key, []).append((name_of(result), macro))
    for (dataset, _, split), lines in parts.items():
        table.add_row(_text(f"{dataset} {split}", "bold"))
        for name, macro in lines:
            _add_figures(table, name, macro, names)
        table.add_section()
    return table


def render_comparison(first: EvaluationResult, second: EvaluationResult) -> Table:
    """Lay out how the second model differs from the first, in percent.

    Args:
        first: The model to start from.
        second: The model to judge, on the same rows.

    Returns:
        A rich table, 80 columns wide.

    Raises:
        ValueError: As :func:`hard_positives.compare`.

    Examples:
        >>> import rich
        >>> base = EvaluationResult.load("results/base")  # doctest: +SKIP
        >>> tuned = EvaluationResult.load("results/tuned")  # doctest: +SKIP
        >>> rich.print(render_comparison(base, tuned))  # doctest: +SKIP
    """
    differences = compare(first, second)
    title = _text(f"{name_of(second)} - {name_of(first)}")
    columns = ["first", "second", "difference", "95 % interval", "won", "lost", "p"]
    table = _new_table(title, COMPARISON_EXPLANATION, columns)
    by_rows: dict[tuple[str, str, str], list[PairedDifference]] = {}
    for row in differences:
        by_rows.setdefault((row.view, row.split, row.group), []).append(row)
    for view in distinct_views(first):
        table.add_row(Text(VIEW_TITLES[view], style="bold"))
        for (of_view, split, group), rows in by_rows.items():
            if of_view != view:
                continue
            is_mean = group in ("macro", "micro", *DIRECTIONS)
            label = mean_label(split, group) if is_mean else group
            table.add_row(_text(f" {label}"), Text(f"n={rows[0].num_examples:,}", style="dim"))
            for row in rows:
                table.add_row(f"  {TITLES[row.figure]}", *_comparison_cells(row))
        table.add_section()
    return table


def _new_table(title: Text, explanation: str, columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.caption, table.caption_justify = title, explanation, "left"
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _text(value: Any, style: str = "") -> Text:
    return Text(printable(value), style)


def _add_figures(table: Table, label: str, figures: dict[str, Any], names: Sequence[str]) -> None:
    cells = [
        f"{percent(figures[name])} \u00b1{half_interval(figures, name)}" if name in figures else ""
        for name in names
    ]
    table.add_row(_text(f" {label}"), f"{figures['num_examples']:,}", *cells)
    halves = [f"{name}_half_credit" if name in figures else "" for name in names]
    shown = [percent(figures[half]) if half in figures else "" for half in halves]
    if any(half and not cell.startswith(half) for half, cell in zip(shown, cells, strict=True)):
        table.add_row("  ties as half", "", *shown, style="dim")


def _comparison_cells(row: PairedDifference) -> list[str]:
    shares = [percent(row.first), percent(row.second), _signed(row.difference)]
    interval = DASH if row.ci_low is None else f"{_signed(row.ci_low)} to {_signed(row.ci_high)}"
    counts = ["", ""] if row.group == "macro" else [f"{row.won:,}", f"{row.lost:,}"]
    p_value = DASH
    if row.p_value is not None:
        p_value = "<.001" if row.p_value < 0.0005 else f"{row.p_value:.3f}"
    return [*shares, interval, *counts, p_value]


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"
