"""A benchmark with hard negatives alone in, the same comparisons with hard positives out.

    comparisons --editor--> possible edits --checks--> one hard positive each --> a Parquet folder

A hard positive changes the words that the hard negative changed, where that is possible, so that a
model cannot tell the two by where the edit is. Only comparisons of an image with captions are
taken. What the words mean is checked as far as the lexicon knows it, and what the dataset says of
the same image; whether an edit reads well is for people to judge, so the column `checked` is null.
"""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetInfo, Features, Image, IterableDataset, List, Value
from datasets.iterable_dataset import ExamplesIterable

from hard_positives.bars import new_bar
from hard_positives.generation.language_model import LanguageModel
from hard_positives.generation.rules import Rules, known_relation
from hard_positives.generation.run import TASKS, Edit, Task, changed_words, flaw_of, words_of
from hard_positives.names import public_name
from hard_positives.suite.benchmarks import find_benchmark
from hard_positives.suite.columns import Columns
from hard_positives.suite.comparisons import Comparisons, read_comparisons
from hard_positives.suite.flaws import flaws_of
from hard_positives.suite.loading import load_rows
from hard_positives.suite.rows import about_rows, open_image, read_image_file
from hard_positives.suite.sources import check_content
from hard_positives_dataset import build_parquet
from hard_positives_dataset.builder import FEATURES
from hard_positives_dataset.folders import full_disk_explained, lock_for, put_in_place

if TYPE_CHECKING:
    from rich.table import Table

AUGMENTATION = "augmentation.json"
GIVEN = "given"
REPLACE, SWAP = TASKS[0], TASKS[2]


@dataclass(frozen=True)
class Wanted:
    """A caption that needs a hard positive, and what is known of its image.

    Attributes:
        caption: The true caption that the negatives were made from.
        negatives: Its hard negatives.
        true: All captions of the same image that the dataset calls true, by their words.
        false: All that it calls false.
    """

    caption: str
    negatives: Sequence[str]
    true: frozenset[tuple[str, ...]] = frozenset()
    false: frozenset[tuple[str, ...]] = frozenset()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What to try: a caption whose words were only reordered is reordered first."""
        words = sorted(words_of(self.caption))
        swapped = any(sorted(words_of(negative)) == words for negative in self.negatives)
        return (SWAP, REPLACE) if swapped else (REPLACE,)


# --- which edit -----------------------------------------------------------------------------------


def refusal(wanted: Wanted, edited: str, task: Task) -> str:
    """Why an edit cannot be the hard positive, or an empty string.

    Examples:
        >>> wanted = Wanted("a small dog", ["a big dog"])
        >>> refusal(wanted, "a little dog", REPLACE)
        ''
        >>> refusal(wanted, "a large dog", REPLACE)
        'contradicts_caption'
    """
    words = tuple(words_of(edited))
    negatives = {tuple(words_of(negative)) for negative in wanted.negatives}
    if words in negatives | wanted.false:
        return "equals_negative"
    if words in wanted.true:
        return "equals_true_caption"
    form = flaw_of(wanted.caption, edited, task)
    if form:
        return form
    if known_relation(wanted.caption, edited) == "contrast":
        return "contradicts_caption"
    if any(known_relation(negative, edited) == "synonym" for negative in wanted.negatives):
        return "means_negative"
    if task.kind == "replace" and any(
        _brings_in(wanted.caption, edited, negative) for negative in wanted.negatives
    ):
        return "words_of_negative"
    return ""


def on_same_words(wanted: Wanted, edited: str) -> bool:
    """Whether an edit changes a word that a hard negative changed.

    A negative that only adds words changes none, so that every edit is on other words.

    Examples:
        >>> wanted = Wanted("a small dog on a sofa", ["a big dog on a sofa"])
        >>> on_same_words(wanted, "a little dog on a sofa")
        True
        >>> on_same_words(wanted, "a small dog on a couch")
        False
    """
    ours = {place for places, _ in changes(wanted.caption, edited) for place in places}
    return any(
        ours.intersection(places)
        for negative in wanted.negatives
        for places, _ in changes(wanted.caption, negative)
    )


def changes(caption: str, edited: str) -> list[tuple[range, list[str]]]:
    """The places of the caption's words that an edit changed, and what it put there.

    Examples:
        >>> changes("a red car and a blue van", "a blue car and a red van")
        [(range(1, 2), ['blue']), (range(5, 6), ['red'])]
    """
    before, after = words_of(caption), words_of(edited)
    matched = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [
        (range(start, stop), after[new_start:new_stop])
        for kind, start, stop, new_start, new_stop in matched
        if kind != "equal"
    ]


def _brings_in(caption: str, edited: str, negative: str) -> bool:
    """Whether an edit puts a word of the negative where the negative put it."""
    kept = {"a", "an", *words_of(caption)}
    return any(
        set(places) & set(others) and set(new) & set(false) - kept
        for places, new in changes(caption, edited)
        for others, false in changes(caption, negative)
    )


def choose(edits: Sequence[Edit]) -> Edit:
    """Take one of several edits that are all right, preferred first."""
    return edits[0]


def hard_positives_of(
    wanted: Sequence[Wanted], editor: Rules | LanguageModel
) -> list[tuple[Edit, Task]]:
    """Find a hard positive for each caption, or why there is none.

    Returns:
        The i-th is for the i-th; an edit without caption has the reason.
    """
    found = [(Edit(reason="no_rule_applies"), REPLACE) for _ in wanted]
    for task in (SWAP, REPLACE):
        places = [
            at for at, one in enumerate(wanted) if task in one.tasks and not found[at][0].caption
        ]
        proposed = _proposals(editor, [wanted[at].caption for at in places], task)
        for at, edits in zip(places, proposed, strict=True):
            found[at] = _first_right(wanted[at], edits, task), task
    return found


def _proposals(
    editor: Rules | LanguageModel, captions: Sequence[str], task: Task
) -> list[list[Edit]]:
    if isinstance(editor, Rules):
        return [editor.candidates(caption, task) for caption in captions]
    return [[edit] for edit in editor.edit_batch(captions, task)] if captions else []


def _first_right(wanted: Wanted, edits: Sequence[Edit], task: Task) -> Edit:
    """Choose among the edits on the negative's words; if none is right, among the others."""
    reasons = []
    right: dict[bool, list[Edit]] = {True: [], False: []}
    for edit in edits:
        reason = edit.reason or refusal(wanted, edit.caption or "", task)
        if reason:
            reasons.append(reason)
        else:
            right[on_same_words(wanted, edit.caption or "")].append(edit)
    if right[True] or right[False]:
        return choose(right[True] or right[False])
    return Edit(reason=reasons[0] if reasons else "no_rule_applies")


