"""Results in, a page out: `index.html`, which needs no network, and its text as `report.md`.

The page's markup, style and script are in `page/`; `parts` and `overview` say what they show.
Names and captions come from other people: whatever they hold is shown as text.
"""

import base64
import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from hard_positives import __version__
from hard_positives.names import EMBEDDED_DATASET, printable, public_name
from hard_positives.results.comparison import check_same_rows
from hard_positives.results.edits import mark_edits
from hard_positives.results.exports import figures_csv, figures_latex, plain
from hard_positives.results.figures import (
    dataset_name_of,
    half_interval,
    interval,
    percent,
    rows_of,
    signed,
)
from hard_positives.results.gallery import Gallery, choose_examples
from hard_positives.results.overview import overview_of
from hard_positives.results.parts import content_of, name_models
from hard_positives.results.result import EvaluationResult
from hard_positives.suite.benchmarks import known_benchmark
from hard_positives.suite.columns import Columns
from hard_positives_dataset.folders import write_whole

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

PAGE, MARKDOWN = "index.html", "report.md"
CSV, LATEX = "figures.csv", "figures.tex"


def write_report(
    results: Sequence[EvaluationResult],
    output_dir: str | Path,
    *,
    dataset: "str | Path | Dataset | DatasetDict | Sequence[str | Path] | None" = None,
) -> Path:
    """Write a page (`index.html`) that needs no network, and its text as `report.md`.

    Beside them stand every figure as CSV (`figures.csv`) and models by datasets as LaTeX
    (`figures.tex`), with the signature of each run. The page holds the paper's table with
    intervals, what happened in the rows, accuracy against brittleness, the figures by substitution,
    the margins, rows with their pictures, and each run's signature and command. Several results are
    shown side by side; then the rows are those on which they disagree. Results on several datasets
    get a table of models by datasets on top, and all of this for each dataset. At most
    `gallery.GALLERY_ROWS` rows are shown, whatever the number of rows and datasets. Their captions
    are those that were scored; a picture is shown only if its bytes are.

    Args:
        results: One or more. Those on a dataset of one name must be over the same rows.
        output_dir: A folder; made if absent. The four files in it are replaced, once all are
            written.
        dataset: What was scored, for its pictures and for the people who judged it, as for
            `hard_positives.evaluate`; with results on several datasets the folders or Hub ids of
            some of these, by whose names they are told apart. If left out, the dataset that the
            results' signature names, at the commit that it names; if that cannot be opened, a
            warning, and no pictures of it.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: No results; results over different rows of one dataset; `dataset` holds none of
            the pictures, or none of the results is on it.
        OSError: The disk is full; the earlier page is whole.

    Examples:
        >>> result = EvaluationResult.load("results/clip")  # doctest: +SKIP
        >>> write_report([result], "report", dataset="REPLACE")  # doctest: +SKIP
        PosixPath('report/index.html')
    """
    if not results:
        raise ValueError("Expected results to be at least one result, got none.")
    by_dataset = _by_dataset(results)
    given = _given_datasets(dataset, list(by_dataset))
    parts = []
    for name, models in zip(by_dataset, name_models(list(by_dataset.values())), strict=True):
        of_dataset = [model.result for model in models]
        described = of_dataset[0].signature["dataset"]
        rows_by_split, no_pictures = _open_dataset(described, given.get(name))
        columns = Columns(**described.get("columns", {}))
        gallery = choose_examples(of_dataset, rows_by_split, columns, share=1 / len(by_dataset))
        if not no_pictures:
            no_pictures = _missing_pictures(gallery, is_asked_for=name in given)
        if no_pictures:
            about = f"{name}: " if len(by_dataset) > 1 else ""
            message = printable(f"The report lacks pictures: {about}{no_pictures}")
            warnings.warn(message, stacklevel=2)
        named = {"dataset": name, "anchor": f"dataset-{len(parts) + 1}"}
        content = content_of(models, gallery, no_pictures, given.get(name))
        parts.append({**named, **content})
    texts = _render(parts)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # All are written before one is put in place, the page last. A kill between two renames leaves
    # files of two runs; each holds its own figures, signatures and captions.
    content = dict(zip((PAGE, MARKDOWN), texts, strict=True))
    content |= {CSV: figures_csv(results), LATEX: figures_latex(results)}
    with ExitStack() as stack:
        for name, text in content.items():
            stack.enter_context(write_whole(folder / name)).write_text(text, encoding="utf-8")
    return folder / PAGE


def _by_dataset(results: Sequence[EvaluationResult]) -> dict[str, list[EvaluationResult]]:
    """The results of each dataset, by its name; all of one dataset are over the same rows."""
    by_rows: dict[tuple, list[EvaluationResult]] = {}
    for result in results:
        by_rows.setdefault(rows_of(result), []).append(result)
    named: dict[str, list[EvaluationResult]] = {}
    for of_rows in by_rows.values():
        named.setdefault(dataset_name_of(of_rows[0]), []).extend(of_rows)
    for of_dataset in named.values():
        check_same_rows(of_dataset)
    return named


def _given_datasets(dataset: Any, names: Sequence[str]) -> dict[str, Any]:
    """The datasets that pictures are taken from, by the names of those that they are."""
    given = list(dataset) if isinstance(dataset, (list, tuple)) else [dataset]
    if given in ([], [None]):
        return {}
    if len(names) == len(given) == 1:
        return {names[0]: given[0]}
    found = {}
    for one in given:
        called = str(public_name(one))
        same = [name for name in names if Path(name).name == Path(called).name]
        if called not in names and len(same) != 1:
            raise ValueError(
                f"Expected dataset to be folders or Hub ids of {', '.join(names)}, got {called}. "
                "Give those that the results were made from."
            )
        found[called if called in names else same[0]] = one
    return found


def _open_dataset(signature: dict[str, Any], dataset: Any) -> "tuple[dict[str, Dataset], str]":
    """What was scored, by split, for its pictures; or nothing, and why."""
    splits, source, revision = list(signature["splits"]), signature["id"], signature["revision"]
    if dataset is not None:
        is_source = dataset == source and not os.path.exists(dataset)
        return _load_splits(dataset, splits, revision if is_source else None), ""
    advice = "Give the dataset to see pictures (--dataset)."
    if source is None:
        return {}, f"the results do not name their dataset. {advice}"
    # Without a commit it was a folder: its name means nothing on the Hub.
    known = source == EMBEDDED_DATASET or known_benchmark(source) is not None
    if revision is None and not known and not os.path.exists(source):
        return {}, f"{public_name(source)} is not here. {advice}"
    try:
        return _load_splits(source, splits, None if known else revision), ""
    except (OSError, ValueError) as error:
        # Not its text, which may name folders of this machine. Who gives the dataset sees it.
        return {}, f"{public_name(source)} could not be opened ({type(error).__name__}). {advice}"


def _load_splits(dataset: Any, splits: Sequence[str], revision: str | None) -> "dict[str, Dataset]":
    from hard_positives.suite.loading import (
        load_rows,  # needs `datasets`; few pages have no picture
    )

    return load_rows(dataset, splits, revision).splits


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


def _render(parts: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The page of these datasets, and its Markdown."""
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
    filters = (percent, plain, _fenced, interval, half_interval, signed, mark_edits)
    environment.filters["zip"] = zip
    environment.filters |= {function.__name__.strip("_"): function for function in filters}
    content = parts[0] if len(parts) == 1 else overview_of(parts)
    texts = []
    for kind in ("html", "md"):
        template, whole = (environment.get_template(f"{name}.{kind}") for name in ("part", "page"))
        common = {"is_alone": len(parts) == 1, "version": __version__, **own}
        bodies = [Markup(template.render(**one, **common, part=one)) for one in parts]
        texts.append(whole.render(**content, **common, parts=parts, bodies=bodies))
    return texts[0], texts[1]


def _shown(value: Any) -> Any:
    return printable(value) if type(value) is str else value  # not Markup, which is ours


def _fenced(text: str) -> Markup:
    """A block of code that no backquotes in it can end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}sh\n{printable(text)}\n{fence}")
