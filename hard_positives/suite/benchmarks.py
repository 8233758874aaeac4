"""Benchmarks as files: where their rows are, what the columns are, and how their authors count.

    NAME.yaml beside this file --find_benchmark--> BenchmarkFile --loading.load_benchmark--> rows

A file says no more than its keys here. What is wrong in one is told with file, line and key.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hard_positives.lookup import check_name
from hard_positives.names import EMBEDDED_DATASET
from hard_positives.suite.columns import DIRECTIONS, Columns

_NAME = re.compile(r"[a-z0-9][a-z0-9+-]*")
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Part:
    """A split of a benchmark: where its rows are on the Hub.

    Attributes:
        id: Of the dataset.
        split: Of the dataset.
        config: Of the dataset, if it has several.
        revision: Commit, where one is pinned.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    id: str
    split: str
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class AuthorsFigure:
    """How the authors of a benchmark count: one figure over all its splits.

    Attributes:
        title: What they call it.
        figure: `original_accuracy` (above every false one), `augmented_accuracy` (all true ones
            are), `first_pair` (the first true one is above the first false one), or
            `set_accuracy` (all comparisons of a set are augmented-correct).
        mean: `micro`, over rows or sets, or `macro`, the mean over categories.
        direction: Of the comparisons that count; all if left out.
        splits: Which count; all if left out.
        without: Categories that do not count.
        fewest_rows: Categories of fewer rows do not count.
        ties: `wrong`; or `first`, as argmax has it: of equal candidates the first counts as above.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    title: str
    figure: Literal["original_accuracy", "augmented_accuracy", "first_pair", "set_accuracy"]
    mean: Literal["micro", "macro"] = "micro"
    direction: Literal["image_to_text", "text_to_image", "text_to_text"] | None = None
    splits: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    fewest_rows: int = 1
    ties: Literal["wrong", "first"] = "wrong"


@dataclass(frozen=True)
class PublishedFigures:
    """What somebody reports of a model, in percent, by `AuthorsFigure.title`."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: str
    source: str
    values: dict[str, float]


@dataclass(frozen=True)
class BenchmarkFile:
    """A benchmark of composition.

    Attributes:
        title: As its authors write it.
        about: What it asks, in a sentence.
        paper: Address.
        licence: Of annotations and images, as far as known.
        rows: How many it has; None where not known.
        images: How many distinct images; None where not known.
        compared: True and false candidates of an anchor, such as `1 + 1` or `1 of 4`; or images x
            captions that are compared both ways, such as `2 x 2`.
        columns: As `Columns` takes them.
        parts: Split -> where it is on the Hub.
        hard_positives: Whether an image has several true captions, so that brittleness is defined.
        build: What to get by hand and from where, in the place of `parts`.
        gated: Whether its authors must be asked for access, and how.
        size: Of the download.
        figures: How the authors count; the first is their headline.
        published: What is reported.
        name: The name of the file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    title: str
    about: str
    paper: str
    licence: str
    compared: str
    columns: dict[str, Any]
    rows: int | None = None
    figures: list[AuthorsFigure] = field(default_factory=list)
    images: int | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    hard_positives: bool = False
    build: str = ""
    gated: str = ""
    size: str = ""
    published: list[PublishedFigures] = field(default_factory=list)
    name: str = ""

    def __post_init__(self) -> None:
        _ = self.read_columns  # refused here, not when it is used
        if self.name != EMBEDDED_DATASET and bool(self.parts) == bool(self.build):
            raise ValueError("Give either parts or build: where the rows are, or how to get them.")
        titles = [figure.title for figure in self.figures]
        if len(set(titles)) < len(titles):
            raise ValueError(f"Give each figure another title, not {titles}.")
        for found in self.published:
            unknown = set(found.values) - set(titles)
            if unknown:
                raise ValueError(f"Name published values as figures are, not {sorted(unknown)}.")

    @property
    def read_columns(self) -> Columns:
        """What the columns are."""
        known = {part.name for part in dataclasses.fields(Columns)}
        unknown = set(self.columns) - known
        if unknown:
            raise ValueError(f"Name columns among {sorted(known)}, not {sorted(unknown)}.")
        return Columns(**self.columns)

    @property
    def directions(self) -> list[str]:
        """Which way is compared."""
        columns = self.read_columns
        if columns.pairs:
            return list(DIRECTIONS[:2])
        return [DIRECTIONS[columns.caption is not None]]


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for place, key in enumerate(keys):
        if key in keys[:place]:
            mark = node.value[place][0].start_mark
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} again", problem_mark=mark)
    values = (loader.construct_object(value, deep=True) for _, value in node.value)
    return dict(zip(keys, values, strict=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_benchmark(path: str | Path) -> BenchmarkFile:
    """Read and check a benchmark's file.

    Raises:
        ValueError: It is no YAML, or has a key or a value that it cannot have; with file, line and
            key.
        OSError: It cannot be read.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        values, node = yaml.load(text, _Loader), yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(
            f"Expected {path}, line {line}, to be YAML with each key once, got {error.problem}. "
            "Repair the line."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"Expected {path}, line 1, to be the keys of a benchmark, got {type(values).__name__}. "
            "See CONTRIBUTING.md."
        )
    try:
        whole = json.dumps({**values, "name": path.stem}, default=str)
        found = TypeAdapter(BenchmarkFile).validate_json(whole)  # strict, as of Python it cannot be
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = [str(key) for key in first["loc"]]
        raise ValueError(
            f"Expected {path}, line {_line_of(node, keys)}, to have a valid "
            f"{'.'.join(keys) or 'benchmark'}, got: {first['msg'].removeprefix('Value error, ')}. "
            f"({error.error_count()} such problems.) See CONTRIBUTING.md."
        ) from error
    if not _NAME.fullmatch(found.name):
        raise ValueError(
            f"Expected {path} to be named by small letters, digits, + and -, got {found.name!r}. "
            "Rename it."
        )
    return found


