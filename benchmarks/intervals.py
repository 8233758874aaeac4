"""Count how often the intervals hold the truth, and how often the test finds what is not there.

    python benchmarks/intervals.py                   # 2,000 runs a cell, some minutes on one core
    python benchmarks/intervals.py --runs 200 --largest 1000

Shares: the rows of a cluster count with a probability that is beta-distributed around p, so that
they have exactly the intraclass correlation. Pairs: two models of equal p whose latent scores
correlate by .5, both what rows of a cluster share and what they do not; so whatever the test finds
is wrong. The layouts of clusters stand in `LAYOUTS`, and REPLACE's own where the folder named by
HARD_POSITIVES_DATA holds the published annotations.

Effective clusters are 1 + the degrees of freedom of the clustered error if rows of a cluster agree
wholly: C for equal clusters, few where some hold most rows. Coverage is that of the runs that gave
an interval, "none" the share of those that gave none. Monte Carlo error at 2,000 runs: .005 at .95.
Exits with 1 where a cell with ten or more effective clusters covers less than .93 (.90 at 50 rows)
or a test errs in more than .065, by more than two Monte Carlo errors.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from scipy import stats

# What the public functions do after reading labels, which would take most of the time.
from hard_positive_metric.hard_positive_metric import (
    _counts,
    _expected_spread,
    _layout,
    _paired,
    _share,
)
from hard_positives_dataset.annotations import read_annotation_dir, read_triples

Random = np.random.Generator
SIZES = (50, 200, 1000, 5000, 20000)
CORRELATIONS = (0.0, 0.3, 0.5, 1.0)
COVERAGE, COVERAGE_OF_50, LEVEL, EFFECTIVE = 0.93, 0.90, 0.065, 10


@dataclass(frozen=True)
class Rows:
    """Clusters of rows, and groups where the figure is a mean of groups."""

    name: str
    clusters: np.ndarray
    groups: np.ndarray

    @property
    def num_clusters(self) -> int:
        """How many clusters."""
        return int(self.clusters.max()) + 1


def until(num_rows: int, draw: Callable[[], int]) -> np.ndarray:
    """Draw sizes of clusters until the rows are used up."""
    sizes = []
    while sum(sizes) < num_rows:
        sizes.append(min(draw(), num_rows - sum(sizes)))
    return np.array(sizes)


def pareto(num_rows: int, random: Random, tail: float) -> np.ndarray:
    return until(num_rows, lambda: min(int(random.random() ** (-1 / tail)), num_rows // 4))


LAYOUTS = {
    "1": lambda n, random: np.ones(n, dtype=int),
    "1-20": lambda n, random: until(n, lambda: int(random.integers(1, 21))),
    "20": lambda n, random: until(n, lambda: 20),
    "Pareto 1": lambda n, random: pareto(n, random, 1.0),
    "Pareto 1.5": lambda n, random: pareto(n, random, 1.5),
}


def layouts(largest: int, seed: int) -> Iterator[Rows]:
    for num_rows in (size for size in SIZES if size <= largest):
        for name, draw in LAYOUTS.items():
            sizes = draw(num_rows, np.random.default_rng(seed))
            clusters = np.repeat(np.arange(len(sizes)), sizes)
            yield Rows(f"{num_rows} {name}", clusters, np.zeros_like(clusters))
            if name == "1-20":
                groups = np.random.default_rng(seed).permuted(np.arange(num_rows) % 4 == 0)
                yield Rows(f"{num_rows} {name} macro", clusters, groups.astype(int))
                nested = (clusters % 4 == 0).astype(int)
                yield Rows(f"{num_rows} {name} macro, nested", clusters, nested)
    folder = Path(os.environ.get("HARD_POSITIVES_DATA", "")) / "replace"
    if "HARD_POSITIVES_DATA" in os.environ and folder.is_dir() and largest == max(SIZES):
        yield from replace_rows(folder)


def replace_rows(folder: Path) -> Iterator[Rows]:
    triples = read_triples(read_annotation_dir(folder, ["replace"]), "replace")
    images = np.unique([triple.image_id for triple in triples], return_inverse=True)[1]
    categories = np.unique([triple.category for triple in triples], return_inverse=True)
    yield Rows("REPLACE macro", images, categories[1])
    for place, category in enumerate(categories[0]):
        clusters = np.unique(images[categories[1] == place], return_inverse=True)[1]
        yield Rows(f"REPLACE {category}", clusters, np.zeros_like(clusters))


def draw_shares(rows: Rows, p: float, correlation: float, random: Random) -> np.ndarray:
    """Draw which rows count."""
    if correlation == 1:
        return (random.random(rows.num_clusters) < p)[rows.clusters]
    chances = np.full(rows.num_clusters, p)
    if correlation:
        strength = (1 - correlation) / correlation
        chances = random.beta(p * strength, (1 - p) * strength, rows.num_clusters)
    return random.random(len(rows.clusters)) < chances[rows.clusters]


def draw_pairs(rows: Rows, p: float, correlation: float, random: Random) -> np.ndarray:
    """Draw both models' rows, (2, N)."""
    common = latents(rows.num_clusters, random)[:, rows.clusters] * math.sqrt(correlation)
    if correlation < 1:
        common += latents(len(rows.clusters), random) * math.sqrt(1 - correlation)
    return common < NormalDist().inv_cdf(p)


