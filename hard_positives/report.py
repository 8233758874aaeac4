"""Results in, something to look at out: tables for the terminal, a page and Markdown to keep.

Percent appear here only; everywhere else a figure is a fraction. The page's markup, style and
script stand in ``report_page/``; which rows it shows is up to ``gallery``.
"""

import base64
import hashlib
import os
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
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

from hard_positive_metric import OUTCOMES, compute_metrics
from hard_positives import __version__
from hard_positives.comparison import PairedDifference, check_same_rows, compare
from hard_positives.evaluation import EvaluationResult
from hard_positives.gallery import Gallery, choose_examples
from hard_positives.sources import load_splits

COLUMNS = {
    "original": "original_accuracy",
    "augmented": "augmented_accuracy",
    "brittleness": "brittleness",
    "drop": "drop",
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
# Three scores in random order: c above c_n; c_n last; c_n between; c first and c_n second.
CHANCE = ("50.0", "33.3", "33.3", "16.7", "0.0")
# Second-hand: read in summaries of the paper, not in its own table.
HUMANS = ("97", "97", "0", "0", "")
PUBLISHED = (
    ("REPLACE macro", "CLIP ViT-B/32", "61.6", "46.8", "23.2"),
    ("REPLACE macro", "NegCLIP", "68.6", "52.1", ""),
    ("REPLACE macro", "DAC-LLM", "87.6", "48.9", "40.1"),
    ("REPLACE macro", "CLIP tuned on hard negatives", "", "55.7", "21.0"),
    ("REPLACE macro", "CLIP tuned on hard positives and hard negatives", "69.0", "58.0", "16.9"),
    ("REPLACE macro", "humans", "97", "97", "0"),
    ("swap", "CLIP ViT-B/32", "60.5 (derived)", "49.6", ""),
    ("swap", "CLIP tuned on hard positives and hard negatives", "73.2 (derived)", "61.1", ""),
)
PUBLISHED_SIZES = {"attribute": 10_575, "relation": 16_868, "swap": 28_748}
EXPLANATION = (
    "% of rows ± half of the 95 % interval, clustered by image. Original: the caption beats the "
    "hard negative. Augmented: the hard positive does too. Brittleness: the hard negative falls "
    "between the two. Drop: original - augmented. A tie is wrong. Human figures are second-hand."
)
COMPARISON_EXPLANATION = (
    "% of rows; difference = second - first with its 95 % interval, clustered by image. Won, lost: "
    "rows that only the second, only the first model has right. p: McNemar's exact test of won "
    "against lost, which takes rows of one image as independent; trust the interval."
)
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
    table = _new_table(Text(result.signature["model"]["id"]), EXPLANATION)
    table.add_column("", overflow="fold")
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


def _mean_label(split: str, mean: str) -> str:
    return f"{split.upper()} {mean}"


def _add_figures(table: Table, label: str, figures: dict[str, Any]) -> None:
    strict = [_percent(figures[name]) for name in COLUMNS.values()]
    intervals = [_half_interval(figures, name) for name in COLUMNS.values()]
    cells = [f"{value} ±{half}" for value, half in zip(strict, intervals, strict=True)]
    table.add_row(Text(f" {label}"), f"{figures['num_examples']:,}", *cells)
    halves = [_percent(figures[f"{name}_half_credit"]) for name in list(COLUMNS.values())[:3]]
    if halves != strict[:3]:
        table.add_row("  ties as half", "", *halves, style="dim")


def _half_interval(figures: dict[str, Any], name: str) -> str:
    return _percent((figures[f"{name}_ci_high"] - figures[f"{name}_ci_low"]) / 2)


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
    table = _new_table(Text(f"{names[1]} - {names[0]}"), COMPARISON_EXPLANATION)
    table.add_column("", overflow="fold")
    for name in ("first", "second", "difference", "95 % interval", "won", "lost", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    titles = {figure: title for title, figure in COLUMNS.items()}
    for view in _views_that_differ(differences):
        table.add_row(Text(VIEW_TITLES[view], style="bold"))
        of_view = [row for row in differences if row.view == view]
        for split, group in dict.fromkeys((row.split, row.group) for row in of_view):
            rows = [row for row in of_view if (row.split, row.group) == (split, group)]
            label = _mean_label(split, group) if group in ("macro", "micro") else group
            table.add_row(Text(f" {label}"), Text(f"n={rows[0].num_examples:,}", style="dim"))
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
    interval = "" if row.ci_low is None else f"{_signed(row.ci_low)} to {_signed(row.ci_high)}"
    counts = ["", ""] if row.group == "macro" else [f"{row.won:,}", f"{row.lost:,}"]
    shares = [_percent(row.first), _percent(row.second), _signed(row.difference)]
    return [*shares, interval, *counts, _p_value(row.p_value)]


def _p_value(value: float | None) -> str:
    if value is None:
        return ""
    return "<.001" if value < 0.0005 else f"{value:.3f}"


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}"


def name_of(result: EvaluationResult) -> str:
    """The model's Hub id, or the last part of its folder's path."""
    model_id = result.signature["model"]["id"]
    return Path(model_id).name if Path(model_id).is_absolute() else model_id


@dataclass(frozen=True)
class _Model:
    """One result as the page speaks of it: a letter in the charts, a name beside it."""

    place: int
    letter: str
    name: str
    result: EvaluationResult
    command: str | None
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
    """Write a page (``index.html``) that needs no network, and its text as ``report.md``.

    The page holds the paper's table with intervals, what happened in the rows, accuracy against
    brittleness, the figures by substitution, the margins, rows with their pictures, and each run's
    signature and command. Several results are shown side by side; then the rows are those on which
    they disagree. At most ``gallery.GALLERY_ROWS`` rows are shown, whatever the number of rows.

    Args:
        results: One or more, over the same rows.
        output_dir: A folder; made if absent. The two files in it are replaced.
        dataset: What was scored, for captions and pictures, as for :func:`hard_positives.evaluate`.
            Left out, the dataset that the first result's signature names; where that cannot be
            opened, a warning, and a page without pictures.

    Returns:
        The path of ``index.html``.

    Raises:
        ValueError: No results; results over different rows; ``dataset`` has other rows.

    Examples:
        >>> result = EvaluationResult.load("results/clip")  # doctest: +SKIP
        >>> write_report([result], "report", dataset="REPLACE")  # doctest: +SKIP
        PosixPath('report/index.html')
    """
    if not results:
        raise ValueError("Expected results to be at least one result, got none.")
    check_same_rows(results)
    gallery, no_gallery = _open_gallery(results, dataset)
    content = _content(results, gallery, no_gallery)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {PAGE: _render_page(content), MARKDOWN: _render_markdown(content)}.items():
        partial = folder / f".{name}.{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)
    return folder / PAGE


def _open_gallery(results: Sequence[EvaluationResult], dataset: Any) -> tuple[Gallery | None, str]:
    """The gallery, or why there is none."""
    splits = list(results[0].signature["dataset"]["splits"])
    if dataset is not None:
        return choose_examples(results, load_splits(dataset, splits)), ""
    source = results[0].signature["dataset"]["id"]
    reason = "the results do not name their dataset"
    if source is not None:
        try:
            return choose_examples(results, load_splits(source, splits)), ""
        except (OSError, ValueError) as error:
            reason = f"{source} could not be used ({error})"
    reason += ". Give the dataset to see rows (--dataset)."
    warnings.warn(f"The report shows no rows: {reason}", stacklevel=3)
    return None, reason


def _content(
    results: Sequence[EvaluationResult], gallery: Gallery | None, no_gallery: str
) -> dict[str, Any]:
    """All that the two templates show."""
    models = _models(results)
    views = [_view(view, results) for view in _distinct_views(results[0].metrics)]
    lines = {line.label: line for line in views[0].lines}
    substitutions, num_substitutions = _substitutions(results)
    metrics = results[0].metrics["as_published"]
    return {
        "models": models,
        "views": views,
        "headlines": [lines[_headline_label(split, of)] for split, of in metrics.items()],
        "outcome_lines": [lines[label] for of in metrics.values() for label in of["groups"]],
        "figure_titles": {
            "original_accuracy": "Original",
            "augmented_accuracy": "Augmented",
            "drop": "Drop",
            "brittleness": "Brittleness",
        },
        "outcome_titles": OUTCOME_TITLES,
        # In the order of figure_titles.
        "chance": [CHANCE[place] for place in (0, 1, 3, 2)],
        "humans": [HUMANS[place] for place in (0, 1, 3, 2)],
        "published": PUBLISHED,
        "is_published_benchmark": _is_published_benchmark(results[0].scores),
        "substitutions": substitutions,
        "num_substitutions": num_substitutions,
        "margins": [_margins(model, split) for split in metrics for model in models],
        "gallery": gallery,
        "no_gallery": no_gallery,
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
            signature=list(_flattened(result.signature)),
        )
        for place, result in enumerate(results)
    ]


