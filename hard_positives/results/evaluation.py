"""A model and a dataset in, an EvaluationResult out: logits, metrics, and how they came about.

    dataset --comparisons, score--> logits --compute_metrics--> numbers, beside the signature that
    repeats them

Nothing here prints: see `tables` and `pages`.
"""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel
from typing_extensions import Unpack

from hard_positives.machine import Options
from hard_positives.models.kinds import Settings
from hard_positives.models.loading import Model, load_model
from hard_positives.names import public_name
from hard_positives.results.files import SCORES_SCHEMA
from hard_positives.results.result import DESCRIBED, EvaluationResult, facts_of
from hard_positives.scoring.score import score_comparisons
from hard_positives.suite.benchmarks import BenchmarkFile, find_benchmark
from hard_positives.suite.columns import DIRECTIONS, Columns
from hard_positives.suite.comparisons import Comparisons, read_comparisons
from hard_positives.suite.flaws import flaws_of
from hard_positives.suite.loading import load_rows
from hard_positives.suite.rows import about_rows
from hard_positives.suite.sources import Source, check_content

PACKAGES = ("hard-positives", "datasets", "numpy", "pillow", "tokenizers", "torch", "transformers")


def evaluate(
    model: str | Path | PreTrainedModel | Callable,
    dataset: str | Path | Dataset | DatasetDict,
    *,
    name: str | None = None,
    columns: Columns | None = None,
    splits: Sequence[str] | None = None,
    dataset_revision: str | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    cache: bool = True,
    progress: bool = True,
    **settings: Unpack[Settings],
) -> EvaluationResult:
    """Score a model on a dataset and keep all that the numbers depend on.

    Args:
        model: As for `hard_positives.score`, like all arguments not named here.
        dataset: What ``datasets.load_dataset`` takes (a folder from ``hard-positives build``, a Hub
            id), or what it returns, or a benchmark that ``hard-positives benchmarks`` lists, such
            as ``"sugarcrepe"`` or ``"shapes"`` (the bundled world). Without ``id``, rows are
            numbered; without ``category``, a split is one; without ``image_id``, rows of the same
            picture count as dependent; without ``flaws``, what no model can get right or what
            repeats is found by its texts (``suite/flaws.py``). Numbers in these become text,
            class labels their names. Images may be files that the rows name: inside the
            folder, for a folder; any regular files, for a ``Dataset`` that you made.
        name: What the results call the model; its id, folder or class if left out.
        columns: What the columns of the dataset are; left out, those of the benchmark: ``image``,
            ``caption``, ``hard_positive`` and ``hard_negative``.
        splits: Which splits, in the order of the report; all if left out.
        dataset_revision: Branch, tag or commit of ``dataset`` where that is a Hub id, as
            ``revision`` is of the model. The signature holds the commits that these stood for.

    Returns:
        The result, with all splits in one. An image or caption of two splits is encoded once.

    Raises:
        ValueError: An unknown split or column, no rows, nulls, an ``id`` that several rows share,
            image files outside the dataset's folder, rows other than the card of a built folder
            states, a ``dataset_revision`` that cannot be had, and what ``score`` raises.

    Examples:
        >>> result = evaluate("shapes_clip", "shapes")
        >>> swap = result.metrics["as_published"]["swap"]
        >>> swap["augmented_accuracy"] <= swap["original_accuracy"]
        True
    """
    options = Options(batch_size, num_workers, cache, progress)
    # What is wrong with the rows shows before a model is loaded.
    benchmark = open_benchmark(dataset, columns, splits, dataset_revision)
    scorer = load_model(model, **settings)
    return score_benchmark(name or model, scorer, benchmark, options)


@dataclass(frozen=True)
class Benchmark:
    """A dataset that was read and checked.

    Attributes:
        name: What the user called it.
        commit: Of the Hub, if it is from there.
        columns: What its columns are.
        comparisons: What is to be scored.
        described: All columns of a result but the logits.
        known: What its file says, if it is one of `hard-positives benchmarks`.
        commits: Of each split, where these are of several datasets on the Hub.
    """

    name: Any
    commit: str | None
    columns: Columns
    comparisons: Comparisons
    described: pa.Table
    known: BenchmarkFile | None = None
    commits: dict[str, str] = field(default_factory=dict)


def open_benchmark(
    dataset: str | Path | Dataset | DatasetDict,
    columns: Columns | None = None,
    splits: Sequence[str] | None = None,
    revision: str | None = None,
) -> Benchmark:
    """Read and check a dataset; see `evaluate` for the arguments and errors."""
    known, columns = find_benchmark(dataset), columns or Columns()
    if known is not None:
        if columns not in (Columns(), Columns(text_only=True)):
            raise ValueError(
                f"Expected columns to be left out for {dataset}, got {given_columns(columns)}. The "
                "benchmark's file says what they are; give the Hub id or folder for others."
            )
        columns = replace(known.read_columns, text_only=columns.text_only)
    source = load_rows(dataset, splits, revision)
    comparisons = read_comparisons(source.splits, columns)
    described = _described_rows(source, columns, comparisons)
    return Benchmark(dataset, source.commit, columns, comparisons, described, known, source.commits)


def score_benchmark(
    model: Any,
    scorer: Model,
    benchmark: Benchmark,
    options: Options,
    earlier: EvaluationResult | None = None,
) -> EvaluationResult:
    """Score a loaded model; or return the earlier result, if that depends on the same."""
    signature = _signature(model, scorer, benchmark)
    if earlier is not None and earlier.signature == json.loads(json.dumps(signature)):
        return earlier
    comparisons = benchmark.comparisons
    logits = score_comparisons(scorer, comparisons, options)
    lists = pa.ListArray.from_arrays(_int32(comparisons.offsets), pa.array(logits))
    scores = benchmark.described.append_column(SCORES_SCHEMA.field("logits"), lists)
    return EvaluationResult(scores, signature)


