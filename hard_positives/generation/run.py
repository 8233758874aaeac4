"""Captions -> training rows: hard positives and hard negatives, by replacing and by swapping.

One small interface: an `Editor` takes captions and a `Task` and returns for each an
edited caption, or none and why. `rules.Rules` is one editor, `language_model.LanguageModel`
another. Here is what they share: the checks on what comes back, and a run that uses all cores or a
cluster, can be killed at any moment and goes on where it was.

    captions -> chunks -> editor -> parts on disk, each whole or absent -> a Parquet folder

This file knows no grammar and no server.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetInfo, Features, List, Value
from tqdm import tqdm

from hard_positives.bars import new_bar
from hard_positives.generation.captions import Captions, has_unfit_characters
from hard_positives.generation.text_alone import TextAlone
from hard_positives.names import public_name
from hard_positives.workers import worker_processes
from hard_positives_dataset import build_parquet
from hard_positives_dataset.builder import FEATURES
from hard_positives_dataset.content import ContentHash
from hard_positives_dataset.folders import (
    full_disk_explained,
    lock_for,
    put_in_place,
    write_whole,
)

ENGINES = ("datasets", "ray")
RECORD = "generation.json"
BATCH_SIZE = 1000  # captions that one process edits at a time


@dataclass(frozen=True)
class Task:
    """What to make: a `hard_positive` or `hard_negative`, by `replace` or `swap`."""

    column: str
    kind: str

    def __str__(self) -> str:
        return f"{self.column}_{self.kind}"


TASKS = tuple(
    Task(column, kind)
    for kind in ("replace", "swap")
    for column in ("hard_positive", "hard_negative")
)


@dataclass(frozen=True)
class Edit:
    """What came of one caption under one task.

    Attributes:
        caption: The edited caption, or None.
        category: What was changed: `attribute`, `relation`, `object` or `swap`.
        reason: Why there is no edited caption, in_this_form; empty where there is one.
        likelihoods: Where an editor asks a language model: log P of the caption, of the edit that
            would have been made without it, and of this one.
    """

    caption: str | None = None
    category: str = ""
    reason: str = ""
    likelihoods: tuple[float, float, float] | None = field(default=None, repr=False)


class Editor(Protocol):
    """What makes edits."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the output besides the captions; a run resumes only under the same."""

    @property
    def chunk_size(self) -> int:
        """Captions between two saves."""

    @property
    def workers(self) -> int:
        """Processes that a run uses where nothing else is asked for."""

    def prepare(self) -> None:
        """Load or reach what is needed; raise what is wrong with it before the work begins."""
        ...

    def edit_batch(self, captions: Sequence[str], task: Task) -> list[Edit]:
        """Edit each caption; the i-th result belongs to the i-th caption."""
        ...


# --- checks ---------------------------------------------------------------------------------------


def flaw_of(caption: str, edited: str, task: Task) -> str:
    """Why an edited caption cannot be used, or an empty string.

    What is checked is form, whoever made it: one line without control characters, another text, of
    about the length; a swap keeps all words but articles, a replacement changes one place of a few
    words. Meaning is not checked.

    Examples:
        >>> replace_, swap = TASKS[0], TASKS[2]
        >>> flaw_of("a red car", "a crimson car", replace_)
        ''
        >>> flaw_of("a cat and a dog", "a dog and the bird", swap)
        'other_words'
        >>> flaw_of("a red car", "A red car.", replace_)
        'unchanged'
    """
    before, after = words_of(caption), words_of(edited)
    if not after:
        return "empty"
    if len(edited.strip().splitlines()) > 1:
        return "several_lines"
    if has_unfit_characters(edited):
        return "unfit_characters"
    if before == after:
        return "unchanged"
    if not len(before) / 2 <= len(after) <= len(before) * 1.5 + 3:
        return "other_length"
    if task.kind == "swap":
        articles = {"a", "an"}
        kept = (sorted(word for word in words if word not in articles) for words in (before, after))
        return "" if next(kept) == next(kept) else "other_words"
    old, new = changed_words(before, after)
    return "" if len(old) <= 4 and len(new) <= 5 else "too_much_changed"