def _full_name(result: EvaluationResult) -> str:
    model = result.signature["model"]
    details = (model["revision"], model.get("weights_sha256"), result.signature.get("dtype"))
    return " ".join([name_of(result), *(detail[:8] for detail in details if detail)])


def command_of(result: EvaluationResult) -> str | None:
    """The command that repeats a result; None where model or data have no name to call them by."""
    signature = result.signature
    if signature["dataset"]["id"] is None or "weights_sha256" not in signature["model"]:
        return None
    command = ["hard-positives", "evaluate", signature["model"]["id"]]
    command += ["--dataset", signature["dataset"]["id"]]
    for split in signature["dataset"]["splits"]:
        command += ["--split", split]
    for option, part in {"--revision": "model", "--dataset-revision": "dataset"}.items():
        if signature[part].get("revision"):
            command += [option, signature[part]["revision"]]
    return shlex.join([*command, "--dtype", signature["dtype"], "--device", signature["device"]])


def _flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(value) if isinstance(value, list) else value


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


def _is_published_benchmark(scores: pa.Table) -> bool:
    sizes = {row["values"]: row["counts"] for row in scores["category"].value_counts().to_pylist()}
    return all(PUBLISHED_SIZES.get(category) == size for category, size in sizes.items())


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
    clusters = scores["image_id"].filter(pa.array(rows)).to_pylist()
    by_model = [
        compute_metrics(result.logits[rows], groups=groups, clusters=clusters)["groups"]
        for result in results
    ]
    lines = [
        _Line(kind[1], [of[place] for of in by_model], category=kind[0], substitution=kind[1])
        for kind, place in places.items()
    ]
    return lines, len(counts)


