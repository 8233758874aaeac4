"""A model and a dataset in, an EvaluationResult out: logits, metrics, and how they came about.

    dataset --score--> logits --compute_metrics--> numbers, beside the signature that repeats them

Nothing here prints; ``report`` renders a result.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import PreTrainedModel, ProcessorMixin

from hard_positive_metric import compute_metrics
from hard_positives.models.encoders import ImageTextModel, Options
from hard_positives.names import public_name
from hard_positives.results.files import (
    SCORES_SCHEMA,
    prepare_folder,
    read_result,
    write_result,
)
from hard_positives.scoring.score import load_model, score_rows
from hard_positives.suite.rows import (
    CAPTION_COLUMNS,
    RowIndex,
    about_rows,
    check_columns,
    index_rows,
)
from hard_positives.suite.sources import Source, check_content, load_source
from hard_positives_dataset.content import ContentHash

VIEWS = ("as_published", "clean")
_DESCRIBED = pa.schema([field for field in SCORES_SCHEMA if field.name != "logits"])
PACKAGES = ("hard-positives", "datasets", "numpy", "pillow", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class EvaluationResult:
    """Every row's logits and the signature of the run; all numbers are recomputed from these.

    Attributes:
        scores: One row for each row of the dataset, in its order: ``id``, ``split``, ``category``,
            ``substitution``, ``image_id``, ``flaws``; what was scored, ``caption``,
            ``hard_positive``, ``hard_negative`` and ``image_sha256`` (of the image's bytes, in
            hexadecimal); and ``logits`` (float32, one for each of the three captions).
        signature: What the numbers depend on: model, processor, dtype, dataset, rows, versions.
    """

    scores: pa.Table
    signature: dict[str, Any]

    @cached_property
    def logits(self) -> np.ndarray:
        """float32 (N, 3)."""
        return np.stack(self.scores["logits"].to_numpy()) if len(self.scores) else np.empty((0, 3))

    @cached_property
    def metrics(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Figures by view and split, as ``hard_positive_metric.compute_metrics`` gives them.

        ``metrics["clean"]["replace"]["groups"]["attribute"]["augmented_accuracy"]`` is a fraction
        of the attribute rows without flaws; ``["macro"]`` is the mean over categories. A view of a
        split that has no row is left out.
        """
        splits = np.array(self.scores["split"].to_pylist())
        flawed = np.array([bool(flaws) for flaws in self.scores["flaws"].to_pylist()])
        views = {"as_published": np.ones_like(flawed), "clean": ~flawed}
        return {
            view: {
                split: self._metrics_of(rows & (splits == split))
                for split in dict.fromkeys(splits.tolist())
                if (rows & (splits == split)).any()
            }
            for view, rows in views.items()
        }

    def _metrics_of(self, rows: np.ndarray) -> dict[str, Any]:
        table = self.scores.filter(pa.array(rows))
        return compute_metrics(
            self.logits[rows],
            groups=table["category"].to_pylist(),
            clusters=table["image_id"].to_pylist(),
        )

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
    splits: Sequence[str] | None = None,
    processor: ProcessorMixin | None = None,
    revision: str | None = None,
    dataset_revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    preprocessing: str = "transformers",
    batch_size: int | None = None,
    num_workers: int | None = None,
    cache: bool = True,
    progress: bool = True,
) -> EvaluationResult:
    """Score a model on a dataset of triples and keep all that the numbers depend on.

    Args:
        model: As for :func:`hard_positives.score`, like all arguments not named here.
        dataset: What ``datasets.load_dataset`` takes (a folder from ``hard-positives build``, a Hub
            id), or what it returns, or ``"shapes"`` (the bundled world). Needed are ``image``,
            ``caption``, ``hard_positive`` and ``hard_negative``. Without ``id``, rows are numbered;
            without ``category``, a split is one; without ``image_id``, rows of the same picture
            count as dependent; without ``flaws``, none has any. Numbers in these become text, class
            labels their names. Images may be files that the rows name: inside the folder, for a
            folder; any regular files, for a ``Dataset`` that you made.
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
    source = load_source(dataset, splits, dataset_revision)
    # What is wrong with the rows shows before a model is loaded.
    for rows in source.splits.values():
        check_columns(rows)
    columns = ["image", *CAPTION_COLUMNS]
    index = index_rows(
        concatenate_datasets([rows.select_columns(columns) for rows in source.splits.values()])
    )
    described = _described_rows(source, index)
    scorer = load_model(
        model,
        processor=processor,
        revision=revision,
        device=device,
        dtype=dtype,
        preprocessing=preprocessing,
    )
    logits = score_rows(scorer, index, options)
    scores = described.append_column(SCORES_SCHEMA.field("logits"), [list(logits)])
    signature = _signature(model, dataset, source.commit, scorer, scores)
    return EvaluationResult(scores, signature)


def _described_rows(source: Source, index: RowIndex) -> pa.Table:
    """All columns of a result but the logits; checks what the dataset's card states."""
    digests = np.array(index.image_digests)[index.image_of_row]
    captions = np.array(index.captions, dtype=object)[index.captions_of_row]
    tables, start = [], 0
    for split, rows in source.splits.items():
        of_split = slice(start, start + len(rows))
        check_content(split, rows, digests[of_split].tolist(), source.content_sha256.get(split))
        columns = {
            **about_rows(rows, split, digests[of_split]),
            "split": [split] * len(rows),
            **dict(zip(CAPTION_COLUMNS, captions[of_split].T, strict=True)),
            "image_sha256": digests[of_split],
        }
        tables.append(pa.table(columns, schema=_DESCRIBED))
        start += len(rows)
    return pa.concat_tables(tables)


def _signature(
    model: Any,
    dataset: Any,
    dataset_commit: str | None,
    scorer: ImageTextModel,
    scores: pa.Table,
) -> dict[str, Any]:
    facts = facts_of(scores)
    described = scorer.describe()
    name = public_name(model) or public_name(described["model"]["id"])
    return {
        **described,
        "model": {**described["model"], "id": name},
        "dataset": {
            "id": public_name(dataset),
            "revision": dataset_commit,
            **facts.pop("dataset"),
        },
        **facts,
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
    }


def facts_of(scores: pa.Table) -> dict[str, Any]:
    """State what a signature says of the scored rows, so that a signature can be checked."""
    flawed = [bool(flaws) for flaws in scores["flaws"].to_pylist()]
    splits = scores["split"].to_pylist()
    captions = pa.chunked_array([c for name in CAPTION_COLUMNS for c in scores[name].chunks])
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
        "num_distinct_images": len(scores["image_sha256"].unique()),
        "num_distinct_captions": len(captions.unique()),
        "views": list(VIEWS),
        "tie_rule": "strict comparisons: a tie is wrong",
    }


def _content_hash(scores: pa.Table) -> str:
    """Hash all that the figures depend on, apart from the model: every column but the logits."""
    content = ContentHash()
    content.add_table(scores.drop_columns("logits"))
    return content.hexdigest()