def _line_of(node: yaml.Node, keys: Sequence[str]) -> int:
    """The line on which a key stands, or the nearest that is there."""
    line = node.start_mark.line
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            match = [(name, value) for name, value in node.value if name.value == key]
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            match = [(node.value[int(key)], node.value[int(key)])]
        else:
            match = []
        if not match:
            break
        line, node = match[0][0].start_mark.line, match[0][1]
    return line + 1


def known_benchmarks() -> dict[str, BenchmarkFile]:
    """All benchmarks that come along, by name."""
    return {name: read_benchmark(path) for name, path in sorted(_files().items())}


@cache
def _files() -> dict[str, Path]:
    return {path.stem: path for path in Path(__file__).parent.glob("*.yaml")}


def known_benchmark(name: Any) -> BenchmarkFile | None:
    """Return the benchmark of this name that comes along; None if there is none."""
    return _known(name) if isinstance(name, str) and name in _files() else None


@cache
def _known(name: str) -> BenchmarkFile:
    return read_benchmark(_files()[name])


def read_figures(values: Any) -> list[AuthorsFigure]:
    """Read how authors count from a saved signature.

    Raises:
        ValueError: They are of another version, or edited.
    """
    try:
        return TypeAdapter(list[AuthorsFigure]).validate_json(json.dumps(values))
    except ValidationError as error:
        raise ValueError(
            "Expected the figures in the signature to be ones of this version, got others "
            f"({error.errors(include_url=False)[0]['msg']}). Evaluate again."
        ) from error


def check_dataset_name(dataset: str | Path) -> None:
    """Raise unless a name is a folder's, a benchmark's, or one within reach on the Hub.

    Raises:
        FileNotFoundError: With what was looked for, and names that are near.
    """
    expected = "a folder, a Hub id or one of `hard-positives benchmarks`"
    check_name("dataset", str(dataset), expected, _files())


def find_benchmark(dataset: Any) -> BenchmarkFile | None:
    """Return the benchmark that a dataset names, is the file of, or was built from; or None.

    Raises:
        ValueError: A folder has the name of a benchmark, too; or what `read_benchmark` raises.
        OSError: No such file.
    """
    if not isinstance(dataset, (str, Path)) or dataset == EMBEDDED_DATASET:
        return None
    check_dataset_name(dataset)
    if Path(dataset).suffix == ".yaml":
        return read_benchmark(dataset)
    card = Path(dataset, "README.md")
    if card.is_file():
        from huggingface_hub import metadata_load  # takes long to import

        ours = (metadata_load(card) or {}).get("hard_positives")
        name = ours.get("benchmark") if isinstance(ours, Mapping) else None
        return known_benchmark(name) if isinstance(name, str) else None
    found = known_benchmark(str(dataset))
    if found is not None and Path(dataset).exists():
        raise ValueError(
            f"Expected {dataset} to be a benchmark or a folder, got both. Write ./{dataset} for "
            "the folder, or start elsewhere."
        )
    return found