# --- rows in --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Benchmark:
    """Comparisons of images with captions, and what is known of each; `about` has all N."""

    comparisons: Comparisons
    about: list[dict[str, Any]]
    with_images: bool
    with_sets: bool

    @property
    def taken(self) -> list[int]:
        """The comparisons of an image with captions, those of one image together."""
        order: dict[str, list[int]] = defaultdict(list)
        for at, direction in enumerate(self.comparisons.directions):
            if direction == 0:
                order[self.picture_of(at)].append(at)
        return [at for places in order.values() for at in places]

    def picture_of(self, comparison: int) -> str:
        """The digest of the file: boxes of one picture share what is true of it."""
        return self.comparisons.pictures.file_digests[self.comparisons.anchors[comparison]]

    def captions_of(self, comparison: int, label: bool) -> list[str]:
        start, stop = self.comparisons.offsets[comparison : comparison + 2]
        return [
            self.comparisons.captions[self.comparisons.candidates[at]]
            for at in range(start, stop)
            if self.comparisons.labels[at] == label
        ]


def _read(
    dataset: Any, columns: Columns | None, splits: Sequence[str] | None, revision: str | None
) -> _Benchmark:
    known, columns = find_benchmark(dataset), columns or Columns()
    if known is not None:
        if columns != Columns():
            raise ValueError(
                f"Expected columns to be left out for {dataset}, got others. The benchmark's file "
                "says what they are; give the Hub id or folder for others."
            )
        columns = known.read_columns
    if columns.text_only or columns.caption is not None:
        raise ValueError(
            "Expected comparisons of an image with captions, got captions with captions, or a "
            "caption with images. Name the columns of an image and of its captions."
        )
    source = load_rows(dataset, splits, revision)
    for split, rows in source.splits.items():
        check_content(split, rows, None, source.content_sha256.get(split))
    rows_of, columns = dict(source.splits), _present(columns, source.splits)
    with_images = all(set(columns.image_columns) <= set(r.column_names) for r in rows_of.values())
    if not with_images and not columns.pairs:
        rows_of = {split: _named_images(rows, split, columns) for split, rows in rows_of.items()}
    comparisons = read_comparisons(rows_of, columns)
    about = _about(rows_of, columns, comparisons)
    if not with_images:
        columns = replace(columns, crop=None)
    return _Benchmark(comparisons, about, with_images, bool(columns.pairs or columns.set))