def _margins(model: _Model, split: str) -> _Margins:
    rows = np.array(model.result.scores["split"].to_pylist()) == split
    logits = model.result.logits[rows].astype(np.float64)
    margins = logits[:, :2] - logits[:, 2:]  # (N, 2): of the caption, of the hard positive
    limit = float(np.quantile(np.abs(margins), 0.99)) or 1.0
    bins = BINS if len(logits) >= FULL_SIZE else BINS // 2
    edges = np.linspace(-limit, limit, bins + 1)
    counts, _, _ = np.histogram2d(*margins.T, bins=(edges, edges))
    figures = model.result.metrics["as_published"][split]
    shares = {outcome: figures[f"num_{outcome}"] / len(logits) for outcome in OUTCOMES}
    tick = float(f"{limit / 2:.1g}")
    ticks = [
        {"x": 180 + place, "y": 154 - place, "label": f"{value:g}"}
        for value in (-tick, 0, tick)
        for place in [round(FRAME / 2 * value / limit)]
    ]
    label = next(iter(figures["groups"])) if len(figures["groups"]) == 1 else split.upper()
    return _Margins(model, label, shares, _levels(counts), ticks)


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
    folder = files("hard_positives") / "report_page"
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
        loader=jinja2.PackageLoader("hard_positives", "report_page"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "plain": _plain}
    return environment.get_template(name)


def _plain(text: Any) -> str:
    """Text that Markdown shows as it is, in one line and one table cell."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(str(text).split()))
