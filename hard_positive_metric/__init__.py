"""The hard-positive metric: formulas as plain functions, and their `evaluate` module."""

from .hard_positive_metric import (
    FIGURES,
    OUTCOMES,
    Estimate,
    Figure,
    HardPositiveMetric,
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
