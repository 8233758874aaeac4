"""A model and a dataset in, an EvaluationResult out: logits, metrics, and how they came about.

    dataset --comparisons, score--> logits --compute_metrics--> numbers, beside the signature that
    repeats them

Nothing here prints: see `tables` and `pages`.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel
from typing_extensions import Unpack

from hard_positive_metric import compute_metrics
from hard_positives.machine import Options
from hard_positives.models.kinds import Settings
from hard_positives.models.loading import Encoder, Matcher, load_model
from hard_positives.names import public_name
from hard_positives.results.files import (
    SCORES_SCHEMA,
    prepare_folder,
    read_result,
    write_result,
)
from hard_positives.scoring.score import score_comparisons
from hard_positives.suite.comparisons import DIRECTIONS, Columns, Comparisons, read_comparisons
from hard_positives.suite.rows import about_rows
from hard_positives.suite.sources import Source, check_content, load_source
from hard_positives_dataset.content import ContentHash

VIEWS = ("as_published", "clean")
_DESCRIBED = pa.schema([field for field in SCORES_SCHEMA if field.name != "logits"])
PACKAGES = ("hard-positives", "datasets", "numpy", "pillow", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class EvaluationResult:
    """Every comparison's logits and the signature of the run; all numbers follow from these.

    Attributes:
        scores: One row for each comparison, in the order of the dataset: `id`, `split`, `category`,
            `substitution`, `cluster`, `flaws`; `direction` (`image_to_text` or `text_to_image`) and
            `set` (comparisons that belong together, or null); what was scored: `images` (the
            SHA-256 of each, in hexadecimal: the anchor, or the candidates), `captions` (likewise);
            and of each candidate `labels` (whether it is true) and `logits` (float32).
        signature: What the numbers depend on: model, processor, dtype, dataset, rows, versions.
    """

    scores: pa.Table
    signature: dict[str, Any]

    @property
    def logits(self) -> np.ndarray | pa.ListArray:
        """float32 (N, K); an Arrow array of lists where the numbers of candidates differ."""
        return values_of(self.scores, "logits")

    def parts(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yield view, split, and which rows of `scores` it has, for each that has any."""
        splits = np.array(self.scores["split"].to_pylist())
        flawed = np.array([bool(flaws) for flaws in self.scores["flaws"].to_pylist()])
        for view, rows in zip(VIEWS, (np.ones_like(flawed), ~flawed), strict=True):
            for split in dict.fromkeys(splits.tolist()):
                if (rows & (splits == split)).any():
                    yield view, split, rows & (splits == split)

    @cached_property
    def metrics(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Figures by view and split, as `hard_positive_metric.compute_metrics` gives them.

        `metrics["clean"]["replace"]["groups"]["attribute"]["augmented_accuracy"]` is a fraction of
        the attribute rows without flaws; `["macro"]` is the mean over categories. Where a split
        compares in both directions, `["directions"]` has the figures of each. A view of a split
        that has no row is left out.
        """
        metrics: dict[str, dict[str, dict[str, Any]]] = {view: {} for view in VIEWS}
        for view, split, rows in self.parts():
            metrics[view][split] = _metrics_of(self.scores.filter(pa.array(rows)))
        return metrics

    @property
    def signature_line(self) -> str:
        """The signature in one line, to paste beside a number."""
        signature = self.signature
        model, dataset = signature["model"], signature["dataset"]
        processor = signature.get("processor") or {}
        parts = {
            "model": _at(model["id"], model.get("revision")),
            "adapter": "+".join(model.get("adapters") or []),
            "weights": (model.get("weights_sha256") or "")[:8],
            "images": processor.get("preprocessing"),
            "question": _short_hash(signature.get("asked")),
            "dtype": signature.get("dtype"),
            "device": signature.get("device"),
            "data": _at(dataset["id"], dataset.get("revision")),
            "rows": dataset["content_sha256"][:8],
            "ties": "wrong",
            "version": signature.get("versions", {}).get("hard-positives"),
        }
        return "|".join(f"{name}:{value}" for name, value in parts.items() if value)

    def save(self, output_dir: str | Path) -> Path:
        """Write ``results.json`` and ``scores.parquet`` in the place of an earlier result.

        Whatever happens meanwhile (an error, a full disk, SIGKILL, another save), the folder holds
        a whole result, the earlier or the new one, and :meth:`load` reads it.

        Returns:
            The folder.

        Raises:
            FileExistsError: The folder holds files that are no result's.
            OSError: No room on the disk, or the folder cannot be written to.
        """
        folder = prepare_folder(output_dir)
        write_result(folder, self.signature, self.scores, self.metrics)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "EvaluationResult":
        """Read a saved result, which is then as it was saved: both files carry a SHA-256.

        Raises:
            FileNotFoundError: The folder holds no complete result.
            ValueError: A file is damaged, edited, of an older version, or of another run.
        """
        return cls(*read_result(Path(folder)))


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
        model: As for :func:`hard_positives.score`, like all arguments not named here.
        dataset: What ``datasets.load_dataset`` takes (a folder from ``hard-positives build``, a Hub
            id), or what it returns, or ``"shapes"`` (the bundled world). Without ``id``, rows are
            numbered; without ``category``, a split is one; without ``image_id``, rows of the same
            picture count as dependent; without ``flaws``, none has any. Numbers in these become
            text, class labels their names. Images may be files that the rows name: inside the
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
    """

    name: Any
    commit: str | None
    columns: Columns
    comparisons: Comparisons
    described: pa.Table


def open_benchmark(
    dataset: str | Path | Dataset | DatasetDict,
    columns: Columns | None = None,
    splits: Sequence[str] | None = None,
    revision: str | None = None,
) -> Benchmark:
    """Read and check a dataset; see :func:`evaluate` for the arguments and errors."""
    source = load_source(dataset, splits, revision)
    columns = columns or Columns()
    comparisons = read_comparisons(source.splits, columns)
    described = _described_rows(source, columns, comparisons)
    return Benchmark(dataset, source.commit, columns, comparisons, described)


def score_benchmark(
    model: Any,
    scorer: Encoder | Matcher,
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


def values_of(scores: pa.Table, name: str) -> np.ndarray | pa.ListArray:
    """Return a column of lists as (N, K), or as an Arrow array where K differs."""
    lists = scores[name].combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    if len(lengths) and (lengths == lengths[0]).all():
        return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    return lists


def num_positives(scores: pa.Table) -> np.ndarray:
    """(N,) how many of each comparison's candidates are true."""
    lists = scores["labels"].combine_chunks()
    labels, offsets = lists.flatten().to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
    return np.add.reduceat(labels.astype(int), offsets[:-1] - offsets[0])


def _metrics_of(scores: pa.Table) -> dict[str, Any]:
    logits, labels = values_of(scores, "logits"), values_of(scores, "labels")
    labelled = {"clusters": scores["cluster"].to_pylist()}
    if scores["set"].null_count == 0:
        labelled["sets"] = scores["set"].to_pylist()
    figures = compute_metrics(logits, labels, groups=scores["category"].to_pylist(), **labelled)
    directions = scores["direction"].to_pylist()
    if len(set(directions)) > 1:
        of_direction = compute_metrics(logits, labels, groups=directions, **labelled)
        figures["directions"] = of_direction["groups"]
    return figures


def _at(name: str | None, revision: str | None) -> str:
    name = public_name(name) or ""
    return f"{name}@{revision[:8]}" if revision else name


def _short_hash(asked: dict[str, Any] | None) -> str | None:
    """Name what a generative model is asked, template and answers with it."""
    content = json.dumps(asked, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:8] if asked else None


def _int32(offsets: np.ndarray) -> pa.Array:
    return pa.array(offsets, pa.int32())


def _described_rows(source: Source, columns: Columns, comparisons: Comparisons) -> pa.Table:
    """All columns of a result but the logits; checks what the dataset's card states."""
    _, first = np.unique(comparisons.rows, return_index=True)
    # Of the first picture of each row: what a row is known by where no column tells.
    pictures = comparisons.pairs[comparisons.offsets[first], 0]
    digests = [comparisons.pictures.file_digests[place] for place in pictures]
    about: dict[str, list] = {}
    start = 0
    for split, rows in source.splits.items():
        of_split = digests[start : start + len(rows)]
        is_anchor = columns.image_columns == ["image"]
        stated = source.content_sha256.get(split)
        check_content(split, rows, of_split if is_anchor else None, stated)
        known = about_rows(rows, split, of_split, columns.category, columns.cluster)
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
        "set": described["id"] if columns.pairs else pa.nulls(len(ids), pa.string()),
        "direction": np.array(DIRECTIONS)[comparisons.directions],
        "images": _lists(comparisons, comparisons.image_digests, 0),
        "captions": _lists(comparisons, comparisons.captions, 1),
        "labels": pa.ListArray.from_arrays(
            _int32(comparisons.offsets), pa.array(comparisons.labels)
        ),
    }
    return pa.table({name: table[name] for name in _DESCRIBED.names}, schema=_DESCRIBED)


def _lists(comparisons: Comparisons, values: Sequence[str], side: int) -> pa.ListArray:
    """What stands on one side of each comparison: the anchor alone, or all candidates."""
    lengths = np.diff(comparisons.offsets)
    is_anchor = comparisons.directions == side
    kept = np.ones(len(comparisons.pairs), bool)
    kept[np.repeat(is_anchor, lengths)] = False
    kept[comparisons.offsets[:-1]] = True
    offsets = np.concatenate([[0], np.cumsum(np.where(is_anchor, 1, lengths))])
    places = comparisons.pairs[kept, side]
    return pa.ListArray.from_arrays(
        _int32(offsets), pa.array(values, pa.string()).take(pa.array(places))
    )


def _signature(model: Any, scorer: Encoder | Matcher, benchmark: Benchmark) -> dict[str, Any]:
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
            **facts.pop("dataset"),
        },
        **facts,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
    }


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


def facts_of(scores: pa.Table) -> dict[str, Any]:
    """State what a signature says of the scored rows, so that a signature can be checked."""
    flawed = [bool(flaws) for flaws in scores["flaws"].to_pylist()]
    splits = scores["split"].to_pylist()

    def flat(lists: pa.ChunkedArray) -> pa.Array:
        return lists.combine_chunks().flatten()

    return {
        "dataset": {
            "content_sha256": _content_hash(scores),
            "splits": {
                split: {
                    "num_rows": splits.count(split),
                    "num_clean_rows": sum(
                        row == split and not flaw for row, flaw in zip(splits, flawed, strict=True)
                    ),
                }
                for split in dict.fromkeys(splits)
            },
        },
        "num_distinct_images": len(flat(scores["images"]).unique()),
        "num_distinct_captions": len(flat(scores["captions"]).unique()),
        "views": list(VIEWS),
        "tie_rule": "strict comparisons: a tie is wrong",
    }


def _content_hash(scores: pa.Table) -> str:
    """Hash all that the figures depend on, apart from the model: every column but the logits."""
    content = ContentHash()
    content.add_table(scores.select(_DESCRIBED.names))
    return content.hexdigest()
