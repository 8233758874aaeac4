"""The hard-positive metric: formulas as plain functions, and their `evaluate` module."""

from .hard_positive_metric import (
    OUTCOMES,
    HardPositiveMetric,
    RowOutcomes,
    compute_metrics,
    row_outcomes,
    wilson_interval,
)

__all__ = [
    "OUTCOMES",
    "HardPositiveMetric",
    "RowOutcomes",
    "compute_metrics",
    "row_outcomes",
    "wilson_interval",
]