def latents(number: int, random: Random) -> np.ndarray:
    """Two standard normal scores each that correlate by .5."""
    shared, *own = random.standard_normal((3, number), dtype=np.float32)
    return (shared + np.stack(own)) * math.sqrt(0.5)


def mcnemar(won: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """The exact test that takes rows as independent, for comparison."""
    return np.minimum(1, 2 * stats.binom.cdf(np.minimum(won, lost), won + lost, 0.5))


def coverage(rows: Rows, runs: int, seed: int) -> Iterator[tuple[str, list[float], bool]]:
    """By correlation: coverage, mean width and share without an interval for every p."""
    num_rows = len(rows.clusters)
    layout = _layout(num_rows, rows.groups, rows.clusters)
    effective = 1 + _expected_spread(layout, 1.0)[2]
    limit = COVERAGE_OF_50 if num_rows == 50 else COVERAGE
    for correlation in CORRELATIONS if layout.mean_size > 1 else CORRELATIONS[:1]:
        cells, is_low = [], False
        for p in (0.01, 0.5, 0.95, 0.99):
            random = np.random.default_rng([seed, num_rows, round(100 * p)])
            ends = []
            for _ in range(runs):
                values = draw_shares(rows, p, correlation, random)
                share = _share(_counts(values, layout), layout)
                if share.ci_low is not None:
                    ends.append((share.ci_low, share.ci_high))
            low, high = np.array(ends).reshape(-1, 2).T
            # Rounding: at 0 and 1 an end may be what the truth is.
            held = np.mean((low <= p + 1e-12) & (p - 1e-12 <= high)) if ends else math.nan
            cells += [held, np.mean(high - low) if ends else math.nan, 1 - len(ends) / runs]
            is_low |= effective >= EFFECTIVE and held + 2 * error_of(held, runs) < limit
        yield f"{correlation:.1f} {rows.num_clusters:8,} {effective:9.1f}", cells, bool(is_low)


def level(rows: Rows, runs: int, seed: int) -> Iterator[tuple[str, list[float], bool]]:
    """By correlation: how often the two tests find a difference, for every p."""
    num_rows = len(rows.clusters)
    layout = _layout(num_rows, rows.groups, rows.clusters)
    effective = 1 + _expected_spread(layout, 1.0)[2]
    for correlation in (0.0, 0.3, 1.0) if layout.mean_size > 1 else (0.0,):
        cells, is_high = [], False
        for p in (0.02, 0.5, 0.95):
            random = np.random.default_rng([seed, num_rows, round(100 * p)])
            found, counts = 0, []
            for _ in range(runs):
                first, second = draw_pairs(rows, p, correlation, random)
                paired = _paired(second.astype(float) - first, layout)
                found += paired.p_value is not None and paired.p_value < 0.05
                counts.append(((second & ~first).sum(), (first & ~second).sum()))
            careless = np.mean(mcnemar(*np.array(counts).T) < 0.05)
            cells += [found / runs, careless]
            is_high |= found / runs - 2 * error_of(LEVEL, runs) > LEVEL
        yield f"{correlation:.1f} {rows.num_clusters:8,} {effective:9.1f}", cells, bool(is_high)


def error_of(share: float, runs: int) -> float:
    return math.sqrt(share * (1 - share) / runs)


def print_table(title: str, heads: list[str], simulate: Callable, options) -> int:
    """Print a line for every layout and correlation; count those that miss."""
    print(f"{title}\n{'rows, clusters':24} ICC clusters effective  {'  '.join(heads)}")
    missed = 0
    for rows in layouts(options.largest, options.seed):
        for label, cells, is_missed in simulate(rows, options.runs, options.seed):
            width = len(cells) // len(heads)
            parts = [cells[start : start + width] for start in range(0, len(cells), width)]
            texts = (" ".join(f"{cell:5.3f}" for cell in part) for part in parts)
            mark = "  MISSED" if is_missed else ""
            print(f"{rows.name:24} {label}  {' | '.join(texts)}{mark}", flush=True)
            missed += is_missed
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--largest", type=int, default=max(SIZES), help="number of rows")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    start = time.perf_counter()
    heads = [f"p {p}: coverage, width, none" for p in (0.01, 0.5, 0.95, 0.99)]
    missed = print_table("Intervals of a share", heads, coverage, options)
    heads = [f"p {p}: level, McNemar's" for p in (0.02, 0.5, 0.95)]
    missed += print_table("\nThe paired test", heads, level, options)
    print(f"\n{missed} lines missed; {time.perf_counter() - start:.0f} s")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
