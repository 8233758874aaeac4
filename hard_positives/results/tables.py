"""Results in, tables for the terminal out, in percent: for 80 columns, less or more.

Names and captions come from other people: whatever they hold is shown as text.
"""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hard_positives.names import printable
from hard_positives.results.comparison import PairedDifference, compare, means_of
from hard_positives.results.figures import (
    DASH,
    REVIEWED,
    TEXT_ALONE,
    TITLES,
    VIEW_TITLES,
    all_rows,
    chance_lines,
    dataset_name_of,
    distinct_views,
    half_interval,
    interval,
    label_of,
    labelled_rows,
    labels_of,
    mean_label,
    no_interval,
    percent,
    preparation_of,
    rows_of,
    shown_figures,
    signed,
)
from hard_positives.results.result import EvaluationResult
from hard_positives.review.humans import humans_on
from hard_positives.suite import published
from hard_positives.suite.benchmarks import known_benchmark
from hard_positives.suite.columns import DIRECTIONS
from hard_positives.terminal import FittedTable

# What the table's footing says of the figures that it shows.
EXPLANATIONS = {
    "original_accuracy": "Original: the caption beats the hard negative.",
    "augmented_accuracy": "Augmented: the hard positive does too.",
    "brittleness": "Brittleness: the hard negative falls between the two.",
    "drop": "Drop: original - augmented.",
    "set_accuracy": "Sets: all comparisons of a set are right.",
    "tie_rate": "A tie is wrong.",
}
# Columns that a narrow terminal can do without, the first of them first.
DISPENSABLE = ("ties", "won", "lost", "drop", "first", "rows")
COMPARISON_EXPLANATION = (
    "% of rows; difference = second - first with its 95 % interval. Won, lost: rows that only the "
    "second, only the first model has right. p: test of no difference. Interval and p count rows "
    "of one image as dependent; \u2013: too few images for either."
)
RANKING_EXPLANATION = (
    "% of rows, mean over categories, and the difference from the first model. *: p < 0.05 in a "
    "test that counts rows of one image as dependent; not corrected for the number of models."
)


def render_table(result: EvaluationResult, *, dataset: Any = None) -> Table:
    """Lay a result out as the paper's table, in percent.

    Args:
        result: From `hard_positives.evaluate` or ``EvaluationResult.load``.
        dataset: The folder that was scored, for the people who judged its rows
            (``hard-positives review``). The one that the signature names if left out.

    Returns:
        A rich table: ``rich.print`` it. Where the terminal has room, intervals show both ends;
        where it has little, columns are left out, and it says which. The clean view is left out
        where no row has a flaw. A line with ties at half credit follows a line whose figures these
        change.

    Examples:
        >>> import rich
        >>> rich.print(render_table(EvaluationResult.load("results/clip")))  # doctest: +SKIP
    """
    humans = humans_on(result.scores, dataset or result.signature["dataset"]["id"])
    table = _figures_table(result, humans)
    table.wider = _figures_table(result, humans, ends=True)
    return table


def _figures_table(
    result: EvaluationResult, humans: dict[str, dict[str, Any]], *, ends: bool = False
) -> FittedTable:
    names, has_humans = shown_figures(result), published.has_published(result.scores)
    interval_is = "with the 95 % interval" if ends else "± half of the 95 % interval"
    footing = [
        f"% of rows {interval_is}, clustered by image.",
        *(EXPLANATIONS[name] for name in names),
        REVIEWED if humans else "",
        "Human figures are second-hand." if has_humans else "",
        no_interval(all_rows(result)),
        preparation_of(result),
    ]
    columns = ["rows", *(TITLES[name] for name in names)]
    table = _new_table(_text(label_of(result)), " ".join(filter(None, footing)), columns)
    for view in distinct_views(result):
        table.add_row(Text(VIEW_TITLES[view], style="bold"))
        for split, figures in result.metrics[view].items():
            for label, row in labelled_rows(split, figures):
                _add_figures(table, label, row, names, ends=ends)
        table.add_section()
    for label, chance in chance_lines(result):
        cells = [percent(chance[name]) if name in chance else "" for name in names]
        table.add_row(_text(label), "", *cells, style="dim")
    for split, figures in humans.items():
        _add_figures(table, mean_label(split, "reviewers"), figures, names, ends=ends)
    if has_humans:
        of_paper = [published.HUMANS.get(name, "") for name in names]
        table.add_row("REPLACE humans", "", *of_paper, style="dim")
    return table


def render_authors(result: EvaluationResult) -> Table:
    """Lay out a known benchmark's figures as its authors count them, beside what is published.

    Args:
        result: Of a benchmark that `hard-positives benchmarks` lists.

    Returns:
        A rich table, in percent, the headline first.
    """
    known = known_benchmark(result.signature["dataset"].get("benchmark"))
    title = known.title if known else dataset_name_of(result)
    columns = ["counted", label_of(result), "published"]
    table = _new_table(_text(f"{title}, as its authors count"), "", columns)
    table.columns[-1].no_wrap = False
    for value in result.authors:
        estimate, name = value.estimate, value.figure.title
        published = [
            f"{found.values[name]:.1f} {found.model}"
            for found in (known.published if known else ())
            if name in found.values
        ]
        table.add_row(
            _text(f" {name}").append(f"\n  {value.rule}", style="dim"),
            f"{value.count:,}",
            f"{percent(estimate.value)} \u00b1{half_interval(value.ends, 'value')}",
            Text("\n".join(map(printable, published)), "dim"),
        )
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
    if any(result.is_blind for result in results):
        explanation += f" {TEXT_ALONE}"
    columns = ["rows", *(TITLES[name] for name in names)]
    table = _new_table(Text("models by datasets"), explanation, columns)
    parts = {}
    for result, label in zip(results, labels_of(results), strict=True):
        shown = set(shown_figures(result))
        for split, figures in result.metrics["as_published"].items():
            macro = {**figures["macro"], "num_examples": figures["num_examples"]}
            for hidden in set(names) - shown:
                macro.pop(hidden, None)
            key = (dataset_name_of(result), rows_of(result), split)
            parts.setdefault(key, []).append((label, macro))
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
        A rich table.

    Raises:
        ValueError: As `hard_positives.compare`.

    Examples:
        >>> import rich
        >>> base = EvaluationResult.load("results/base")  # doctest: +SKIP
        >>> tuned = EvaluationResult.load("results/tuned")  # doctest: +SKIP
        >>> rich.print(render_comparison(base, tuned))  # doctest: +SKIP
    """
    differences = compare(first, second)
    names = labels_of([first, second])
    title = _text(f"{names[1]} - {names[0]}")
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


def render_ranking(results: Sequence[EvaluationResult]) -> Table:
    """Lay several models out beside the first one, a row each, in percent.

    Args:
        results: Over the same rows; the first is what the others are compared with.

    Returns:
        A rich table: of each split the mean over categories of every figure, its difference from
        the first model's, and a star where a test that counts rows of one image as dependent finds
        one (p < 0.05).

    Raises:
        ValueError: As `hard_positives.compare`.
    """
    first, *others = results
    names = labels_of(results)
    compared = [means_of(compare(first, other)) for other in others]
    shown = list(dict.fromkeys(figure for rows in compared[0].values() for figure in rows))
    table = _new_table(
        _text(f"against {names[0]}"), RANKING_EXPLANATION, [TITLES[name] for name in shown]
    )
    for view in distinct_views(first):
        for of_view, split in compared[0]:
            if of_view != view:
                continue
            of_models = [of_model[view, split] for of_model in compared]
            rows = next(iter(of_models[0].values())).num_examples
            table.add_row(_text(f"{split}, {VIEW_TITLES[view]}, n={rows:,}", "bold"))
            cells = [f"{percent(row.first)}      " for row in of_models[0].values()]
            table.add_row(_text(f" {names[0]}"), *cells)
            for name, of_model in zip(names[1:], of_models, strict=True):
                table.add_row(_text(f" {name}"), *map(_ranked, of_model.values()))
            table.add_section()
    return table


def _ranked(row: PairedDifference) -> str:
    return f"{percent(row.second)} {signed(row.difference):>5}{'*' if row.is_found else ' '}"


def _new_table(title: Text, explanation: str, columns: Sequence[str]) -> FittedTable:
    table = FittedTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.dispensable = DISPENSABLE
    table.title, table.caption, table.caption_justify = title, explanation, "left"
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _text(value: Any, style: str = "") -> Text:
    return Text(printable(value), style)


def _add_figures(
    table: Table, label: str, figures: dict[str, Any], names: Sequence[str], *, ends: bool = False
) -> None:
    cells = [_cell(figures, name, ends) if name in figures else "" for name in names]
    table.add_row(_text(f" {label}"), f"{figures['num_examples']:,}", *cells)
    halves = [f"{name}_half_credit" if name in figures else "" for name in names]
    shown = [percent(figures[half]) if half in figures else "" for half in halves]
    if any(half and not cell.startswith(half) for half, cell in zip(shown, cells, strict=True)):
        table.add_row("  ties as half", "", *shown, style="dim")


def _cell(figures: dict[str, Any], name: str, ends: bool) -> str:
    around = interval(figures, name) if ends else f"\u00b1{half_interval(figures, name)}"
    return f"{percent(figures[name])} {around}"


def _comparison_cells(row: PairedDifference) -> list[str]:
    shares = [percent(row.first), percent(row.second), signed(row.difference)]
    interval = DASH if row.ci_low is None else f"{signed(row.ci_low)} to {signed(row.ci_high)}"
    counts = ["", ""] if row.group == "macro" else [f"{row.won:,}", f"{row.lost:,}"]
    p_value = DASH
    if row.p_value is not None:
        p_value = "<.001" if row.p_value < 0.0005 else f"{row.p_value:.3f}"
    return [*shares, interval, *counts, p_value]