def _present(columns: Columns, splits: Mapping[str, Dataset]) -> Columns:
    """Our columns without `hard_positive` where the rows have none yet."""
    if columns.positives != ("caption", "hard_positive"):
        return columns
    if any("hard_positive" in rows.column_names for rows in splits.values()):
        return columns
    return replace(columns, positives=("caption",))


def _named_images(rows: Dataset, split: str, columns: Columns) -> Dataset:
    """Rows of texts alone, with a stand-in for each picture that says which it is."""
    name = columns.cluster or "image_id"
    ids = rows[name] if name in rows.column_names else [f"{split}/{at}" for at in range(len(rows))]
    cells = [{"bytes": str(one).encode(), "path": None} for one in ids]
    pictures = Dataset.from_dict(
        {columns.image: cells}, features=Features({columns.image: Image(decode=False)})
    )
    return rows.add_column(columns.image, pictures[columns.image]).cast_column(
        columns.image, Image(decode=False)
    )


def _about(
    splits: Mapping[str, Dataset], columns: Columns, comparisons: Comparisons
) -> list[dict[str, Any]]:
    """What is known of each comparison: that of its row, a name, and the box."""
    first = {int(row): at for at, row in reversed(list(enumerate(comparisons.rows)))}
    pictures = comparisons.pictures
    digests = [
        pictures.file_digests[comparisons.pairs[comparisons.offsets[first[row]], 0]]
        for row in range(len(first))
    ]
    rows: list[dict[str, Any]] = []
    for split, of_split in splits.items():
        part = digests[len(rows) : len(rows) + len(of_split)]
        known = about_rows(of_split, split, part, columns.category, columns.cluster, columns.set)
        marked = {"split": [split] * len(of_split), **known}
        rows += [
            dict(zip(marked, values, strict=True)) for values in zip(*marked.values(), strict=True)
        ]
    found = None
    if not any("flaws" in of_split.column_names for of_split in splits.values()):
        found = flaws_of(comparisons)
    about = []
    for at, (row, name) in enumerate(zip(comparisons.rows, comparisons.names, strict=True)):
        one = dict(rows[row])
        one["set"] = one["id"] if columns.pairs else one["set"]
        one["id"] = f"{one['id']}/{name}" if name else one["id"]
        one["flaws"] = one["flaws"] if found is None else found[at]
        about.append(one)
    return about


# --- a run ----------------------------------------------------------------------------------------


def augment(
    dataset: str | Path | Dataset,
    output_dir: str | os.PathLike,
    editor: Rules | LanguageModel | None = None,
    *,
    columns: Columns | None = None,
    splits: Sequence[str] | None = None,
    dataset_revision: str | None = None,
    progress: bool = True,
) -> Path:
    """Give the comparisons of a benchmark hard positives: a dataset with the columns of ours.

    Each hard positive changes the words that the hard negative changed where one can be made there,
    else other words. An edit is refused if it equals a false or another true caption of the same
    image, if the lexicon knows it to contradict the caption or to mean what a negative says, or if
    it brings in the negative's words. Comparisons that get none are left out, and counted. Whether
    the edits are right is not known until people have looked at them.

    Args:
        dataset: As for `hard_positives.evaluate`: a benchmark's name, a folder, a Hub id, or rows.
            Without the column of images, the rows are texts alone; rows with the same `image_id`
            (or `columns.cluster`) are then of one image.
        output_dir: The folder to make, whole or not at all; must be absent or empty.
        editor: `Rules()` if left out, or `LanguageModel(...)`.
        columns: What the columns of the dataset are; left out, those of the benchmark.
        splits: Which splits; all if left out.
        dataset_revision: Branch, tag or commit of a Hub id.
        progress: Show bars.

    Returns:
        The folder, with `augmentation.json`: settings, and coverage by split and category. Beside
        our columns it has `hard_positive_source` (such as `rule: same words`, or `given`: it was
        there) and `checked` (null: nobody has looked). `hard_negative` is a list of texts where
        a comparison has several, and so is `hard_positive`.

    Raises:
        ValueError: No comparison of an image with captions, no hard positive at all, or what
            `evaluate` raises for a dataset.
        FileExistsError: The folder holds something, or another run is writing it.
        ConnectionError: The language model's server does not answer.

    Examples:
        >>> import tempfile
        >>> from datasets import Dataset, load_dataset
        >>> rows = Dataset.from_dict({"caption": ["a small dog"], "hard_negative": ["a big dog"]})
        >>> folder = augment(rows, Path(tempfile.mkdtemp()) / "more", progress=False)
        >>> for row in load_dataset(str(folder), split="rows"):
        ...     print(row["hard_positive"], "|", row["hard_positive_source"])
        a little dog | rule: same words
    """
    editor = Rules() if editor is None else editor
    output = Path(output_dir).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with lock_for(output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(
                f"Expected {output} to be absent or an empty folder, got something there. Remove "
                "it or choose another folder."
            )
        benchmark = _read(dataset, columns, splits, dataset_revision)
        editor.prepare()
        rows, record = _augmented(benchmark, editor, progress)
        record = {"source": public_name(dataset), "settings": editor.settings, **record}
        with full_disk_explained(output):
            _write(benchmark, rows, record, output, progress)
    return output


def _augmented(
    benchmark: _Benchmark, editor: Rules | LanguageModel, progress: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows that have a hard positive, and the coverage."""
    taken = benchmark.taken
    if not taken:
        raise ValueError(
            "Expected comparisons of an image with captions, got none. Augment another dataset."
        )
    edits = _edits(benchmark, taken, editor, progress)
    rows, counts = [], defaultdict(Counter)
    for at in taken:
        about, positives = benchmark.about[at], benchmark.captions_of(at, True)
        edit, source = (Edit(), GIVEN) if positives[1:] else edits[at]
        counts[about["split"], about["category"]][edit.reason or source] += 1
        if edit.caption:
            positives.append(edit.caption)
        if positives[1:]:
            rows.append(_row(benchmark, at, positives, source))
    record = {
        "coverage": [
            {"split": split, "category": category, "counts": dict(of)}
            for (split, category), of in counts.items()
        ]
    }
    if not rows:
        reasons = sum(counts.values(), Counter())
        named = ", ".join(f"{reason} {number:,} times" for reason, number in reasons.most_common())
        raise ValueError(
            f"Expected a hard positive for at least one of {len(taken):,} comparisons, got none: "
            f"{named}. Give captions with words that can be replaced or reordered."
        )
    return rows, record


def _edits(
    benchmark: _Benchmark, taken: Sequence[int], editor: Rules | LanguageModel, progress: bool
) -> dict[int, tuple[Edit, str]]:
    """A hard positive, and its source, for each comparison that has none."""
    said: dict[bool, dict[str, set]] = {True: defaultdict(set), False: defaultdict(set)}
    for label, captions in said.items():
        for at in taken:
            words = map(words_of, benchmark.captions_of(at, label))
            captions[benchmark.picture_of(at)].update(map(tuple, words))
    true, false = (
        {picture: frozenset(words) for picture, words in said[label].items()}
        for label in (True, False)
    )
    open_ = [at for at in taken if len(benchmark.captions_of(at, True)) == 1]
    edits: dict[int, tuple[Edit, str]] = {}
    size = min(editor.chunk_size, 500)
    with new_bar("captions", len(open_), shown=progress) as bar:
        for start in range(0, len(open_), size):
            chunk = open_[start : start + size]
            wanted = []
            for at in chunk:
                picture = benchmark.picture_of(at)
                [caption], negatives = (
                    benchmark.captions_of(at, True),
                    benchmark.captions_of(at, False),
                )
                wanted.append(Wanted(caption, negatives, true[picture], false[picture]))
            found = hard_positives_of(wanted, editor)
            for at, one, (edit, _) in zip(chunk, wanted, found, strict=True):
                edits[at] = edit, _source_of(editor, one, edit)
            bar.update(len(chunk))
    return edits


def _source_of(editor: Rules | LanguageModel, wanted: Wanted, edit: Edit) -> str:
    if not edit.caption:
        return ""
    words = "same words" if on_same_words(wanted, edit.caption) else "other words"
    if isinstance(editor, Rules):
        return f"rule: {words}"
    return f"model {editor.model}, prompt {editor.settings['prompts_sha256'][:8]}: {words}"


def _row(benchmark: _Benchmark, at: int, positives: Sequence[str], source: str) -> dict[str, Any]:
    about, comparisons = benchmark.about[at], benchmark.comparisons
    place = int(comparisons.anchors[at])
    [caption, *edited] = positives
    old, new = changed_words(words_of(caption), words_of(edited[0]))
    box = comparisons.pictures.boxes[place] if benchmark.with_images else None
    return {
        "split": about["split"],
        "picture": place,
        "id": about["id"],
        "caption": caption,
        "hard_positive": edited,
        "hard_negative": benchmark.captions_of(at, False),
        "category": about["category"],
        "substitution": f"{' '.join(old)} > {' '.join(new)}",
        "image_id": about["cluster"],
        "bbox": None if box is None else list(box),
        "flaws": about["flaws"],
        "set": about["set"],
        "hard_positive_source": source,
        "checked": None,
    }


# --- rows out -------------------------------------------------------------------------------------


def _write(
    benchmark: _Benchmark,
    rows: Sequence[dict[str, Any]],
    record: Mapping[str, Any],
    output: Path,
    progress: bool,
) -> None:
    """Make the folder beside its place and put it there whole."""
    unfinished = output.with_name(f".{output.name}.augmenting")
    shutil.rmtree(unfinished, ignore_errors=True)
    features = _features(benchmark, rows)
    info = DatasetInfo(description=_description(record), features=features)
    by_split: dict[str, list] = defaultdict(list)
    for row in rows:
        by_split[row["split"]].append(row)
    try:
        made = {
            split: IterableDataset(
                ExamplesIterable(
                    _examples, {"benchmark": benchmark, "rows": of, "features": features}
                ),
                info,
            )
            for split, of in by_split.items()
        }
        build_parquet(made, unfinished / "finished", progress=progress)
        (unfinished / "finished" / AUGMENTATION).write_text(json.dumps(record, indent=2), "utf-8")
        if output.exists():
            output.rmdir()  # empty: os.replace does not take folders on every system
        put_in_place(unfinished / "finished", output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _features(benchmark: _Benchmark, rows: Sequence[dict[str, Any]]) -> Features:
    features = {**FEATURES, "hard_positive_source": Value("string"), "checked": Value("bool")}
    for name in ("hard_positive", "hard_negative"):
        if any(len(row[name]) > 1 for row in rows):
            features[name] = List(Value("string"))
    if benchmark.with_sets:
        features["set"] = Value("string")
    if not benchmark.with_images:
        del features["image"]
    return Features(features)


def _examples(
    benchmark: _Benchmark, rows: Sequence[dict[str, Any]], features: Features
) -> Iterator[tuple[int, dict[str, Any]]]:
    previous, content = None, b""
    for number, row in enumerate(rows):
        example = {name: row[name] for name in features if name != "image"}
        for name in ("hard_positive", "hard_negative"):
            if not isinstance(features[name], List):
                [example[name]] = example[name]
        if benchmark.with_images:
            if row["picture"] != previous:
                previous, content = row["picture"], _file_of(benchmark.comparisons, row["picture"])
            example["image"] = {"bytes": content, "path": None}
        yield number, example


def _file_of(comparisons: Comparisons, place: int) -> bytes:
    """A picture's file as it is; a box that is cut out of it as PNG, which keeps every pixel."""
    pictures = comparisons.pictures
    if pictures.boxes[place] is None:
        column, row = pictures.places[place]
        return read_image_file(pictures.columns[column][row]["image"], row)
    buffer = BytesIO()
    open_image(comparisons, place).save(buffer, "PNG")
    return buffer.getvalue()


def _description(record: Mapping[str, Any]) -> str:
    lines = [
        f"| `{split}` | {category} | {total:,} | {got:.1%} | {same:.1%} | {why} |"
        for split, category, total, got, same, why in coverage_rows(record)
    ]
    return "\n".join(
        [
            f"The comparisons of {record['source'] or 'a dataset'} with hard positives that were "
            "added to them. Nobody has checked them where `checked` is null. Comparisons without "
            f"a hard positive are left out; `{AUGMENTATION}` has the settings and counts.",
            "",
            "| split | category | comparisons | with hard positive | on the negative's words | why "
            "not |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )


def coverage_rows(
    record: Mapping[str, Any],
) -> list[tuple[str, str, int, float, float, str]]:
    """Split, category, comparisons, share with a hard positive, on the same words, why not."""
    found = []
    for of in record["coverage"]:
        counts, total = Counter(of["counts"]), sum(of["counts"].values())
        got = Counter({name: n for name, n in counts.items() if name == GIVEN or ": " in name})
        same = sum(n for name, n in got.items() if name.endswith(": same words"))
        why = ", ".join(f"{name} {n:,}" for name, n in (counts - got).most_common())
        found.append((of["split"], of["category"], total, got.total() / total, same / total, why))
    return found


def coverage_table(record: Mapping[str, Any]) -> "Table":
    """The coverage for the terminal."""
    from rich.table import Table

    table = Table(title="Hard positives", box=None)
    for name in ("split", "category"):
        table.add_column(name)
    for name in ("comparisons", "with one", "same words"):
        table.add_column(name, justify="right")
    table.add_column("why not")
    for split, category, total, got, same, why in coverage_rows(record):
        table.add_row(split, category, f"{total:,}", f"{got:.1%}", f"{same:.1%}", why)
    return table
