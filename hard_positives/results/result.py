"""An EvaluationResult: every logit of a model on a dataset, and the numbers that follow from them.

Neither models nor data are loaded here, so that a saved result is read at once.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hard_positive_metric import compute_metrics
from hard_positives.names import public_name
from hard_positives.results.authors import AuthorsValue, authors_values
from hard_positives.results.files import (
    SCORES_SCHEMA,
    prepare_folder,
    read_result,
    write_result,
)
from hard_positives.suite.benchmarks import read_figures
from hard_positives.suite.coco import coco_pictures
from hard_positives_dataset.content import ContentHash

VIEWS = ("as_published", "clean")
NOT_COCO = "not_coco"  # the view of those who have image_data.json at hand
DESCRIBED = pa.schema([field for field in SCORES_SCHEMA if field.name != "logits"])


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
        coco: The values of `cluster` that are known to be COCO's pictures; see `with_image_data`.
    """

    scores: pa.Table
    signature: dict[str, Any]
    coco: frozenset[str] | None = None

    @property
    def logits(self) -> np.ndarray | pa.ListArray:
        """float32 (N, K); an Arrow array of lists where the numbers of candidates differ."""
        return values_of(self.scores, "logits")

    def parts(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yield view, split, and which rows of `scores` it has, for each that has any."""
        splits = np.array(self.scores["split"].to_pylist())
        flawed = np.array([bool(flaws) for flaws in self.scores["flaws"].to_pylist()])
        views = dict(zip(VIEWS, (np.ones_like(flawed), ~flawed), strict=True))
        if self.coco is not None:
            clusters = self.scores["cluster"].to_pylist()
            views[NOT_COCO] = np.array([cluster not in self.coco for cluster in clusters])
        for view, rows in views.items():
            for split in dict.fromkeys(splits.tolist()):
                if (rows & (splits == split)).any():
                    yield view, split, rows & (splits == split)

    @cached_property
    def metrics(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Figures by view and split, as `hard_positive_metric.compute_metrics` gives them.

        `metrics["clean"]["replace"]["groups"]["attribute"]["augmented_accuracy"]` is a fraction of
        the attribute rows without flaws; `["macro"]` is the mean over categories. Where a split
        compares in both directions, `["directions"]` has the figures of each. A view of a split
        that has no row is left out. `metrics["not_coco"]` is there after `with_image_data` alone.
        """
        metrics: dict[str, dict[str, dict[str, Any]]] = {view: {} for view in VIEWS}
        for view, split, rows in self.parts():
            of_view = metrics.setdefault(view, {})
            of_view[split] = _metrics_of(self.scores.filter(pa.array(rows)))
        return metrics

    def with_image_data(self, image_data: str | Path) -> "EvaluationResult":
        """Add a view, `not_coco`: the rows whose picture of Visual Genome is not COCO's, too.

        A model that was tuned on COCO's captions has seen the others. The rest of the result stays
        as it is, and so does its signature. `load` knows nothing of the view.

        Args:
            image_data: Visual Genome's `image_data.json`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is another file, or does not list the rows' pictures: REPLACE and SWAP
                know them by `image_id`, other datasets by the column of `cluster`.

        Examples:
            >>> result = EvaluationResult.load("results/negclip")  # doctest: +SKIP
            >>> result = result.with_image_data("image_data.json")  # doctest: +SKIP
            >>> result.metrics["not_coco"]["replace"]["augmented_accuracy"]  # doctest: +SKIP
            0.471
        """
        return with_image_data([self], image_data)[0]

    @cached_property
    def authors(self) -> list[AuthorsValue]:
        """The figures of a known benchmark as its authors count them, their headline first."""
        figures = read_figures(self.signature["dataset"].get("figures", []))
        return authors_values(self.scores, figures)

    @property
    def figures(self) -> dict[str, Any]:
        """All figures, for machines: `metrics`, and of a known benchmark `authors`."""
        authors = {"authors": [value.as_record() for value in self.authors]}
        return {"metrics": self.metrics, **(authors if self.authors else {})}

    @property
    def is_blind(self) -> bool:
        """Whether the model sees no picture: what text alone tells."""
        return "text_alone" in self.signature

    @property
    def signature_line(self) -> str:
        """The signature in one line, to paste beside a number."""
        return "|".join(f"{name}:{value}" for name, value in self.signature_parts.items())

    @property
    def signature_parts(self) -> dict[str, str]:
        """What the line says, by name."""
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
            "sees": "text alone" if self.is_blind else "",
            "compared": "text only" if dataset.get("columns", {}).get("text_only") else "",
            "ties": "wrong",
            "version": signature.get("versions", {}).get("hard-positives"),
        }
        return {name: value for name, value in parts.items() if value}

    def save(self, output_dir: str | Path) -> Path:
        """Write ``results.json`` and ``scores.parquet`` in the place of an earlier result.

        Whatever happens meanwhile (an error, a full disk, SIGKILL, another save), the folder holds
        a whole result, the earlier or the new one, and `load` reads it.

        Returns:
            The folder.

        Raises:
            FileExistsError: The folder holds files that are no result's.
            OSError: No room on the disk, or the folder cannot be written to.
        """
        folder = prepare_folder(output_dir)
        write_result(folder, self.signature, self.scores, self.figures)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "EvaluationResult":
        """Read a saved result, which is then as it was saved: both files carry a SHA-256.

        Raises:
            FileNotFoundError: The folder holds no complete result.
            ValueError: A file is damaged, edited, of an older version, or of another run.
        """
        result = cls(*read_result(Path(folder)))
        read_figures(result.signature["dataset"].get("figures", []))
        return result


def with_image_data(
    results: Sequence[EvaluationResult], image_data: str | Path
) -> list[EvaluationResult]:
    """Add the view `not_coco` to several results, of one reading of the file."""
    clusters = {one for result in results for one in result.scores["cluster"].to_pylist()}
    coco = coco_pictures(image_data, clusters)
    return [replace(result, coco=coco) for result in results]


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
    content.add_table(scores.select(DESCRIBED.names))
    return content.hexdigest()