def _int32(offsets: np.ndarray) -> pa.Array:
    return pa.array(offsets, pa.int32())


def _described_rows(source: Source, columns: Columns, comparisons: Comparisons) -> pa.Table:
    """All columns of a result but the logits; checks what the dataset's card states."""
    _, first = np.unique(comparisons.rows, return_index=True)
    # Of the first picture of each row, or caption: what a row is known by where no column tells.
    places = comparisons.pairs[comparisons.offsets[first], 0]
    of_inputs = comparisons.caption_digests
    if not columns.text_only:
        of_inputs = comparisons.pictures.file_digests
    digests = [of_inputs[place] for place in places]
    about: dict[str, list] = {}
    start = 0
    for split, rows in source.splits.items():
        of_split = digests[start : start + len(rows)]
        is_anchor = columns.image_columns == ["image"]
        stated = source.content_sha256.get(split)
        check_content(split, rows, of_split if is_anchor else None, stated)
        known = about_rows(rows, split, of_split, columns.category, columns.cluster, columns.set)
        for name, values in {**known, "split": [split] * len(rows)}.items():
            about.setdefault(name, []).extend(values)
        start += len(rows)
    described = pa.table(about).take(pa.array(comparisons.rows))
    ids = described["id"].to_pylist()
    named = [
        f"{row}/{name}" if name else row for row, name in zip(ids, comparisons.names, strict=True)
    ]
    table = {
        **{name: described[name] for name in about},
        "id": named,
        "set": described["id"]
        if columns.pairs or columns.text_only
        else described["set"].cast(pa.string()),
        "flaws": _flaws(source, described, comparisons),
        "direction": np.array(DIRECTIONS)[comparisons.directions],
        "images": _lists(comparisons, comparisons.image_digests, 0),
        "captions": _lists(comparisons, comparisons.captions, 1),
        "labels": pa.ListArray.from_arrays(
            _int32(comparisons.offsets), pa.array(comparisons.labels)
        ),
    }
    return pa.table({name: table[name] for name in DESCRIBED.names}, schema=DESCRIBED)


def _flaws(source: Source, described: pa.Table, comparisons: Comparisons) -> pa.Array:
    """What the dataset says is wrong with its rows, or else what their texts show."""
    if any("flaws" in rows.column_names for rows in source.splits.values()):
        return described["flaws"]
    return pa.array(flaws_of(comparisons), pa.list_(pa.string()))


def _lists(comparisons: Comparisons, values: Sequence[str], side: int) -> pa.ListArray:
    """What stands on one side of each comparison: the anchor alone, or all candidates, or both."""
    lengths = np.diff(comparisons.offsets)
    if (comparisons.directions == 2).all():
        return _captions_alone(comparisons, values if side else None)
    is_anchor = comparisons.directions == side
    kept = np.ones(len(comparisons.pairs), bool)
    kept[np.repeat(is_anchor, lengths)] = False
    kept[comparisons.offsets[:-1]] = True
    offsets = np.concatenate([[0], np.cumsum(np.where(is_anchor, 1, lengths))])
    places = comparisons.pairs[kept, side]
    return pa.ListArray.from_arrays(
        _int32(offsets), pa.array(values, pa.string()).take(pa.array(places))
    )


def _captions_alone(comparisons: Comparisons, captions: Sequence[str] | None) -> pa.ListArray:
    """Anchor and candidates of comparisons of captions with captions; or their pictures: none."""
    rows: list[list[str]] = [[] for _ in range(len(comparisons))]
    if captions is not None:
        candidates = np.split(comparisons.candidates, comparisons.offsets[1:-1])
        for row, anchor, others in zip(rows, comparisons.anchors, candidates, strict=True):
            row += [captions[int(place)] for place in (anchor, *others)]
    return pa.array(rows, pa.list_(pa.string()))


def _signature(model: Any, scorer: Model, benchmark: Benchmark) -> dict[str, Any]:
    facts = facts_of(benchmark.described)
    described = scorer.identity.description
    name = public_name(model) or public_name(described["model"]["id"])
    return {
        **described,
        "model": {**described["model"], "id": name},
        "dataset": {
            "id": public_name(benchmark.name),
            "revision": benchmark.commit,
            "columns": given_columns(benchmark.columns),
            **({"revisions": benchmark.commits} if benchmark.commits else {}),
            **_authors_rules(benchmark),
            **facts.pop("dataset"),
        },
        **facts,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
    }


def _authors_rules(benchmark: Benchmark) -> dict[str, Any]:
    """State which benchmark it is and how its authors count; empty for other datasets."""
    if benchmark.known is None or not benchmark.known.figures:
        return {}
    figures = [asdict(figure) for figure in benchmark.known.figures]
    return {"benchmark": benchmark.known.name, "figures": figures}


def given_columns(columns: Columns) -> dict[str, Any]:
    """Tell what of the columns is not as in the benchmark; empty for its own."""
    default = Columns()
    values = {part.name: getattr(columns, part.name) for part in fields(columns)}
    given = {name for name, value in values.items() if value != getattr(default, name)}
    if given & {"positives", "negatives"}:
        given |= {"positives", "negatives"}  # one alone makes no `Columns`
    return {
        name: json.loads(json.dumps(value))  # tuples as lists, as they are read again
        for name, value in values.items()
        if name in given
    }