def words_of(caption: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return re.findall("\\w+(?:['\u2019-]\\w+)*", caption.lower())


def changed_words(before: Sequence[str], after: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands between the words that both begin with and those that both end with.

    Examples:
        >>> changed_words("an old red car".split(), "an old crimson car".split())
        (['red'], ['crimson'])
    """
    start = words_in_common(before, after)
    end = words_in_common(before[start:][::-1], after[start:][::-1])
    return list(before[start : len(before) - end]), list(after[start : len(after) - end])


def words_in_common(before: Sequence[str], after: Sequence[str]) -> int:
    """How many words both begin with."""
    pairs = zip(before, after, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


# --- one batch ------------------------------------------------------------------------------------

PART_FEATURES = Features(
    {
        "row": Value("int64"),
        **{
            f"{task}{suffix}": Value("string")
            for task in TASKS
            for suffix in ("", "_category", "_reason")
        },
        **{f"{task}_likelihoods": List(Value("float32")) for task in TASKS},
    }
)


def edit_rows(batch: Mapping[str, Sequence], *, editor: Editor) -> dict[str, list]:
    """Edit a batch of rows under all four tasks; what worker processes and Ray run.

    Args:
        batch: Columns `row` and `caption`, and columns named after tasks whose edits are there
            already.
        editor: Makes the others.

    Returns:
        The columns of `PART_FEATURES`.
    """
    captions = list(batch["caption"])
    columns: dict[str, list] = {"row": list(batch["row"])}
    for task in TASKS:
        if str(task) in batch:
            given = zip(captions, batch[str(task)], strict=True)
            edits = [_first_usable(caption, candidates, task) for caption, candidates in given]
        else:
            edits = editor.edit_batch(captions, task)
        if task.column == "hard_negative":
            positives = columns[f"hard_positive_{task.kind}"]
            edits = [_unlike(*pair) for pair in zip(edits, positives, strict=True)]
        columns[str(task)] = [edit.caption for edit in edits]
        columns[f"{task}_category"] = [edit.category for edit in edits]
        columns[f"{task}_reason"] = [edit.reason for edit in edits]
        columns[f"{task}_likelihoods"] = [edit.likelihoods for edit in edits]
    return columns


def _first_usable(caption: str, candidates: Sequence[str], task: Task) -> Edit:
    flaws = [flaw_of(caption, candidate, task) for candidate in candidates]
    if "" in flaws:
        return Edit(candidates[flaws.index("")], category=task.kind)
    return Edit(reason=flaws[0] if flaws else "none_given")


def _unlike(negative: Edit, positive: str | None) -> Edit:
    same = negative.caption and positive and words_of(negative.caption) == words_of(positive)
    return Edit(reason="equals_hard_positive") if same else negative


# --- a run ----------------------------------------------------------------------------------------


def generate(
    captions: Captions,
    output_dir: str | os.PathLike,
    editor: Editor,
    *,
    workers: int | None = None,
    engine: str = "datasets",
    progress: bool = True,
) -> Path:
    """Write a training set: each caption with hard positives and hard negatives.

    A caption gives up to two rows, one by replacing and one by swapping; `id` is the caption's own
    followed by `-replace` or `-swap`, and `category` says what was replaced, or `swap`. Where only
    one of hard positive and hard negative could be made, the other is null; where neither could,
    there is no row.

    A run that is killed resumes when it is started again: finished chunks are kept in a hidden
    folder beside `output_dir` until the set is complete. Each is named by a hash of its content,
    its place and the settings, and one that is damaged or belongs elsewhere is made again.

    Args:
        captions: From `hard_positives.generation.captions.read_captions`.
        output_dir: The folder to make; must not exist or be empty.
        editor: `Rules()` or `LanguageModel(...)`.
        workers: Processes of the engine `datasets`; the editor's own choice if left out.
        engine: `datasets` uses this machine, `ray` the Ray cluster that this process is or can be
            connected to (extra `ray`; the package must be installed on its nodes).
        progress: Show captions per second and the share of tasks without an edit.

    Returns:
        The folder, for `load_dataset(folder, split="train")`: the benchmark's columns (`image` only
        where the captions have images), `generation.json` with settings and counts, and a card.

    Raises:
        ValueError: Unknown engine, workers below 1, an unfinished run with other settings, or
            captions none of which could be edited.
        FileExistsError: The folder holds something, or another run is writing it.
        ChildProcessError: A worker process was killed.
        OSError: The disk is full; finished chunks are kept.

    Examples:
        >>> import tempfile
        >>> from datasets import Dataset, load_dataset
        >>> from hard_positives.generation.captions import read_captions
        >>> from hard_positives.generation.rules import Rules
        >>> rows = Dataset.from_dict({"id": ["7"], "caption": ["a cat and a dog on a red sofa"]})
        >>> output = Path(tempfile.mkdtemp()) / "train"
        >>> folder = generate(read_captions(rows), output, Rules(), workers=1, progress=False)
        >>> for row in load_dataset(str(folder), split="train"):
        ...     print(row["id"], row["category"], "|", row["hard_positive"])
        7-replace object | a cat and a dog on a red couch
        7-swap swap | a dog and a cat on a red sofa
    """
    workers = editor.workers if workers is None else workers
    if engine not in ENGINES or workers < 1:
        raise ValueError(
            f"Expected engine to be one of {ENGINES} and workers at least 1, got {engine!r} and "
            f"{workers}."
        )
    output = Path(output_dir).resolve()
    run = _Run(captions, editor, output, output.with_name(f".{output.name}.parts"))
    remedy = f"Free space and run the same again: finished chunks are kept in {run.parts}."
    with full_disk_explained(output, remedy):
        output.parent.mkdir(parents=True, exist_ok=True)
        with lock_for(output):
            if not run.is_complete():
                run.open()
                editor.prepare()
                with _editing(engine, editor, workers, len(captions)) as edit_chunk:
                    run.write(edit_chunk, progress)
            shutil.rmtree(run.parts, ignore_errors=True)
    return output


@dataclass(frozen=True)
class _Rows:
    """Rows as `build_parquet` takes them: a dataset of datasets would import torch."""

    features: Features
    info: DatasetInfo
    rows: Iterator[dict[str, Any]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows


@dataclass(frozen=True)
class _Run:
    captions: Captions
    editor: Editor
    output: Path
    parts: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        return {
            **self.editor.settings,
            "source": public_name(self.captions.name),
            "source_sha256": _content_hash(self.captions.table),
            "num_captions": len(self.captions),
            "chunk_size": self.editor.chunk_size,
            "version": version("hard-positives"),
        }

    def is_complete(self) -> bool:
        """Whether the same run has ended already; another one's folder is left alone."""
        if not self.output.exists() or (self.output.is_dir() and not any(self.output.iterdir())):
            return False
        record = _read_json(self.output / RECORD)
        if isinstance(record, dict) and record.get("settings") == self.settings:
            return True
        raise FileExistsError(
            f"Expected {self.output} to be absent or empty, got something there. Remove it or "
            "choose another folder."
        )

    def open(self) -> None:
        """Make the folder of the parts, or take over the one that an unfinished run has left."""
        path = self.parts / "settings.json"
        if not path.exists():
            self.parts.mkdir(exist_ok=True)
            with write_whole(path) as unfinished:
                unfinished.write_text(json.dumps(self.settings, indent=2, sort_keys=True), "utf-8")
        earlier = _read_json(path)
        if not isinstance(earlier, dict):
            raise ValueError(
                f"Expected {path} to hold the settings of an unfinished run, got something else. "
                "Remove that folder, and run the same again."
            )
        changed = [name for name, value in self.settings.items() if earlier.get(name) != value]
        if changed:
            raise ValueError(
                f"Expected the unfinished run in {self.parts} to have these settings, got another "
                f"{', '.join(changed)}. Go on with the same ones, or remove that folder."
            )

    def write(self, edit_chunk: Callable[[pa.Table], pa.Table], progress: bool) -> None:
        """Make the folder, which appears whole or not at all, from parts as they become whole."""
        folder = self.parts / "finished"
        shutil.rmtree(folder, ignore_errors=True)
        counts: Counter = Counter()
        text_alone = TextAlone()
        with new_bar("captions", len(self.captions), shown=progress) as bar:
            rows = self.rows(edit_chunk, counts, text_alone, bar)
            info = DatasetInfo(description=self.description)
            build_parquet({"train": _Rows(self.features, info, rows)}, folder, progress=False)
        record = {"settings": self.settings, "counts": _nested(counts), **text_alone.record()}
        (folder / RECORD).write_text(json.dumps(record, indent=2), "utf-8")
        if self.output.exists():
            self.output.rmdir()  # empty: os.replace does not take folders on every system
        put_in_place(folder, self.output)

    def rows(
        self,
        edit_chunk: Callable[[pa.Table], pa.Table],
        counts: Counter,
        text_alone: TextAlone,
        bar: tqdm,
    ) -> Iterator[dict[str, Any]]:
        """Yield all rows; parts that are not there whole are made on the way."""
        for start, stop in self.chunks():
            part = self.read_part(start)
            if part is None:
                part = edit_chunk(self.chunk(start, stop))
                self.write_part(start, part)
            counts += _count(part)
            text_alone.add(part, self.captions.table["image_id"][start:stop].to_pylist())
            yield from self.part_rows(start, part)
            bar.update(stop - start)
            bar.set_postfix_str(_shares(counts), refresh=False)
        self.check_edited(counts)

    @property
    def features(self) -> Features:
        names = [name for name in FEATURES if name != "image" or self.captions.images is not None]
        return Features({name: FEATURES[name] for name in names})

    @property
    def description(self) -> str:
        return (
            f"Hard positives and hard negatives, made from {self.settings['source']}; `{RECORD}` "
            "has the settings and counts."
        )

    def check_edited(self, counts: Counter) -> None:
        """Raise where there would be no row; nothing is kept, so that the same run asks again."""
        if _edited(counts):
            return
        shutil.rmtree(self.parts, ignore_errors=True)
        reasons = Counter(reason for _, reason in counts.elements())
        named = ", ".join(f"{reason} {number:,} times" for reason, number in reasons.most_common())
        raise ValueError(
            f"Expected an edit of at least one of the {len(self.captions):,} captions of "
            f"{self.captions.name}, got none: {named}. Give captions with words that can be "
            "replaced or swapped; of a language model, look at what it answers to one caption."
        )

    def chunks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, len(self.captions), self.editor.chunk_size):
            yield start, min(start + self.editor.chunk_size, len(self.captions))

    def chunk(self, start: int, stop: int) -> pa.Table:
        given = [str(task) for task in TASKS if str(task) in self.captions.table.column_names]
        rows = self.captions.table.slice(start, stop - start).select(["caption", *given])
        return rows.append_column("row", pa.array(range(start, stop), pa.int64()))

    def write_part(self, start: int, part: pa.Table) -> None:
        buffer = pa.BufferOutputStream()
        pq.write_table(part, buffer)
        content = buffer.getvalue().to_pybytes()
        with write_whole(self.parts / self.part_name(start, content)) as unfinished:
            unfinished.write_bytes(content)

    def read_part(self, start: int) -> pa.Table | None:
        """The part of a chunk if it is there whole; what only passes for it is removed."""
        for path in self.parts.glob(f"{_part_number(start)}-*.parquet"):
            content = path.read_bytes()
            if path.name == self.part_name(start, content):
                return pq.read_table(pa.BufferReader(content))
            path.unlink()
        return None

    def part_name(self, start: int, content: bytes) -> str:
        """A name that only this content has, in this place, under these settings."""
        place = json.dumps([self.settings, start], sort_keys=True).encode()
        return f"{_part_number(start)}-{hashlib.sha256(place + content).hexdigest()}.parquet"

    def part_rows(self, start: int, part: pa.Table) -> Iterator[dict[str, Any]]:
        for at in range(0, part.num_rows, BATCH_SIZE):
            edited = part.slice(at, BATCH_SIZE)
            sources = self.captions.table.slice(start + at, edited.num_rows).to_pylist()
            for source, edits in zip(sources, edited.to_pylist(), strict=True):
                for kind in ("replace", "swap"):
                    row = _training_row(source, edits, kind)
                    if row:
                        yield {**row, **self.image_of(source)}

    def image_of(self, source: dict[str, Any]) -> dict[str, Any]:
        if self.captions.images is None:
            return {}
        from hard_positives.suite.rows import read_image_file  # takes torch along

        row = source["image_row"]
        content = read_image_file(self.captions.images[row]["image"], row)
        return {"image": {"bytes": content, "path": None}}


