"""How often text alone tells the captions of a run from their edits, before and after a choice.

Nothing here knows of an editor or of a language model: likelihoods come in with the parts of a run.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hard_positive_metric import compute_metrics

ABOVE = {
    "original_accuracy": "the caption",
    "augmented_accuracy": "the caption and the hard positive",
}


class TextAlone:
    """How often text alone tells the captions of a run from their edits, before and after."""

    def __init__(self) -> None:
        self._of_kind: dict[str, list[np.ndarray]] = {"replace": [], "swap": []}
        self._clusters: dict[str, list[str]] = {"replace": [], "swap": []}

    def add(self, part: pa.Table, image_ids: Sequence[str | None]) -> None:
        """Take in the rows of a part that have a hard negative.

        Args:
            part: With `row`, and the likelihoods of edits as `plausible.Plausible` gives them.
            image_ids: The image of each row, or None: such rows are independent.
        """
        for kind, rows in self._of_kind.items():
            columns = [part[f"hard_{name}_{kind}_likelihoods"] for name in ("negative", "positive")]
            if columns[0].null_count == part.num_rows:
                continue
            of_rows = zip(
                part["row"].to_pylist(),
                image_ids,
                *(column.to_pylist() for column in columns),
                strict=True,
            )
            for row, image, negative, positive in of_rows:
                if negative is not None:
                    first, chosen = (positive or [np.nan] * 3)[1:]
                    rows.append(np.array([*negative, first, chosen], np.float32))
                    self._clusters[kind].append(f"row {row}" if image is None else image)

    def record(self) -> dict[str, Any]:
        """What `generation.json` says of it; nothing where no language model was asked."""
        return {"text_alone": self.figures()} if any(self._of_kind.values()) else {}

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return `before` and `after`, by kind: shares of rows with 95 % intervals.

        `original_accuracy`: the caption is likelier than the hard negative; of those rows that have
        a hard positive, `augmented_accuracy`: that is likelier, too. Text alone tells nothing where
        these are what chance gives, 1/2 and 1/3.
        """
        return {
            when: {
                kind: _figures_of(np.array(rows)[:, [0, 3 + at, 1 + at]], self._clusters[kind])
                for kind, rows in self._of_kind.items()
                if rows
            }
            for at, when in enumerate(("before", "after"))
        }


def _figures_of(logits: np.ndarray, clusters: list[str]) -> dict[str, Any]:
    """Compute the figures of rows of caption, hard positive (or NaN) and hard negative."""
    whole = np.isfinite(logits).all(1)
    pairs = compute_metrics(logits[:, [0, 2]], [[1, 0]] * len(logits), clusters=clusters)
    found = {"num_examples": len(logits), **_with_ends(pairs, "original_accuracy")}
    if whole.any():
        of_whole = [cluster for cluster, is_whole in zip(clusters, whole, strict=True) if is_whole]
        triples = compute_metrics(logits[whole], clusters=of_whole)
        found |= _with_ends(triples, "augmented_accuracy")
    return found


def _with_ends(figures: dict[str, Any], name: str) -> dict[str, Any]:
    return {name + end: figures[name + end] for end in ("", "_ci_low", "_ci_high")}


def describe(figures: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Say what text alone tells, before and after, a line for each kind and figure."""
    for kind, after in figures.get("after", {}).items():
        before, rows = figures["before"][kind], after["num_examples"]
        for name, above in ABOVE.items():
            if name in after:
                yield (
                    f"Text alone puts {above} above the hard negative in "
                    f"{_percent(before, name)} -> {_percent(after, name)} % of rows "
                    f"({kind}, {rows:,} rows)."
                )


def _percent(figures: dict[str, Any], name: str) -> str:
    low, high = figures[f"{name}_ci_low"], figures[f"{name}_ci_high"]
    half = "" if low is None else f" \u00b1{50 * (high - low):.1f}"
    return f"{100 * figures[name]:.1f}{half}"
