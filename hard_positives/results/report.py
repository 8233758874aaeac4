"""Results in, something to look at out: tables for the terminal, a page and Markdown to keep.

Percent appear here only; everywhere else a figure is a fraction. The page's markup, style and
script stand in `report_page/`; which rows it shows is up to `gallery`. Names and captions come from
other people: whatever they hold is shown as text.
"""

import base64
import hashlib
import os
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from markupsafe import Markup
from rich import box
from rich.table import Table
from rich.text import Text

from hard_positive_metric import FIGURES, OUTCOMES, compute_metrics, row_outcomes
from hard_positives import __version__
from hard_positives.models.generative import QUESTION
from hard_positives.names import printable, public_name
from hard_positives.results.comparison import PairedDifference, check_same_rows, compare
from hard_positives.results.evaluation import EvaluationResult, num_positives, values_of
from hard_positives.results.gallery import Gallery, choose_examples
from hard_positives.suite import published
from hard_positives.suite.comparisons import DIRECTIONS, Columns
from hard_positives.suite.sources import EMBEDDED_DATASET, load_source
from hard_positives_dataset.folders import write_whole

COLUMNS = {
    "original": "original_accuracy",
    "augmented": "augmented_accuracy",
    "brittleness": "brittleness",
    "drop": "drop",
    "sets": "set_accuracy",
    "ties": "tie_rate",
}
VIEW_TITLES = {"as_published": "as published", "clean": "clean"}
OUTCOME_TITLES = {
    "all_above": "both above the hard negative",
    "only_caption_above": "only the caption above",
    "only_hard_positive_above": "only the hard positive above",
    "none_above": "neither above",
    "tied": "tied",
}
# Without hard positives.
PLAIN_OUTCOME_TITLES = {
    "all_above": "above every hard negative",
    "none_above": "below a hard negative",
    "tied": "tied",
}
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
DASH = "\u2013"  # of a range, and where there is no interval
NO_INTERVAL = f"{DASH}: too few images for an interval."
# By what the signature calls `processor.preprocessing`.
PREPARATIONS = {
    "transformers": "Images prepared as transformers does.",
    "openai": "Images prepared as the published code does (OpenAI's transform).",
}
SUBSTITUTIONS = 200  # at most, the most frequent
BINS, FRAME = 56, 280  # of a density, its side in cells and in units of the drawing
FULL_SIZE = 5000  # rows; with fewer, cells of twice the side
LEVELS = 7  # of darkness
PAGE, MARKDOWN = "index.html", "report.md"


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
    columns = figure_columns(result)
    footing = [
        "% of rows ± half of the 95 % interval, clustered by image.",
        *(text for figure, text in EXPLANATIONS.items() if figure in columns.values()),
        *(["Human figures are second-hand."] if published.are_triples(result.scores) else []),
        *_no_interval(_all_rows([result])),
        *_preparation(result),
    ]
    table = _new_table(_text(name_of(result)), " ".join(footing))
    table.add_column("", overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for view in _distinct_views(result.metrics):
        table.add_row(Text(VIEW_TITLES[view], style="bold"))
        for split, figures in result.metrics[view].items():
            for label, row in _labelled_rows(split, figures):
                _add_figures(table, label, row, list(columns.values()))
        table.add_section()
    for label, chance in chance_lines(result):
        cells = [_percent(chance[name]) if name in chance else "" for name in columns.values()]
        table.add_row(_text(label), "", *cells, style="dim")
    if published.are_triples(result.scores):
        humans = [published.HUMANS.get(name, "") for name in columns.values()]
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
    columns = {
        title: figure
        for title, figure in COLUMNS.items()
        if any(figure in figure_columns(result).values() for result in results)
    }
    explanation = "% of rows, mean over categories \u00b1 half of the 95 % interval; as published."
    table = _new_table(Text("models by datasets"), explanation)
    table.add_column("", overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    parts = {}
    for result in results:
        for split, figures in result.metrics["as_published"].items():
            dataset = result.signature["dataset"]
            key = (public_name(dataset["id"]) or "rows", dataset["content_sha256"], split)
            parts.setdefault(key, []).append((name_of(result), figures))
    for (dataset, _, split), lines in parts.items():
        table.add_row(_text(f"{dataset} {split}", "bold"))
        for name, figures in lines:
            macro = {**figures["macro"], "num_examples": figures["num_examples"]}
            _add_figures(table, name, macro, list(columns.values()))
        table.add_section()
    return table


def figure_columns(result: EvaluationResult) -> dict[str, str]:
    """The columns of a table that some row has, by title; augmented only where it can differ."""
    found = set().union(*(row.keys() for row in _all_rows([result])))
    if "brittleness" not in found:
        found.discard("augmented_accuracy")
    return {title: figure for title, figure in COLUMNS.items() if figure in found}


def chance_lines(result: EvaluationResult) -> list[tuple[str, dict[str, float]]]:
    """What scores in random order would reach, by figure: of all rows, or of each split."""
    by_split = {
        split: chance_of(result.scores.filter(pa.array(rows)))
        for view, split, rows in result.parts()
        if view == "as_published"
    }
    if len({tuple(chance.items()) for chance in by_split.values()}) == 1:
        return [("chance", next(iter(by_split.values())))]
    return [(f"{split.upper()} chance", chance) for split, chance in by_split.items()]


def chance_of(scores: pa.Table) -> dict[str, float]:
    """The mean over rows of what their numbers of positives and negatives give at random."""
    positives = num_positives(scores)
    sizes = scores["labels"].combine_chunks().value_lengths().to_numpy()
    kinds, counts = np.unique(np.stack([positives, sizes - positives]), axis=1, return_counts=True)
    return {
        name: float(np.average([figure.chance(p, n) for p, n in kinds.T.tolist()], weights=counts))
        for name, figure in FIGURES.items()
        if figure.chance is not None
    }


def _text(value: Any, style: str = "") -> Text:
    return Text(printable(value), style)


def _no_interval(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What the dashes in the place of intervals mean, where there are any."""
    missing = any(
        row[f"{name}_ci_low"] is None for row in rows for name in COLUMNS.values() if name in row
    )
    return [NO_INTERVAL] if missing else []


def _all_rows(results: Sequence[EvaluationResult]) -> Iterator[dict[str, Any]]:
    for result in results:
        for view in result.metrics.values():
            for split, figures in view.items():
                yield from (row for _, row in _labelled_rows(split, figures))


def _preparation(result: EvaluationResult) -> list[str]:
    """How images were prepared, where the signature says so."""
    choice = _preprocessing(result.signature)
    return [PREPARATIONS[choice]] if choice in PREPARATIONS else []


def _preprocessing(signature: dict[str, Any]) -> str | None:
    return (signature.get("processor") or {}).get("preprocessing")


def _new_table(title: Text, explanation: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.caption, table.caption_justify = title, explanation, "left"
    return table


def _distinct_views(metrics: dict[str, Any]) -> list[str]:
    if metrics["clean"] == metrics["as_published"]:
        return ["as_published"]
    return [view for view in VIEW_TITLES if metrics[view]]


def _labelled_rows(split: str, figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from figures["groups"].items()
    if len(figures["groups"]) > 1:
        yield _mean_label(split, "macro"), figures["macro"]
        yield _mean_label(split, "micro"), figures
    for direction, of_direction in figures.get("directions", {}).items():
        yield _mean_label(split, direction.replace("_", " ")), of_direction


def _mean_label(split: str, mean: str) -> str:
    return f"{split.upper()} {mean}"


def _add_figures(table: Table, label: str, figures: dict[str, Any], names: list[str]) -> None:
    cells = [
        f"{_percent(figures[name])} \u00b1{_half_interval(figures, name)}"
        if name in figures
        else ""
        for name in names
    ]
    table.add_row(_text(f" {label}"), f"{figures['num_examples']:,}", *cells)
    halves = [f"{name}_half_credit" for name in names]
    shown = [_percent(figures[half]) if half in figures else "" for half in halves]
    if any(half and not cell.startswith(half) for half, cell in zip(shown, cells, strict=True)):
        table.add_row("  ties as half", "", *shown, style="dim")


def _half_interval(figures: dict[str, Any], name: str) -> str:
    low, high = figures[f"{name}_ci_low"], figures[f"{name}_ci_high"]
    if low is None:
        return DASH
    half = _percent((high - low) / 2)
    return half if len(half) < 4 else f"{float(half):.0f}"  # so that 80 columns suffice


def _interval(figures: dict[str, Any], name: str) -> str:
    low, high = figures[f"{name}_ci_low"], figures[f"{name}_ci_high"]
    return DASH if low is None else f"{_percent(low)}{DASH}{_percent(high)}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


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
    names = [name_of(result) for result in (first, second)]
    table = _new_table(_text(f"{names[1]} - {names[0]}"), COMPARISON_EXPLANATION)
    table.add_column("", overflow="fold")
    for name in ("first", "second", "difference", "95 % interval", "won", "lost", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    titles = {figure: title for title, figure in COLUMNS.items()}
    for view in _views_that_differ(differences):
        table.add_row(Text(VIEW_TITLES[view], style="bold"))
        of_view = [row for row in differences if row.view == view]
        for split, group in dict.fromkeys((row.split, row.group) for row in of_view):
            rows = [row for row in of_view if (row.split, row.group) == (split, group)]
            label = group
            if group in ("macro", "micro", *DIRECTIONS):
                label = _mean_label(split, group.replace("_", " "))
            table.add_row(_text(f" {label}"), Text(f"n={rows[0].num_examples:,}", style="dim"))
            for row in rows:
                table.add_row(f"  {titles[row.figure]}", *_comparison_cells(row))
        table.add_section()
    return table


def _views_that_differ(differences: Sequence[PairedDifference]) -> list[str]:
    sizes = {
        view: [row.num_examples for row in differences if row.view == view] for view in VIEW_TITLES
    }
    if sizes["clean"] == sizes["as_published"]:
        return ["as_published"]
    return [view for view in VIEW_TITLES if sizes[view]]


def _comparison_cells(row: PairedDifference) -> list[str]:
    interval = DASH if row.ci_low is None else f"{_signed(row.ci_low)} to {_signed(row.ci_high)}"
    counts = ["", ""] if row.group == "macro" else [f"{row.won:,}", f"{row.lost:,}"]
    shares = [_percent(row.first), _percent(row.second), _signed(row.difference)]
    return [*shares, interval, *counts, _p_value(row.p_value)]


def _p_value(value: float | None) -> str:
    if value is None:
        return DASH
    return "<.001" if value < 0.0005 else f"{value:.3f}"


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"


def name_of(result: EvaluationResult) -> str:
    """The model's Hub id, or the last part of its folder's path."""
    return public_name(result.signature["model"]["id"])


@dataclass(frozen=True)
class _Model:
    """One result as the page speaks of it: a letter in the charts, a name beside it."""

    place: int
    letter: str
    name: str
    result: EvaluationResult
    command: str | None
    preparation: str
    line: str
    signature: list[tuple[str, Any]]


@dataclass(frozen=True)
class _Line:
    """The figures of the same rows for every model, in the order of the models."""

    label: str
    figures: list[dict[str, Any]]
    is_replace: bool = False
    category: str = ""
    substitution: str = ""


@dataclass(frozen=True)
class _View:
    title: str
    explanation: str
    lines: list[_Line]


@dataclass(frozen=True)
class _Margins:
    """A density of (caption - negative, positive - negative) as paths of equally dark cells."""

    model: _Model
    label: str
    shares: dict[str, float]
    levels: list[dict[str, Any]]
    ticks: list[dict[str, Any]]


def write_report(
    results: Sequence[EvaluationResult],
    output_dir: str | Path,
    *,
    dataset: str | Path | Dataset | DatasetDict | None = None,
) -> Path:
    """Write a page (`index.html`) that needs no network, and its text as `report.md`.

    The page holds the paper's table with intervals, what happened in the rows, accuracy against
    brittleness, the figures by substitution, the margins, rows with their pictures, and each run's
    signature and command. Several results are shown side by side; then the rows are those on which
    they disagree. At most `gallery.GALLERY_ROWS` rows are shown, whatever the number of rows. Their
    captions are those that were scored; a picture is shown only if its bytes are.

    Args:
        results: One or more, over the same rows.
        output_dir: A folder; made if absent. The two files in it are replaced, once both are
            written.
        dataset: What was scored, for its pictures, as for :func:`hard_positives.evaluate`. If left
            out, the dataset that the first result's signature names, at the commit that it names;
            if that cannot be opened, a warning, and a page without pictures.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: No results; results over different rows; `dataset` holds none of the pictures.
        OSError: The disk is full; the earlier page is whole.

    Examples:
        >>> result = EvaluationResult.load("results/clip")  # doctest: +SKIP
        >>> write_report([result], "report", dataset="REPLACE")  # doctest: +SKIP
        PosixPath('report/index.html')
    """
    if not results:
        raise ValueError("Expected results to be at least one result, got none.")
    check_same_rows(results)
    described = results[0].signature["dataset"]
    rows_by_split, no_pictures = _open_dataset(described, dataset)
    columns = Columns(**described.get("columns", {}))
    gallery = choose_examples(results, rows_by_split, columns)
    if not no_pictures:
        no_pictures = _missing_pictures(gallery, is_asked_for=dataset is not None)
    if no_pictures:
        warnings.warn(printable(f"The report lacks pictures: {no_pictures}"), stacklevel=2)
    content = _content(results, gallery, no_pictures)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # Both are written before one is put in place, the page last. A kill between the two renames
    # leaves files of two runs; each holds its own figures, signatures and captions.
    with write_whole(folder / PAGE) as page, write_whole(folder / MARKDOWN) as markdown:
        page.write_text(_render_page(content), encoding="utf-8")
        markdown.write_text(_render_markdown(content), encoding="utf-8")
    return folder / PAGE


def _open_dataset(signature: dict[str, Any], dataset: Any) -> tuple[dict[str, Dataset], str]:
    """What was scored, by split, for its pictures; or nothing, and why."""
    splits, source, revision = list(signature["splits"]), signature["id"], signature["revision"]
    if dataset is not None:
        is_source = dataset == source and not os.path.exists(dataset)
        return load_source(dataset, splits, revision if is_source else None).splits, ""
    advice = "Give the dataset to see pictures (--dataset)."
    if source is None:
        return {}, f"the results do not name their dataset. {advice}"
    # Without a commit it was a folder: its name means nothing on the Hub.
    if revision is None and source != EMBEDDED_DATASET and not os.path.exists(source):
        return {}, f"{public_name(source)} is not here. {advice}"
    try:
        return load_source(source, splits, revision).splits, ""
    except (OSError, ValueError) as error:
        # Not its text, which may name folders of this machine. Who gives the dataset sees it.
        return {}, f"{public_name(source)} could not be opened ({type(error).__name__}). {advice}"


def _missing_pictures(gallery: Gallery, *, is_asked_for: bool) -> str:
    """How many rows have no picture, or nothing if all have one."""
    missing, shown = gallery.num_without_picture, len(gallery.examples)
    if missing == shown and is_asked_for:
        raise ValueError(
            f"Expected the dataset to hold the pictures that were scored, got none of the {shown} "
            "that the page would show. Pass the dataset that the results were made from."
        )
    if not missing:
        return ""
    return f"the dataset does not hold what was scored in {missing} of these {shown} rows."


def _content(
    results: Sequence[EvaluationResult], gallery: Gallery, no_pictures: str
) -> dict[str, Any]:
    """All that the two templates show."""
    models = _models(results)
    views = [_view(view, results) for view in _distinct_views(results[0].metrics)]
    lines = {line.label: line for line in views[0].lines}
    substitutions, num_substitutions = _substitutions(results)
    metrics = results[0].metrics["as_published"]
    titles = _figure_titles(results[0])
    chance = [
        (label, [_percent(values[name]) if name in values else "" for name in titles])
        for label, values in chance_lines(results[0])
    ]
    return {
        "models": models,
        "views": views,
        "headlines": [lines[_headline_label(split, of)] for split, of in metrics.items()],
        "outcome_lines": [lines[label] for of in metrics.values() for label in of["groups"]],
        "figure_titles": titles,
        "first_figure": list(titles)["augmented_accuracy" in titles],
        "has_hard_positives": "brittleness" in titles,
        "are_triples": published.are_triples(results[0].scores),
        "outcome_titles": OUTCOME_TITLES if "brittleness" in titles else PLAIN_OUTCOME_TITLES,
        "chance": chance,
        "chance_place": chance_lines(results[0])[0][1],
        "humans": [published.HUMANS.get(name, "") for name in titles],
        "published": published.FIGURES,
        "published_rows": published.describe_rows(results[0].scores),
        "no_interval": " ".join(_no_interval(_all_rows(results))),
        "no_substitution_interval": " ".join(
            _no_interval(row for line in substitutions for row in line.figures)
        ),
        "preparations": _preparations(models),
        "substitutions": substitutions,
        "num_substitutions": num_substitutions,
        "margins": [
            panel for split in metrics for model in models for panel in _margins(model, split)
        ],
        "gallery": gallery,
        "no_pictures": no_pictures,
        "version": __version__,
    }


def _models(results: Sequence[EvaluationResult]) -> list[_Model]:
    names = [name_of(result) for result in results]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return [
        _Model(
            place=place,
            letter=ascii_uppercase[place % 26] * (1 + place // 26),
            name=_full_name(result) if names[place] in repeated else names[place],
            result=result,
            command=command_of(result),
            preparation=" ".join(_preparation(result)),
            line=result.signature_line,
            signature=list(_flattened(result.signature)),
        )
        for place, result in enumerate(results)
    ]


def _preparations(models: Sequence[_Model]) -> str:
    """How the images of all models were prepared, or of each where they differ."""
    if len({model.preparation for model in models}) == 1:
        return models[0].preparation
    return " ".join(f"{m.letter}: {m.preparation or 'Not known.'}" for m in models)


def _full_name(result: EvaluationResult) -> str:
    model = result.signature["model"]
    details = (model["revision"], model.get("weights_sha256"), result.signature.get("dtype"))
    return " ".join([name_of(result), *(detail[:8] for detail in details if detail)])


def command_of(result: EvaluationResult) -> str | None:
    """The command that repeats a result; None where model or data have no name to call them by."""
    signature = result.signature
    if signature["dataset"]["id"] is None or "dtype" not in signature:  # a function, an object
        return None
    command = ["hard-positives", "evaluate", name_of(result)]
    command += ["--dataset", public_name(signature["dataset"]["id"])]
    command += _column_options(signature["dataset"].get("columns", {}))
    for split in signature["dataset"]["splits"]:
        command += ["--split", split]
    for option, part in {"--revision": "model", "--dataset-revision": "dataset"}.items():
        if signature[part].get("revision"):
            command += [option, signature[part]["revision"]]
    preprocessing = _preprocessing(signature)
    if preprocessing not in (None, "transformers"):
        command += ["--preprocessing", preprocessing]
    asked = signature.get("asked", {}).get("question", QUESTION)
    if asked != QUESTION:
        command += ["--question", asked]
    return shlex.join([*command, "--dtype", signature["dtype"], "--device", signature["device"]])


def _column_options(columns: dict[str, Any]) -> Iterator[str]:
    """The options of the command line that say what columns are."""
    names = {"positives": "--positive", "negatives": "--negative", "pairs": "--pair"}
    for name, value in columns.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            yield names.get(name, f"--{name}")
            yield ":".join(one) if name == "pairs" else one


def _flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", "none" if value is None else value


def _view(view: str, results: Sequence[EvaluationResult]) -> _View:
    lines = []
    for split, figures in results[0].metrics[view].items():
        labels = [label for label, _ in _labelled_rows(split, figures)]
        by_model = [dict(_labelled_rows(split, r.metrics[view][split])) for r in results]
        lines += [
            _Line(label, [of[label] for of in by_model], is_replace=split == "replace")
            for label in labels
        ]
    explanations = {"as_published": "all rows", "clean": "rows without known flaws"}
    return _View(VIEW_TITLES[view], explanations[view], lines)


def _headline_label(split: str, figures: dict[str, Any]) -> str:
    labels = list(figures["groups"])
    return labels[0] if len(labels) == 1 else _mean_label(split, "macro")


def _substitutions(results: Sequence[EvaluationResult]) -> tuple[list[_Line], int]:
    """The most frequent substitutions with their figures, and how many there are in all."""
    scores = results[0].scores
    kinds = list(zip(*(scores[c].to_pylist() for c in ("category", "substitution")), strict=True))
    counts = Counter(kind for kind in kinds if kind[1])
    places = {kind: place for place, (kind, _) in enumerate(counts.most_common(SUBSTITUTIONS))}
    rows = np.array([kind in places for kind in kinds])
    if not places:
        return [], 0
    groups = [places[kind] for kind in kinds if kind in places]
    chosen = scores.filter(pa.array(rows))
    labels, clusters = values_of(chosen, "labels"), chosen["cluster"].to_pylist()
    by_model = [
        compute_metrics(
            values_of(result.scores.filter(pa.array(rows)), "logits"),
            labels,
            groups=groups,
            clusters=clusters,
        )["groups"]
        for result in results
    ]
    lines = [
        _Line(kind[1], [of[place] for of in by_model], category=kind[0], substitution=kind[1])
        for kind, place in places.items()
    ]
    return lines, len(counts)


def _figure_titles(result: EvaluationResult) -> dict[str, str]:
    """The figures of the page with their titles, drop beside the two that it is made of."""
    shown = figure_columns(result).values()
    order = ["original_accuracy", "augmented_accuracy", "drop", "brittleness", "set_accuracy"]
    titles = {figure: title.capitalize() for title, figure in COLUMNS.items()}
    return {figure: titles[figure] for figure in order if figure in shown}


def _margins(model: _Model, split: str) -> Iterator[_Margins]:
    """Where rows with hard positives stand: above the best negative, or below."""
    scores = model.result.scores
    rows = np.array(scores["split"].to_pylist()) == split
    rows &= num_positives(scores) > 1
    if not rows.any():
        return
    chosen = scores.filter(pa.array(rows))
    margins = _margins_of(chosen)
    limit = float(np.quantile(np.abs(margins), 0.99)) or 1.0
    bins = BINS if len(margins) >= FULL_SIZE else BINS // 2
    edges = np.linspace(-limit, limit, bins + 1)
    counts, _, _ = np.histogram2d(margins[:, 0], margins[:, 1], bins=[edges, edges])
    found = row_outcomes(values_of(chosen, "logits"), values_of(chosen, "labels")).outcome
    shares = {outcome: float((found == outcome).mean()) for outcome in OUTCOMES}
    figures = model.result.metrics["as_published"][split]
    tick = float(f"{limit / 2:.1g}")
    ticks = [
        {"x": 180 + place, "y": 154 - place, "label": f"{value:g}"}
        for value in (-tick, 0, tick)
        for place in [round(FRAME / 2 * value / limit)]
    ]
    label = next(iter(figures["groups"])) if len(figures["groups"]) == 1 else split.upper()
    yield _Margins(model, label, shares, _levels(counts), ticks)


def _margins_of(scores: pa.Table) -> np.ndarray:
    """(N, 2): the original and the lowest other positive, each less the highest negative."""
    lists = [scores[name].combine_chunks() for name in ("logits", "labels")]
    logits, labels = (values.flatten().to_numpy(zero_copy_only=False) for values in lists)
    offsets = lists[0].offsets.to_numpy()
    starts = offsets[:-1] - offsets[0]
    logits = logits.astype(np.float64)
    best_negative = np.maximum.reduceat(np.where(labels, -np.inf, logits), starts)
    # The first positive of each row: the true ones before it in the row are none.
    before = np.cumsum(labels) - labels
    is_first = labels & (before == np.repeat(before[starts], np.diff(offsets)))
    others = np.minimum.reduceat(np.where(labels & ~is_first, logits, np.inf), starts)
    return np.stack([logits[is_first] - best_negative, others - best_negative], axis=1)


def _levels(counts: np.ndarray) -> list[dict[str, Any]]:
    """Cells of equal darkness as one path each: few and short, whatever the number of rows."""
    darkness = np.ceil(LEVELS * np.log1p(counts) / np.log1p(max(counts.max(), 1))).astype(int)
    side = FRAME // len(counts)
    return [
        {
            "opacity": round(0.12 + 0.88 * level / LEVELS, 2),
            "path": "".join(
                f"M{40 + side * x} {10 + FRAME - side * (y + 1)}h{side}v{side}h-{side}z"
                for x, y in np.argwhere(darkness == level)
            ),
        }
        for level in range(1, LEVELS + 1)
        if (darkness == level).any()
    ]


def _render_page(content: dict[str, Any]) -> str:
    folder = files("hard_positives") / "results" / "page"
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    # The page's policy lets this script run and nothing else, whatever a caption holds.
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template("page.html", autoescape=True).render(
        **content,
        style=Markup(style),
        script=Markup(script),
        script_hash=script_hash,
    )


def _render_markdown(content: dict[str, Any]) -> str:
    return _template("page.md", autoescape=False).render(**content)


def _template(name: str, autoescape: bool) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hard_positives", "results/page"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    environment.filters |= {
        "percent": _percent,
        "plain": _plain,
        "fenced": _fenced,
        "interval": _interval,
        "half_interval": _half_interval,
    }
    return environment.get_template(name)


def _shown(value: Any) -> Any:
    return printable(value) if type(value) is str else value  # not Markup, which is ours


def _plain(text: Any) -> str:
    """Text that Markdown shows as it is, in one line and one table cell."""
    one_line = " ".join(printable(text).split())
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", one_line)


def _fenced(text: str) -> Markup:
    """A block of code that no backquotes in it can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}sh\n{printable(text)}\n{fence}")
