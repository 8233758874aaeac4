"""What a caller names as data in, rows by split out: folders, Hub ids, and what is loaded already.

    a folder, a Hub id, a Dataset, a DatasetDict, "shapes" --load_source--> split -> rows

Data that is loaded here may come from somebody else. So an image that is no part of a row but a
file that the row names must be a regular file inside the dataset's own folder, and what is damaged
ends in a sentence that names the folder. No model and no caption is known here; ``rows`` looks into
what was loaded.
"""

import glob
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetBuilder, DatasetDict, Image, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from huggingface_hub import constants, metadata_load, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

import hard_positives_dataset
from hard_positives.bars import bars_of_datasets_hidden
from hard_positives.names import EMBEDDED_DATASET
from hard_positives.suite.benchmarks import check_dataset_name
from hard_positives.suite.rows import regular_file
from hard_positives_dataset.content import content_of


@dataclass(frozen=True)
class Source:
    """Rows by split, and what is known of where they came from.

    Attributes:
        splits: Split -> rows, in the order asked for.
        commit: The dataset's commit on the Hub; None elsewhere, or where there are several.
        content_sha256: Split -> the hash of its rows that the dataset's card states, if any.
        commits: Split -> commit, where splits are of several datasets on the Hub.
    """

    splits: dict[str, Dataset]
    commit: str | None = None
    content_sha256: dict[str, str] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)


def load_splits(
    dataset: str | Path | Dataset | DatasetDict, splits: Sequence[str] | None = None
) -> dict[str, Dataset]:
    """Bring a dataset into the form split -> rows; `load_source` without the rest."""
    return load_source(dataset, splits).splits


def load_source(
    dataset: str | Path | Dataset | DatasetDict,
    splits: Sequence[str] | None = None,
    revision: str | None = None,
    config: str | None = None,
) -> Source:
    """Load what a folder or Hub id stands for, or take what is loaded already.

    Where rows name image files, these must be regular files: of a folder, inside it; of a Hub id,
    inside what was downloaded for it. Their paths in the rows returned are absolute. A ``Dataset``
    that the caller has made may name any regular file.

    Args:
        dataset: As for `hard_positives.evaluate`.
        splits: Which splits, in this order; all if left out.
        revision: Branch, tag or commit where ``dataset`` is a Hub id.
        config: Which of the configs that a folder or Hub id has.

    Raises:
        TypeError: ``dataset`` is of another kind.
        ValueError: An unknown split, a revision that cannot be had, damaged data, or image files
            outside the dataset's folder.
        OSError: No such folder or Hub id, or no room to read it.
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
    if on_the_hub:
        check_dataset_name(dataset)
    else:
        _check_folder_name(Path(dataset))
    bars = nullcontext() if on_the_hub else bars_of_datasets_hidden()
    with _explained(str(dataset)) as files, bars:
        # What load_dataset does; the builder alone knows the commit.
        builder = load_dataset_builder(str(dataset), config, revision=revision)
        if not on_the_hub:
            files += _local_files(builder)
            # The copy of a folder with a card would stay in use when its files have changed.
            config_id = f"{builder.config.name}-{_state_of(files)}"
            builder = load_dataset_builder(str(dataset), config, config_id=config_id)
        if revision is not None:
            _check_revision(builder, str(dataset), revision)
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    chosen = _choose_splits(loaded, splits)
    commit = builder.hash if on_the_hub else None
    folder = None if on_the_hub else Path(dataset)
    roots = _hub_roots(str(dataset)) if folder is None else _folder_roots(folder)
    return Source(
        {split: _with_files_inside(rows, folder, roots) for split, rows in chosen.items()},
        commit,
        _stated_content(_card_of(str(dataset), commit)),
    )


def check_content(
    split: str, rows: Dataset, image_digests: Sequence[str] | None, stated: str | None
) -> str:
    """Hash the content of a split, and raise where the dataset's card states another."""
    try:
        found = content_of(rows, image_digests)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected the rows of split {split!r} to hold UTF-8 text, got other bytes ({error}). "
            "The data is damaged: build or download it again."
        ) from error
    if stated not in (None, found):
        raise ValueError(
            f"Expected the rows of split {split!r} to be those that the dataset's card states "
            f"(content_sha256 {stated}), got others. The data is damaged or was edited: build or "
            "download it again."
        )
    return found


def _check_folder_name(folder: Path) -> None:
    if glob.has_magic(str(folder.resolve())):
        raise ValueError(
            f"Expected the dataset's folder to have no *, ? or [ in its path, got "
            f"{folder.resolve()}, which datasets takes for a pattern. Rename or move the folder."
        )


def _local_files(builder: DatasetBuilder) -> list[str]:
    of_split = (builder.config.data_files or {}).values()
    return [str(file) for files in of_split for file in files if os.path.exists(file)]


def _state_of(files: Sequence[str]) -> str:
    """Tell whether files are as they were, from all that changes when they do."""
    states = [(file, os.stat(file)) for file in files]
    return Hasher.hash(
        [(file, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for file, state in states]
    )


@contextmanager
def _explained(dataset: str) -> Iterator[list[str]]:
    """Turn what datasets raises for damaged data, or where it cannot write, into one sentence.

    Gives a list for the names of the data files, so that the damaged one can be named.
    """
    files: list[str] = []
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it prints the errors that it raises
    try:
        yield files
    except Exception as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, OSError) and cause.errno is not None and cause.filename is not None:
            raise type(cause)(
                f"Expected {dataset} to be readable, and its copy in {_datasets_cache()} to be "
                f"writable, got: {cause}. Make room there, or set HF_DATASETS_CACHE to another "
                "folder."
            ) from error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise type(cause)(
                f"Expected room in {_datasets_cache()} for a copy of {dataset}, got: "
                f"{cause.strerror}. Make room, or set HF_DATASETS_CACHE to another folder."
            ) from error
        if isinstance(error, FileNotFoundError) and os.path.isdir(dataset):
            raise FileNotFoundError(
                f"Expected {dataset} to hold data files, such as Parquet, got none that datasets "
                "reads. Give the folder that they lie in."
            ) from error
        known = (ValueError, TypeError, OSError, ImportError)
        if isinstance(error, known) and not isinstance(error, (pa.ArrowException, UnicodeError)):
            raise
        damaged = next((f"; {file} cannot be read" for file in files if not _is_whole(file)), "")
        why = " ".join(str(cause).split()).rstrip(".")
        raise ValueError(
            f"Expected {dataset} to be a whole dataset, got data that cannot be read: {why}"
            f"{damaged}. Build or download it again."
        ) from error
    finally:
        logger.setLevel(level)


def _datasets_cache() -> str:
    return str(datasets.config.HF_DATASETS_CACHE)


def _is_whole(file: str) -> bool:
    if not file.endswith(".parquet"):
        return True  # as far as can be said here
    try:
        with pq.ParquetFile(file) as opened:
            for _ in opened.iter_batches():
                pass
    except (OSError, ValueError):
        return False
    return True


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


# --- images that are files ---


def _folder_roots(folder: Path) -> list[str]:
    roots = [os.path.realpath(folder)]
    if folder.resolve().parent.name == "snapshots":  # of the Hub's cache: links to its blobs
        roots.append(os.path.realpath(folder.resolve().parents[1] / "blobs"))
    return roots


def _hub_roots(dataset: str) -> list[str]:
    repository = repo_folder_name(repo_id=dataset, repo_type="dataset")
    folders = [Path(constants.HF_HUB_CACHE) / repository]
    folders += [datasets.config.DOWNLOADED_DATASETS_PATH, datasets.config.EXTRACTED_DATASETS_PATH]
    return [os.path.realpath(folder) for folder in folders]


def _with_files_inside(rows: Dataset, folder: Path | None, roots: Sequence[str]) -> Dataset:
    """Return the rows with the paths of image files resolved, all of them inside ``roots``."""
    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = _with_column_inside(rows, name, folder, roots)
    return rows


def _with_column_inside(
    rows: Dataset, name: str, folder: Path | None, roots: Sequence[str]
) -> Dataset:
    chunks = rows.data.column(name).chunks  # not combined: together they may be over 2 GB
    paths = [path for chunk in chunks for path in _paths_of_files(chunk)]
    if not any(path is not None for path in paths):
        return rows
    resolved: dict[str | None, str | None] = {None: None}
    problems: dict[str | None, str] = {}
    for path in set(paths) - {None}:
        try:
            resolved[path] = _inside(path, folder, roots)
        except (OSError, ValueError) as error:
            problems[path] = str(error)
    wrong = [row for row, path in enumerate(paths) if path in problems]
    if wrong:
        path = paths[wrong[0]]
        raise ValueError(
            f"Expected the column {name!r} to name regular files inside the dataset's folder, got "
            f"{path!r} in row {wrong[0]}: {problems[path]} ({len(wrong)} such rows). Repair or "
            "remove these rows, or put the files there."
        )
    column = pa.chunked_array(
        [
            _with_paths(chunk, [resolved[path] for path in _paths_of_files(chunk)])
            for chunk in chunks
        ]
    )
    place = rows.data.column_names.index(name)
    table = rows.data.table.set_column(place, rows.data.table.schema.field(name), column)
    fingerprint = Hasher.hash([rows._fingerprint, name, sorted(set(resolved.values()) - {None})])
    return Dataset(table, info=rows.info, split=rows.split, fingerprint=fingerprint)


def _paths_of_files(cells: pa.StructArray) -> list[str | None]:
    """The path in each cell that has no bytes; None in the others."""
    content, path = cells.flatten()
    return pc.if_else(content.is_null(), path, None).to_pylist()


def _with_paths(cells: pa.StructArray, paths: list[str | None]) -> pa.StructArray:
    kinds = list(cells.type)
    return pa.StructArray.from_arrays(
        [cells.flatten()[0], pa.array(paths, kinds[1].type)], fields=kinds, mask=cells.is_null()
    )


def _inside(path: str, folder: Path | None, roots: Sequence[str]) -> str:
    """Follow all links of a path, before anything is opened."""
    if folder is None and not os.path.isabs(path):
        raise ValueError("it is no file that was downloaded with the dataset")
    found = os.path.realpath(path if folder is None else folder / path)
    if not any(os.path.commonpath([root, found]) == root for root in roots):
        raise ValueError("it leads out of the folder")
    regular_file(found)
    return found


# --- the dataset's card ---


def _card_of(dataset: str, commit: str | None) -> str | None:
    if commit is None:
        card = os.path.join(dataset, "README.md")
    else:  # datasets has fetched it
        card = try_to_load_from_cache(dataset, "README.md", repo_type="dataset", revision=commit)
    return card if isinstance(card, str) and os.path.isfile(card) else None


def _stated_content(card: str | None) -> dict[str, str]:
    ours: Any = (metadata_load(card) or {}).get("hard_positives") if card else None
    stated = ours.get("content_sha256") if isinstance(ours, Mapping) else None
    return dict(stated) if isinstance(stated, Mapping) else {}
