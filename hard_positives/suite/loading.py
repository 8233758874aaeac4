"""A benchmark's name, or whatever else names data, in; rows by split out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset

from hard_positives.suite.benchmarks import BenchmarkFile, find_benchmark
from hard_positives.suite.rows import column_values
from hard_positives.suite.sources import Source, load_source


def load_rows(
    dataset: Any, splits: Sequence[str] | None = None, revision: str | None = None
) -> Source:
    """Load rows as `load_source` does, or those of a known benchmark as its file says."""
    known = find_benchmark(dataset)
    if known is None:
        return load_source(dataset, splits, revision)
    return load_benchmark(known, dataset, splits, revision)


def load_benchmark(
    benchmark: BenchmarkFile,
    dataset: str | Path,
    splits: Sequence[str] | None = None,
    revision: str | None = None,
) -> Source:
    """Load a benchmark's rows: by its name from the Hub, or from the folder where it was built.

    Raises:
        ValueError: An unknown split, it must be built first, or what `load_source` raises.
        OSError: The Hub does not have it, or not for you.
    """
    if Path(dataset).is_dir():
        return load_source(dataset, splits, revision)
    if benchmark.build:
        raise ValueError(
            f"Expected the rows of {benchmark.name} to be built first, got its name alone. "
            f"{benchmark.build}"
        )
    unknown = [split for split in splits or () if split not in benchmark.parts]
    if unknown:
        raise ValueError(f"Expected splits among {list(benchmark.parts)}, got {unknown}.")
    if revision is not None:
        raise ValueError(
            f"Expected dataset_revision to be left out for {benchmark.name}, got {revision!r}. The "
            "benchmark's file says which commits are taken; give the Hub id for others."
        )
    loaded = dict(_parts(benchmark, splits or list(benchmark.parts)))
    commits = {split: source.commit for split, source in loaded.items()}
    is_one = len(set(commits.values())) == 1
    return Source(
        {split: _named(next(iter(source.splits.values()))) for split, source in loaded.items()},
        next(iter(commits.values())) if is_one else None,
        commits={} if is_one else commits,
    )


def _named(rows: Dataset) -> Dataset:
    """Return the rows with class labels as their names, which may differ from part to part."""
    for column, feature in rows.features.items():
        if isinstance(feature, ClassLabel):
            names = [feature.names[value] for value in column_values(rows, column)]
            rows = rows.remove_columns(column).add_column(column, names)
    return rows


def _parts(benchmark: BenchmarkFile, splits: Sequence[str]) -> Iterator[tuple[str, Source]]:
    for split in splits:
        part = benchmark.parts[split]
        try:
            yield split, load_source(part.id, [part.split], part.revision, part.config)
        except OSError as error:
            raise type(error)(
                f"Expected {part.id} to be within reach for {benchmark.name}, got: {error} "
                f"{benchmark.gated}".rstrip()
            ) from error
