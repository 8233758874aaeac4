"""The dataset builder: `HardPositives`, a class for datasets 4 and later, a script for datasets 3.

It wires published annotations and images to the `datasets` library and holds what the library wants
to know: columns, splits, downloads, and an identity for its cache. The checks and rules stand in
`annotations.py`, the pixels in `images.py`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

# datasets 3 takes along only the files that this one imports, not what those import in turn.
from .annotations import (
    MAX_FILE_BYTES,
    PUBLISHED_COMMIT,
    PUBLISHED_FOLDERS,
    PUBLISHED_PAIRS,
    PUBLISHED_REPOSITORY,
    SPLITS,
    PublishedPair,
    Triple,
    git_blob_id,
    read_annotation_dir,
    read_triples,
)
from .flaws import count_doubts
from .folders import read_regular_file
from .images import (
    ImageFile,
    ImageStore,
    UnreadableImagesError,
    describe_source,
    locate_images,
    read_images,
)
from .shapes import SPLIT_CATEGORIES, SPLIT_SIZES, generate_rows

ANNOTATION_URL = (
    "https://raw.githubusercontent.com/amitakamath/hard_positives/"
    + PUBLISHED_COMMIT
    + "/{folder}/{file_name}"
)
IMAGE_URLS = (
    "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
    "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
)

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "caption": datasets.Value("string"),
        "hard_positive": datasets.Value("string"),
        "hard_negative": datasets.Value("string"),
        "category": datasets.Value("string"),
        "substitution": datasets.Value("string"),
        "image_id": datasets.Value("string"),
        "bbox": datasets.Sequence(datasets.Value("int32")),
        "flaws": datasets.Sequence(datasets.Value("string")),
    }
)

DESCRIPTION = """\
Images with three captions each: the original caption, a hard positive (a small edit that keeps the
meaning) and a hard negative (a small edit that changes it). A model that understands composition
prefers both positives to the negative. Split `replace` replaces one attribute or relation and shows
the whole image; split `swap` swaps attributes between two objects and shows the crop around them.
Captions are byte for byte as published; the column `flaws` marks rows that no model can get right
or that should not count."""
_DOUBTFUL = "Doubtful rows are not marked. Among those"

LICENSE = f"""\
The images are Visual Genome's, under CC BY 4.0. The captions were published without a licence file
at {PUBLISHED_REPOSITORY}."""

CITATION = """\
@inproceedings{kamath2024hard,
  title     = {The Hard Positive Truth about Vision-Language Compositionality},
  author    = {Kamath, Amita and Hsieh, Cheng-Yu and Chang, Kai-Wei and Krishna, Ranjay},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2024}
}

@article{krishna2017visual,
  title   = {Visual Genome: Connecting Language and Vision Using Crowdsourced Dense Image
             Annotations},
  author  = {Krishna, Ranjay and Zhu, Yuke and Groth, Oliver and Johnson, Justin and Hata, Kenji and
             Kravitz, Joshua and Chen, Stephanie and Kalantidis, Yannis and Li, Li-Jia and
             Shamma, David A. and Bernstein, Michael S. and Fei-Fei, Li},
  journal = {International Journal of Computer Vision},
  year    = {2017}
}"""


SHAPES_DESCRIPTION = """\
A small rendered world with the columns of the Hard Positives benchmark: pictures of coloured
shapes, each with a caption, a hard positive (a synonym, or another order, with the same meaning)
and a hard negative (a small edit that makes it false). Made by rule from a seed, and every caption
checked against its scene. It shows that tools work, at once and without a download; it says nothing
about a real model."""


@dataclass
class HardPositivesConfig(datasets.BuilderConfig):
    """What `HardPositives` builds, and from which files.

    Attributes:
        annotation_dir: folder with `original/` and `hard_positive/`, or the published repository
            with its `data/` and `swapped_data/`. None downloads the published files and checks
            them.
        images: folders and zip files with Visual Genome images. None downloads its two zips, about
            15 GB.
        splits: `replace`, `swap` or both.
        partial: leave out rows without an image in the place of stopping. The description says how
            many: figures on the rest are not of the published benchmark.
    """

    annotation_dir: str | os.PathLike | None = None
    images: Sequence[str | os.PathLike] | None = None
    splits: Sequence[str] = SPLITS
    partial: bool = False

    def create_config_id(
        self, config_kwargs: dict, custom_features: datasets.Features | None = None
    ) -> str:
        """Name this configuration in the cache by everything that can change its rows.

        The library would take the arguments as they are spelled, and serve stale rows after a file
        has changed under the same name.
        """
        self._check()
        identity = hashlib.sha256(repr((self.splits, self.partial, custom_features)).encode())
        _hash_sources(identity, "annotations.py", "builder.py", "flaws.py", "images.py")
        for contents in self.read_annotations().values():
            identity.update("".join(map(git_blob_id, contents)).encode())
        for source in self.images or ():
            identity.update(repr(list(describe_source(source))).encode())
        return f"{self.name}-{identity.hexdigest()[:16]}"

    def read_annotations(self) -> dict[PublishedPair, tuple[bytes, bytes]]:
        """The contents of the local annotation files; empty where they are to be downloaded."""
        if self.annotation_dir is None:
            return {}
        return read_annotation_dir(self.annotation_dir, tuple(self.splits))

    def _check(self) -> None:
        if isinstance(self.images, (str, os.PathLike)):
            raise TypeError(
                f"Expected images to be a list, got {self.images!r}. Write "
                f"images=[{str(self.images)!r}]."
            )
        _check_splits(self.splits, SPLITS)


@dataclass
class ShapesConfig(datasets.BuilderConfig):
    """Which part of the rendered world `HardPositives` makes.

    Attributes:
        splits: `replace`, `swap` (the two for evaluation) or `train`.
        num_rows: rows of each split. None takes 2,000 of `replace` and 1,000 of `swap`; `train` has
            no size of its own.
        seed: another seed is another world of the same kind.
        usual: share of colours, sizes and relations that are as usual for their shapes; the world
            of 0, as published, has no habits.
    """

    splits: Sequence[str] = tuple(SPLIT_SIZES)
    num_rows: int | None = None
    seed: int = 0
    usual: float = 0.0

    def create_config_id(
        self, config_kwargs: dict, custom_features: datasets.Features | None = None
    ) -> str:
        """Name this configuration in the cache by the code and the arguments that make its rows."""
        _check_splits(self.splits, tuple(SPLIT_CATEGORIES))
        if "train" in self.splits and self.num_rows is None:
            raise ValueError(
                "Expected num_rows for the split train, got None. Say how many rows to make."
            )
        arguments = self.splits, self.num_rows, self.seed, self.usual
        identity = hashlib.sha256(repr(arguments).encode())
        _hash_sources(identity, "builder.py", "shapes.py")
        return f"{self.name}-{identity.hexdigest()[:16]}"


def _check_splits(splits: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(splits, str):
        raise TypeError(f"Expected splits to be a list, got {splits!r}. Write splits=[{splits!r}].")
    unknown = [split for split in splits if split not in known]
    if unknown or not splits:
        raise ValueError(
            f"Expected splits to be out of {list(known)}, got {list(splits)}. Name one or more."
        )


def _hash_sources(identity: Any, *names: str) -> None:
    for name in names:
        with open(os.path.join(os.path.dirname(__file__), name), "rb") as source:
            identity.update(source.read())


@dataclass(frozen=True)
class _ShapesRows:
    split: str
    num_rows: int | None
    seed: int
    usual: float

    def __iter__(self) -> Iterator[dict]:
        return generate_rows(self.split, self.num_rows, seed=self.seed, usual=self.usual)


@dataclass(frozen=True)
class _PublishedRows:
    triples: tuple[Triple, ...]
    files: dict[str, ImageFile]
    sources: tuple[str, ...]

    def __iter__(self) -> Iterator[dict]:
        with ImageStore(self.sources) as store:
            for triple, content in read_images(self.triples, self.files, store):
                yield _row(triple, content)


class HardPositives(datasets.GeneratorBasedBuilder):
    """The Hard Positives benchmark as a `datasets` builder.

    Rows of one image stand together, in the order in which images first appear in the published
    files; the number in `id` gives the published order back. Every image file is found before one
    is read, and every image is decoded once to know that it is whole.

    As a class, with datasets 4 and later::

        builder = HardPositives(
            config_name="visual_genome",
            annotation_dir="published",
            images=["images.zip", "images2.zip"],
            splits=["replace"],
        )
        builder.download_and_prepare()
        rows = builder.as_dataset(split="replace")

    As a script, with datasets 3::

        load_dataset("hard_positives_dataset/builder.py", "visual_genome", trust_remote_code=True,
                     annotation_dir="published", images=["images.zip", "images2.zip"])

    The config `shapes` renders the small world that comes along, and needs no files::

        HardPositives(config_name="shapes", splits=["train"], num_rows=10_000)

    Args are those of `HardPositivesConfig` and `ShapesConfig`, beside the library's own
    (`cache_dir` and so on).
    `as_streaming_dataset` yields the same rows with nothing written; what has to be downloaded is
    downloaded whole, since single images out of a remote zip cost a request each.

    Raises:
        FileNotFoundError: annotation files, image sources or images are missing.
        ValueError: annotations or images are damaged; counts the rows and names the first few.

    Examples:
        >>> list(HardPositives.builder_configs)
        ['visual_genome', 'shapes']
    """

    BUILDER_CONFIG_CLASS = HardPositivesConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 - the name and kind that datasets asks for
        HardPositivesConfig(
            name="visual_genome",
            version=datasets.Version("1.0.0"),
            description="The published benchmark on Visual Genome images.",
        ),
        ShapesConfig(
            name="shapes",
            version=datasets.Version("1.0.0"),
            description="A small rendered world with the benchmark's columns.",
        ),
    ]

    def _info(self) -> datasets.DatasetInfo:
        if isinstance(self.config, ShapesConfig):
            return datasets.DatasetInfo(
                description=SHAPES_DESCRIPTION, features=FEATURES, license="Apache-2.0"
            )
        return datasets.DatasetInfo(
            description=f"{DESCRIPTION}\n\n{self._provenance()}",
            features=FEATURES,
            homepage=PUBLISHED_REPOSITORY,
            license=LICENSE,
            citation=CITATION,
        )

    def _provenance(self) -> str:
        changed = [
            f"{folder}/{pair.file_name}"
            for pair, contents in self.config.read_annotations().items()
            for folder, content, blob_id in zip(
                PUBLISHED_FOLDERS, contents, pair.blob_ids, strict=True
            )
            if git_blob_id(content) != blob_id
        ]
        if changed:
            names = ", ".join(changed)
            warnings.warn(
                f"Expected the annotations to be the published files of commit {PUBLISHED_COMMIT}, "
                f"got others: {names} (by their published names). Their rows are taken as they "
                "are; figures on them are not of the published benchmark. Download them again, "
                "unless you changed them on purpose.",
                stacklevel=2,
            )
            return f"Annotations: NOT the published files; these differ: {names}."
        return f"Annotations: the published files of commit {PUBLISHED_COMMIT}, checked."

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        rows: Mapping[str, _PublishedRows | _ShapesRows]
        if isinstance(self.config, ShapesConfig):
            config = self.config
            rows = {
                split: _ShapesRows(split, config.num_rows, config.seed, config.usual)
                for split in config.splits
            }
        else:
            rows = self._published_rows(dl_manager)
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"rows": part})
            for split, part in rows.items()
        ]

    def _published_rows(self, dl_manager: Any) -> dict[str, _PublishedRows]:
        if dl_manager.is_streaming:
            dl_manager = datasets.DownloadManager()
        contents = self.config.read_annotations() or self._download_annotations(dl_manager)
        rows = {split: read_triples(contents, split) for split in self.config.splits}
        images = self.config.images
        if images is None:
            images = dl_manager.download(list(IMAGE_URLS))
        if "replace" in rows:
            told = self.info.description.partition(_DOUBTFUL)[0].rstrip()
            self.info.description = f"{told}\n\n{_doubts(rows['replace'])}"
        with ImageStore(images) as store:
            files = {
                split: locate_images(triples, store, partial=self.config.partial)
                for split, triples in rows.items()
            }
        for split, triples in rows.items():
            rows[split] = [triple for triple in triples if triple.image_path in files[split]]
            if len(rows[split]) < len(triples):
                self._tell_partial(split, len(rows[split]), len(triples))
        self.info.splits = datasets.SplitDict(dataset_name=self.dataset_name)
        for split, triples in rows.items():  # Known before the rows are made: for progress bars.
            self.info.splits.add(datasets.SplitInfo(name=split, num_examples=len(triples)))
        return {
            split: _PublishedRows(tuple(triples), files[split], tuple(images))
            for split, triples in rows.items()
        }

    def _tell_partial(self, split: str, number: int, of_all: int) -> None:
        told = (
            f"{number:,} of {of_all:,} rows of `{split}`, those whose image was there: figures on "
            "them are not of the published benchmark."
        )
        warnings.warn(told, stacklevel=2)
        self.info.description = f"{self.info.description}\n\n{told}"

    def _download_annotations(self, dl_manager: Any) -> dict[PublishedPair, tuple[bytes, bytes]]:
        pairs = [pair for pair in PUBLISHED_PAIRS if pair.split in self.config.splits]
        downloaded = {}
        for pair in pairs:
            originals, positives = (
                _download_checked(dl_manager, folder, pair.file_name, blob_id)
                for folder, blob_id in zip(PUBLISHED_FOLDERS, pair.blob_ids, strict=True)
            )
            downloaded[pair] = originals, positives
        return downloaded

    def _generate_examples(self, rows: _PublishedRows | _ShapesRows) -> Iterator[tuple[str, dict]]:
        for row in rows:
            yield row["id"], row

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._download_and_prepare(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            # The library hides what went wrong behind "An error occurred".
            if isinstance(error.__cause__, UnreadableImagesError):
                raise error.__cause__ from None
            raise


def _doubts(triples: list[Triple]) -> str:
    found = [f"`{name}` {count:,}" for name, count in count_doubts(triples).items() if count]
    return f"{_DOUBTFUL} of `replace` without flaws, by rule: {', '.join(found) or 'none'}."


def _download_checked(dl_manager: Any, folder: str, file_name: str, blob_id: str) -> bytes:
    url = ANNOTATION_URL.format(folder=folder, file_name=file_name)
    content = read_regular_file(dl_manager.download(url), MAX_FILE_BYTES)
    if git_blob_id(content) != blob_id:
        raise ValueError(
            f"Expected {url} to have the git blob id {blob_id}, got {git_blob_id(content)}. "
            "Download it again (download_mode='force_redownload'), or pass annotation_dir=..."
        )
    return content


def _row(triple: Triple, content: bytes) -> dict:
    return {
        "id": triple.id,
        # No path: datasets would read a file of that name in the working directory instead.
        "image": {"bytes": content, "path": None},
        "caption": triple.caption,
        "hard_positive": triple.hard_positive,
        "hard_negative": triple.hard_negative,
        "category": triple.category,
        "substitution": triple.substitution,
        "image_id": triple.image_id,
        "bbox": triple.bbox and list(triple.bbox),
        "flaws": list(triple.flaws),
    }
