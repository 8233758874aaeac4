"""An evaluator for the Trainer of sentence-transformers: our figures on the way and in the card."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset, DatasetDict
from sentence_transformers.base.evaluation import BaseEvaluator

from hard_positive_metric import FIGURES
from hard_positives.machine import Options
from hard_positives.models.loading import load_model
from hard_positives.names import public_name
from hard_positives.results.evaluation import open_benchmark, score_benchmark
from hard_positives.suite.columns import Columns


class CompositionEvaluator(BaseEvaluator):
    """Scores a `SentenceTransformer` or `CrossEncoder` that takes images on a benchmark.

    The rows are read once, when the evaluator is made. Figures are fractions: of each split the
    mean over categories, and under their plain names the mean of the splits. The primary metric is
    augmented accuracy, or original accuracy where there are no hard positives.

    Args:
        dataset: As for `hard_positives.evaluate`.
        columns: Likewise.
        splits: Likewise.
        batch_size: Likewise.
        name: Stands before every metric; made of the dataset's name if left out.

    Raises:
        ValueError: What `evaluate` raises for a dataset.

    Examples:
        >>> evaluator = CompositionEvaluator("shapes", splits=["swap"])
        >>> evaluator.primary_metric
        'shapes_augmented_accuracy'
    """

    def __init__(
        self,
        dataset: str | Path | Dataset | DatasetDict,
        *,
        columns: Columns | None = None,
        splits: Sequence[str] | None = None,
        batch_size: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.benchmark = open_benchmark(dataset, columns, splits)
        self.options = Options(batch_size, None, cache=False, progress=False)
        self.name = name or str(public_name(dataset) or "rows").replace("/", "_")
        labels = self.benchmark.described["labels"].to_pylist()
        has_hard_positives = any(sum(of_row) > 1 for of_row in labels)
        figure = "augmented_accuracy" if has_hard_positives else "original_accuracy"
        self.primary_metric = f"{self.name}_{figure}"

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Score the model as it is; with `output_path` the whole result is saved there."""
        result = score_benchmark(None, load_model(model), self.benchmark, self.options)
        if output_path is not None:
            at = f"{self.name}_epoch_{epoch}_steps_{steps}".replace("-1", "end")
            result.save(Path(output_path, at))
        splits = result.metrics["as_published"]
        metrics = {
            f"{split}_{name}": figures["macro"][name]
            for split, figures in splits.items()
            for name in FIGURES
            if name in figures["macro"]
        }
        for name in FIGURES:
            found = [metrics[f"{split}_{name}"] for split in splits if f"{split}_{name}" in metrics]
            if found:
                metrics[name] = fmean(found)
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics
