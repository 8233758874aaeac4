"""Results in, a page out: `index.html`, which needs no network, and its text as `report.md`.

The page's markup, style and script are in `page/`; `gallery` chooses its rows, `margins` draws.
Names and captions come from other people: whatever they hold is shown as text.
"""

import base64
import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import jinja2
import pyarrow as pa
from datasets import Dataset, DatasetDict
from markupsafe import Markup

from hard_positive_metric import compute_metrics
from hard_positives import __version__
from hard_positives.names import printable, public_name
from hard_positives.results.comparison import check_same_rows
from hard_positives.results.evaluation import EvaluationResult, values_of
from hard_positives.results.figures import (
    TITLES,
    VIEW_TITLES,
    all_rows,
    chance_lines,
    distinct_views,
    half_interval,
    interval,
    labelled_rows,
    mean_label,
    name_of,
    no_interval,
    percent,
    preparation_of,
    shown_figures,
)
from hard_positives.results.gallery import Gallery, choose_examples
from hard_positives.results.margins import margins_of
from hard_positives.results.runs import command_of, flattened, full_name_of
from hard_positives.suite import published
from hard_positives.suite.comparisons import Columns
from hard_positives.suite.sources import EMBEDDED_DATASET, load_source
from hard_positives_dataset.folders import write_whole

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
# On a page, drop stands beside the two figures that it is made of.
ORDER = ("original_accuracy", "augmented_accuracy", "drop", "brittleness", "set_accuracy")
VIEW_EXPLANATIONS = {"as_published": "all rows", "clean": "rows without known flaws"}
SUBSTITUTIONS = 200  # at most, the most frequent
PAGE, MARKDOWN = "index.html", "report.md"


@dataclass(frozen=True)
class _Model:
    """One result as the page speaks of it: a letter in the charts, a name beside it."""

    place: int
    letter: str
    name: str
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
    texts = _render(_content(results, gallery, no_pictures))
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # Both are written before one is put in place, the page last. A kill between the two renames
    # leaves files of two runs; each holds its own figures, signatures and captions.
    with write_whole(folder / PAGE) as page, write_whole(folder / MARKDOWN) as markdown:
        page.write_text(texts[0], encoding="utf-8")
        markdown.write_text(texts[1], encoding="utf-8")
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
    first, models = results[0], _models(results)
    titles = {name: TITLES[name].capitalize() for name in ORDER if name in shown_figures(first)}
    substitutions, num_substitutions = _substitutions(results)
    chance = chance_lines(first)
    splits = {
        split: [result.metrics["as_published"][split] for result in results]
        for split in first.metrics["as_published"]
    }
    panels = zip(*map(margins_of, results), strict=True)
    return {
        "models": models,
        "views": [
            (VIEW_TITLES[view], VIEW_EXPLANATIONS[view], _lines(view, results))
            for view in distinct_views(first)
        ],
        "headlines": [_headline(split, of_models) for split, of_models in splits.items()],
        "outcome_lines": [
            _Line(label, [figures["groups"][label] for figures in of_models])
            for of_models in splits.values()
            for label in of_models[0]["groups"]
        ],
        "figure_titles": titles,
        "first_figure": list(titles)["augmented_accuracy" in titles],
        "has_hard_positives": "brittleness" in titles,
        "are_triples": published.are_triples(first.scores),
        "outcome_titles": OUTCOME_TITLES if "brittleness" in titles else PLAIN_OUTCOME_TITLES,
        "chance": [
            (label, [percent(values[name]) if name in values else "" for name in titles])
            for label, values in chance
        ],
        "chance_place": chance[0][1],
        "humans": [published.HUMANS.get(name, "") for name in titles],
        "published": published.FIGURES,
        "published_rows": published.describe_rows(first.scores),
        "no_interval": no_interval(row for result in results for row in all_rows(result)),
        "no_substitution_interval": no_interval(
            row for line in substitutions for row in line.figures
        ),
        "preparations": _preparations(models),
        "substitutions": substitutions,
        "num_substitutions": num_substitutions,
        "margins": [pair for of_split in panels for pair in zip(models, of_split, strict=True)],
        "gallery": gallery,
        "no_pictures": no_pictures,
        "version": __version__,
    }


def _models(results: Sequence[EvaluationResult]) -> list[_Model]:
    repeated = Counter(map(name_of, results))
    return [
        _Model(
            place=place,
            letter=ascii_uppercase[place % 26] * (1 + place // 26),
            name=full_name_of(result) if repeated[name_of(result)] > 1 else name_of(result),
            command=command_of(result),
            preparation=preparation_of(result),
            line=result.signature_line,
            signature=list(flattened(result.signature)),
        )
        for place, result in enumerate(results)
    ]


def _preparations(models: Sequence[_Model]) -> str:
    """How the images of all models were prepared, or of each where they differ."""
    if len({model.preparation for model in models}) == 1:
        return models[0].preparation
    return " ".join(f"{m.letter}: {m.preparation or 'Not known.'}" for m in models)


def _lines(view: str, results: Sequence[EvaluationResult]) -> list[_Line]:
    lines = []
    for split in results[0].metrics[view]:
        of_models = [labelled_rows(split, result.metrics[view][split]) for result in results]
        for same_rows in zip(*of_models, strict=True):
            lines.append(_Line(same_rows[0][0], [figures for _, figures in same_rows]))
    return lines


def _headline(split: str, of_models: Sequence[dict[str, Any]]) -> _Line:
    """The mean over a split's categories, which is the figure of the only one if there is one."""
    labels = list(of_models[0]["groups"])
    label = labels[0] if len(labels) == 1 else mean_label(split, "macro")
    return _Line(label, [figures["macro"] for figures in of_models], is_replace=split == "replace")


def _substitutions(results: Sequence[EvaluationResult]) -> tuple[list[_Line], int]:
    """The most frequent substitutions with their figures, and how many there are in all."""
    scores = results[0].scores
    kinds = list(zip(*(scores[c].to_pylist() for c in ("category", "substitution")), strict=True))
    counts = Counter(kind for kind in kinds if kind[1])
    places = {kind: place for place, (kind, _) in enumerate(counts.most_common(SUBSTITUTIONS))}
    rows = pa.array([kind in places for kind in kinds])
    if not places:
        return [], 0
    groups = [places[kind] for kind in kinds if kind in places]
    chosen = scores.filter(rows)
    labels, clusters = values_of(chosen, "labels"), chosen["cluster"].to_pylist()
    by_model = [
        compute_metrics(
            values_of(result.scores.filter(rows), "logits"),
            labels,
            groups=groups,
            clusters=clusters,
        )["groups"]
        for result in results
    ]
    lines = [
        _Line(kind[1], [of[place] for of in by_model], category=kind[0])
        for kind, place in places.items()
    ]
    return lines, len(counts)


def _render(content: dict[str, Any]) -> tuple[str, str]:
    """The page and its Markdown."""
    folder = files("hard_positives") / "results" / "page"
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    # The page's policy lets this script run and nothing else, whatever a caption holds.
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own = {"style": Markup(style), "script": Markup(script), "script_hash": script_hash}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hard_positives", "results/page"),
        autoescape=lambda name: name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    filters = (percent, _plain, _fenced, interval, half_interval)
    environment.filters |= {function.__name__.strip("_"): function for function in filters}
    page, markdown = map(environment.get_template, ("page.html", "page.md"))
    return page.render(**content, **own), markdown.render(**content)


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
