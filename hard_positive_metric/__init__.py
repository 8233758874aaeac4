"""The hard-positive metric: formulas as plain functions, and their `evaluate` module."""

from typing import TYPE_CHECKING, Any

from .hard_positive_metric import (
    FIGURES,
    OUTCOMES,
    Estimate,
    Figure,
    PairedEstimate,
    RowOutcomes,
    SetOutcomes,
    compute_metrics,
    paired_difference,
    row_outcomes,
    set_outcomes,
    share_of_rows,
    wilson_interval,
)

if TYPE_CHECKING:
    from .hard_positive_metric import HardPositiveMetric

__all__ = [
    "FIGURES",
    "OUTCOMES",
    "Estimate",
    "Figure",
    "HardPositiveMetric",
    "PairedEstimate",
    "RowOutcomes",
    "SetOutcomes",
    "compute_metrics",
    "paired_difference",
    "row_outcomes",
    "set_outcomes",
    "share_of_rows",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:  # the class alone needs `evaluate`, which takes seconds
    if name != "HardPositiveMetric":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import hard_positive_metric

    return hard_positive_metric.HardPositiveMetric
