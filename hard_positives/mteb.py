"""Any benchmark of ours as a task of mteb: its encoders, our figures.

    mteb.evaluate(model, tasks=[composition_task("REPLACE")])

mteb's own tasks of this kind ask whether the first caption is the likeliest, and give ties to it.
Here a task returns original and augmented accuracy, brittleness, drop and ties of
`hard_positive_metric`, strict, with both means. It needs no registration.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification
from mteb.abstasks.task_metadata import TaskMetadata

from hard_positive_metric import FIGURES, compute_metrics
from hard_positives.names import public_name
from hard_positives.results.evaluation import Benchmark, open_benchmark
from hard_positives.results.result import facts_of
from hard_positives.suite.columns import Columns
from hard_positives.suite.loading import load_rows

_CITATION = """\
@inproceedings{kamath2024hard,
  title = {The Hard Positive Truth about Vision-Language Compositionality},
  author = {Kamath, Amita and Hsieh, Cheng-Yu and Chang, Kai-Wei and Krishna, Ranjay},
  booktitle = {European Conference on Computer Vision},
  year = {2024}
}"""


class CompositionTask(AbsTaskImageTextPairClassification):
    """A task over rows of one image and a fixed number of captions; see `composition_task`."""

    images_column_names = ("image",)
    rows: ClassVar[dict[str, Dataset]] = {}
    references: ClassVar[list[bool]] = []
    labels: ClassVar[dict[str, dict[str, list[str]]]] = {}

    def load_data(self, *_: Any, **__: Any) -> None:
        """Take the rows that were read and checked when the task was made."""
        self.dataset = DatasetDict(self.rows)
        self.data_loaded = True

    def _evaluate_subset(self, *arguments: Any, hf_split: str, **named: Any) -> Any:
        self._split = hf_split  # which mteb does not tell `_compute_metrics`
        return super()._evaluate_subset(*arguments, hf_split=hf_split, **named)

    def _compute_metrics(self, scores: list[torch.Tensor], *_: int) -> Any:
        logits = np.stack([row[0].float().cpu().numpy() for row in scores])
        references = np.tile(self.references, (len(logits), 1))
        metrics = compute_metrics(logits, references, **self.labels[self._split])
        macro = {f"macro_{name}": metrics["macro"][name] for name in FIGURES if name in metrics}
        figures = {name: metrics[name] for name in FIGURES if name in metrics}
        return {**figures, **macro, "num_examples": metrics["num_examples"]}


def composition_task(
    dataset: str | Path | Dataset | DatasetDict,
    *,
    columns: Columns | None = None,
    splits: Sequence[str] | None = None,
    name: str | None = None,
) -> CompositionTask:
    """Make a task for `mteb.evaluate` of a dataset of ours.

    Args:
        dataset: As for `hard_positives.evaluate`: a folder, a Hub id, a benchmark's name, or
            rows. Every row one image and as many captions as the others, the true ones first.
        columns: Likewise.
        splits: Likewise.
        name: What mteb calls the task; made of the dataset's name if left out.

    Returns:
        The task; its main score is the macro mean of augmented accuracy, or of original accuracy
        where there are no hard positives. All figures are fractions.

    Raises:
        ValueError: Rows of several shapes, of other directions, or with boxes to cut out; and what
            `evaluate` raises.

    Examples:
        >>> import mteb
        >>> task = composition_task("shapes", splits=["swap"])
        >>> task.metadata.name, task.metadata.main_score
        ('CompositionShapes', 'macro_augmented_accuracy')
    """
    benchmark = open_benchmark(dataset, columns, splits)
    references = _references(benchmark)
    main = "augmented_accuracy" if sum(references) > 1 else "original_accuracy"
    called = str(public_name(dataset) or "rows")
    title = name or "Composition" + "".join(part.capitalize() for part in called.split("/"))
    facts = facts_of(benchmark.described)["dataset"]
    rows, labels = _rows_and_labels(benchmark, splits, len(references))
    metadata = TaskMetadata(
        name=title,
        description="Are all true captions of an image above every false one?",
        reference="https://arxiv.org/abs/2409.17958",
        dataset={"path": called, "revision": facts["content_sha256"]},
        type="Compositionality",
        category="i2t",
        modalities=["text", "image"],
        eval_splits=list(rows),
        eval_langs=["eng-Latn"],
        main_score=f"macro_{main}",
        license="not specified",
        bibtex_citation=_CITATION,
    )
    about = {"metadata": metadata, "rows": rows, "references": references, "labels": labels}
    about["texts_column_names"] = tuple(f"text_{place}" for place in range(len(references)))
    return type(title, (CompositionTask,), about)()


def _references(benchmark: Benchmark) -> list[bool]:
    shapes = {tuple(labels) for labels in benchmark.described["labels"].to_pylist()}
    columns = benchmark.columns
    if len(shapes) > 1 or columns.pairs or columns.caption or columns.crop:
        raise ValueError(
            "Expected every row to be one whole image and as many true and false captions as the "
            f"others, got {len(shapes)} shapes of rows and the columns {columns}. Use "
            "hard_positives.evaluate, which takes all."
        )
    return list(shapes.pop())


def _rows_and_labels(
    benchmark: Benchmark, splits: Sequence[str] | None, number: int
) -> tuple[dict[str, Dataset], dict[str, dict[str, list[str]]]]:
    """The rows of each split as mteb reads them, and what the figures need beside the logits."""
    described = benchmark.described.to_pylist()
    rows, labels = {}, {}
    for split, of_split in load_rows(benchmark.name, splits).splits.items():
        about = [row for row in described if row["split"] == split]
        texts = {f"text_{at}": [row["captions"][at] for row in about] for at in range(number)}
        images = of_split.select_columns([benchmark.columns.image])
        images = images.rename_columns({benchmark.columns.image: "image"})
        for column, values in texts.items():
            images = images.add_column(column, values)
        rows[split] = images
        labels[split] = {
            "groups": [row["category"] for row in about],
            "clusters": [row["cluster"] for row in about],
        }
    return rows, labels