def _part_number(start: int) -> str:
    return f"part-{start:09d}"


def _read_json(path: Path) -> Any:
    """What the file holds; None where it is absent or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def _training_row(source: dict[str, Any], part: dict[str, Any], kind: str) -> dict[str, Any] | None:
    positive, negative = part[f"hard_positive_{kind}"], part[f"hard_negative_{kind}"]
    if positive is None and negative is None:
        return None
    made = "hard_negative" if positive is None else "hard_positive"
    replaced = ""
    if kind == "replace" and positive is not None:
        old, new = changed_words(words_of(source["caption"]), words_of(positive))
        replaced = f"{' '.join(old)} > {' '.join(new)}"
    return {
        "id": f"{source['id']}-{kind}",
        "caption": source["caption"],
        "hard_positive": positive,
        "hard_negative": negative,
        "category": part[f"{made}_{kind}_category"],
        "substitution": replaced,
        "image_id": source["image_id"],
        "bbox": None,
        "flaws": [],
    }


@contextmanager
def _editing(
    engine: str, editor: Editor, workers: int, num_captions: int
) -> Iterator[Callable[[pa.Table], pa.Table]]:
    """Give what edits a chunk: this machine's processes, or a Ray cluster."""
    edit_batch = partial(edit_rows, editor=editor)
    if engine == "ray":
        yield partial(_map_on_ray, edit_batch=edit_batch)
        return

    def edit_chunk(rows: pa.Table) -> pa.Table:
        starts = range(0, rows.num_rows, BATCH_SIZE)
        batches = [rows.slice(start, BATCH_SIZE).to_pydict() for start in starts]
        edited = map_batches(edit_batch, batches)
        return pa.concat_tables(map(_part_table, edited))

    # No more processes than batches: a process costs as much as some thousand captions.
    batches = -(-min(num_captions, editor.chunk_size) // BATCH_SIZE)
    with worker_processes(min(workers, batches)) as map_batches:
        yield edit_chunk


def _map_on_ray(rows: pa.Table, edit_batch: Callable[[dict], dict]) -> pa.Table:
    try:
        import ray.data
    except ImportError as error:
        raise ImportError(
            "Expected the package ray to be installed, got none. Run: pip install "
            "'hard-positives[ray]'"
        ) from error
    _hush_ray(ray)
    blocks = ray.data.from_arrow(rows).repartition(target_num_rows_per_block=BATCH_SIZE)
    edited = blocks.map_batches(
        lambda batch: _part_table(edit_batch(batch.to_pydict())),
        batch_format="pyarrow",
        batch_size=BATCH_SIZE,
    )
    return pa.concat_tables(ray.get(edited.to_arrow_refs())).sort_by("row")


def _hush_ray(ray: Any) -> None:
    """Let Ray tell of errors alone; the bar of captions is ours."""
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _part_table(columns: dict[str, list]) -> pa.Table:
    return pa.table(columns, PART_FEATURES.arrow_schema)


def _count(part: pa.Table) -> Counter:
    counts: Counter = Counter()
    for task in TASKS:
        counts.update(
            (str(task), reason or "edited") for reason in part[f"{task}_reason"].to_pylist()
        )
    return counts


def _edited(counts: Counter) -> int:
    return sum(number for (_, reason), number in counts.items() if reason == "edited")


def _shares(counts: Counter) -> str:
    return f"{_edited(counts) / max(1, counts.total()):.0%} of edits made"


def _nested(counts: Counter) -> dict[str, dict[str, int]]:
    return {
        str(task): {name: n for (of, name), n in sorted(counts.items()) if of == str(task)}
        for task in TASKS
    }


def _content_hash(table: pa.Table) -> str:
    content = ContentHash()
    for batch in table.to_batches():
        content.add_table(pa.Table.from_batches([batch]))
    return content.hexdigest()
