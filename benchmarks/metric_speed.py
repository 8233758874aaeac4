"""Time the metric against three lines of NumPy, and where lengths differ.

    python benchmarks/metric_speed.py                    # seconds on one core
    python benchmarks/metric_speed.py --triples 100000

The three lines give original accuracy, augmented accuracy and brittleness of float32 triples and
nothing else; `compute_metrics` gives, of the same array, all figures with counts, ties, errors and
intervals. The other comparisons have 1 to 5 positives and 1 to 8 negatives each, in 8 groups and
clusters of about 8. Every time is the best of the repeats. Exits with 1 where a million triples
take more than ten times the three lines.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from hard_positive_metric import compute_metrics

MOST = 10  # times the three lines


def three_lines(logits: np.ndarray) -> tuple[float, float, float]:
    """Original accuracy, augmented accuracy and brittleness of (N, 3) triples."""
    caption, hard_positive, hard_negative = logits.T
    low, high = np.minimum(caption, hard_positive), np.maximum(caption, hard_positive)
    between = (low < hard_negative) & (hard_negative < high)
    return np.mean(caption > hard_negative), np.mean(low > hard_negative), np.mean(between)


def seconds(compute: Callable[[], object], repeats: int) -> float:
    """Time the quickest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return min(times)


def random_lists(random: np.random.Generator, num_rows: int) -> tuple[pa.Array, pa.Array]:
    """Draw logits and labels of rows that differ in length, as Arrow's lists."""
    num_positives = random.integers(1, 6, num_rows)
    counts = np.stack([num_positives, random.integers(1, 9, num_rows)], axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=1))]).astype(np.int32)
    labels = np.repeat(np.tile([True, False], num_rows), counts.reshape(-1))
    logits = random.normal(size=len(labels)).astype(np.float32)
    return tuple(pa.ListArray.from_arrays(offsets, values) for values in (logits, labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triples", type=int, default=1_000_000)
    parser.add_argument("--comparisons", type=int, default=250_000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    random = np.random.default_rng(0)

    triples = random.normal(size=(options.triples, 3)).astype(np.float32)
    floor = seconds(lambda: three_lines(triples), options.repeats)
    print(f"{options.triples:,} triples")
    print(f"  three lines of NumPy               {floor:8.4f} s")
    labels = np.tile([1, 1, 0], (options.triples, 1))
    ratios = []
    for name, references in (("left out", None), ("given", labels)):
        ours = seconds(lambda: compute_metrics(triples, references), options.repeats)  # noqa: B023
        ratios.append(ours / floor)
        print(f"  compute_metrics, references {name:8}{ours:7.4f} s = {ratios[-1]:.1f} x")

    logits, labels = random_lists(random, options.comparisons)
    num_clusters = max(1, options.comparisons // 8)
    options_of_rows = {
        "groups": random.integers(0, 8, options.comparisons),
        "clusters": random.integers(0, num_clusters, options.comparisons),
    }
    print(f"{options.comparisons:,} comparisons of 2 to 13 candidates, clusters and groups")
    forms = {
        "Arrow lists": (logits, labels),
        "Python lists": (logits.to_pylist(), labels.to_pylist()),
    }
    for name, arguments in forms.items():
        took = seconds(lambda: compute_metrics(*arguments, **options_of_rows), 3)  # noqa: B023
        print(f"  compute_metrics, {name:18}{took:8.4f} s")
    sys.exit(ratios[0] > MOST)


if __name__ == "__main__":
    main()
