"""What a caller names as data in, rows by split out: folders, Hub ids, and what is loaded already.

    a folder, a Hub id, a Dataset, a DatasetDict, "shapes" --load_splits--> split -> rows

No model and no caption is known here; ``rows`` looks into what was loaded.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetBuilder, DatasetDict, load_dataset_builder

import hard_positives_dataset

EMBEDDED_DATASET = "shapes"


@dataclass(frozen=True)
class Source:
    """Rows by split, and where they came from.

    Attributes:
        splits: Split -> rows, in the order asked for.
        commit: The dataset's commit on the Hub; None elsewhere.
    """

    splits: dict[str, Dataset]
    commit: str | None = None


def load_splits(
    dataset: str | Path | Dataset | DatasetDict, splits: Sequence[str] | None = None
) -> dict[str, Dataset]:
    """Bring a dataset into the form split -> rows, keeping only ``splits`` where given."""
    return load_source(dataset, splits).splits


def load_source(
    dataset: str | Path | Dataset | DatasetDict,
    splits: Sequence[str] | None = None,
    revision: str | None = None,
) -> Source:
    """Load what a folder or Hub id stands for, or take what is loaded already.

    Args:
        dataset: As for :func:`hard_positives.evaluate`.
        splits: Which splits, in this order; all if left out.
        revision: Branch, tag or commit where ``dataset`` is a Hub id.
    """
    if dataset == EMBEDDED_DATASET:
        dataset = Path(hard_positives_dataset.__file__).parent
    on_the_hub = isinstance(dataset, (str, Path)) and not os.path.exists(dataset)
    if revision is not None and not on_the_hub:
        raise ValueError(
            f"Expected dataset_revision to be left out for data that is here, got {revision!r}. It "
            "chooses a commit of a dataset on the Hub."
        )
    if not isinstance(dataset, (str, Path)):
        return Source(_choose_splits(dataset, splits))
    # What load_dataset does; the builder alone knows the commit.
    builder = load_dataset_builder(str(dataset), revision=revision)
    if revision is not None:
        _check_revision(builder, str(dataset), revision)
    builder.download_and_prepare()
    return Source(
        _choose_splits(builder.as_dataset(), splits), builder.hash if on_the_hub else None
    )


def _check_revision(builder: DatasetBuilder, dataset: str, revision: str) -> None:
    # Offline, datasets takes the commit that it has cached last, whichever was asked for.
    from_cache = not str(builder.base_path).startswith("hf://")
    if from_cache and builder.hash != revision:
        raise ValueError(
            f"Expected {dataset} to have the revision {revision!r} within reach, got only the "
            f"cached commit {builder.hash}. Check the connection, or give that commit."
        )


def _choose_splits(
    dataset: Dataset | DatasetDict, splits: Sequence[str] | None
) -> dict[str, Dataset]:
    if isinstance(dataset, Dataset):
        dataset = {str(dataset.split or "rows"): dataset}
    if not isinstance(dataset, Mapping):
        raise TypeError(
            "Expected dataset to be a folder, a Hub id, a Dataset or a DatasetDict, got "
            f"{type(dataset).__name__}."
        )
    unknown = [split for split in splits or () if split not in dataset]
    if unknown:
        raise ValueError(f"Expected splits among {list(dataset)}, got {unknown}.")
    return {split: dataset[split] for split in splits or dataset}
