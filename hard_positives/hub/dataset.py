"""Publish a Parquet folder as a dataset repository with a complete card."""

import io
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard
from PIL import Image, ImageDraw, ImageFont, ImageOps

from hard_positives.hub.cards import FIGURES, TASK, add_config, add_metadata, task_of
from hard_positives.hub.questions import CONFIG, card_config, inspect_task, write_questions
from hard_positives.hub.repository import (
    Publication,
    as_yaml,
    check_own_file,
    hub_errors,
    open_repository,
)
from hard_positives.names import printable
from hard_positives.suite.columns import CAPTION_COLUMNS
from hard_positives_dataset.builder import LICENSE as VISUAL_GENOME_TERMS
from hard_positives_dataset.images import open_image_bytes

REGISTER = "https://huggingface.co/spaces/OpenEvals/README/discussions/2"
_PICTURE = "examples.png"
_NUM_EXAMPLES = 4
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
_CARD_METADATA = {
    "pretty_name": "Hard Positives",
    "language": ["en"],
    "task_categories": [TASK],
    "tags": ["compositionality", "hard-positives", "hard-negatives", "vision-language"],
}
# The images are under CC BY 4.0; the captions came without a licence. No name of the Hub's says so.
_VISUAL_GENOME_METADATA = {
    "license": "other",
    "license_name": "images-cc-by-4.0-captions-not-stated",
    "license_link": "https://github.com/amitakamath/hard_positives",
    "source_datasets": ["extended|other-visual-genome"],
}


def publish_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    evaluation_framework: str | None = "mteb",
) -> Publication:
    """Publish a Parquet folder as a dataset repository; it is made if it is not there.

    The Parquet files go up as they are. The card gets what its front matter lacks (task, language,
    size, the terms of Visual Genome's images) and a picture of examples. Parquet files in the
    repository's ``data/`` that the folder lacks are removed in the same commit. An interrupted
    upload goes on where it stopped: what the Hub has is not sent again.

    Args:
        folder: From ``hard-positives build`` or `hard_positives_dataset.build_parquet`.
        repo_id: ``organization/name``.
        private: Whether a new repository is private. One that is there must be so already.
        create_pr: Offer a pull request to a repository that is there, instead of a commit.
        evaluation_framework: Named in ``eval.yaml``, which makes the repository a benchmark whose
            tasks results can name: `hard_positives.mteb` runs them. The Hub takes only names of a
            list of its own, and shows a leaderboard once it lists the dataset, too (beta).
            ``"inspect-ai"`` adds a config ``yes_no``, which it asks generative models: every
            caption of every row as a question, with the image as a data URI. None leaves the file
            out, and one that is there stays.

    Returns:
        The commit or pull request.

    Raises:
        FileNotFoundError: No card, or no Parquet files in ``data/``.
        ValueError: A file is a link, an image has a path or is no image, the card states no
            licence, or a repository that should be private is public.
        HubError: The Hub refused or could not be reached. The repository is unchanged or, where
            only the answer was lost, complete.

    Examples:
        >>> publish_dataset("REPLACE", "org/hard-positives", private=True)  # doctest: +SKIP
    """
    folder = Path(folder)
    files = _dataset_files(folder)
    card = _dataset_card((folder / "README.md").read_text(encoding="utf-8"), files, repo_id)
    additions: dict[str, bytes | Path] = {
        "README.md": card.encode(),
        _PICTURE: _draw_examples(_examples(files)),
        **{f"data/{file.name}": file for file in files},
    }
    title = "Publish the hard-positives benchmark"
    with tempfile.TemporaryDirectory() as scratch, hub_errors(repo_id):
        if evaluation_framework is not None:
            additions["eval.yaml"] = _benchmark_file(_splits(files), evaluation_framework)
        if evaluation_framework == "inspect-ai":
            additions["README.md"] = add_config(card, card_config(_splits(files))).encode()
            for file in write_questions(files, Path(scratch)):
                additions[f"{CONFIG}/{file.name}"] = file
        repository = open_repository(
            repo_id, "dataset", title, create_pr=create_pr, private=private
        )
        return repository.commit(additions, mirrored=("data/*.parquet", f"{CONFIG}/*.parquet"))


def _dataset_files(folder: Path) -> list[Path]:
    """The Parquet files, after checks that nothing but images of this folder would be sent."""
    files = sorted(folder.glob("data/*.parquet"))
    if not files or not (folder / "README.md").is_file():
        raise FileNotFoundError(
            f"Expected {folder} to hold README.md and data/*.parquet, got "
            f"{'no Parquet files' if not files else 'no README.md'}. Make it with hard-positives "
            "build."
        )
    for file in (folder / "README.md", *files):
        check_own_file(folder, str(file.relative_to(folder)))
    for file in files:
        _check_images(file)
    return files


def _check_images(file: Path) -> None:
    """Refuse anything in the column ``image`` but bytes of images, above all paths."""
    reader, first_row = pq.ParquetFile(file), 0
    missing = {"image", *CAPTION_COLUMNS} - set(reader.schema_arrow.names)
    if missing:
        raise ValueError(
            f"Expected {file} to have the columns of this benchmark, got none called "
            f"{', '.join(sorted(missing))}. Make it with hard-positives build."
        )
    for batch in reader.iter_batches(batch_size=256, columns=["image"]):
        images = pa.array(batch.column("image"))
        contents, paths = images.field("bytes"), images.field("path")
        problem = None
        if images.null_count or contents.null_count:
            problem = "rows without bytes"
        elif paths.null_count < len(paths):
            problem = f"the path {printable(paths.drop_null()[0])}"
        else:
            problems = (_problem_of_image(content.as_py()) for content in contents.unique())
            problem = next(filter(None, problems), None)
        if problem:
            raise ValueError(
                f"Expected every image of {file} to be the bytes of an image and no path, got "
                f"{problem} in rows {first_row} to {first_row + len(batch) - 1}. Nothing was sent. "
                "Make the folder with hard-positives build."
            )
        first_row += len(batch)


def _problem_of_image(content: bytes) -> str | None:
    try:
        open_image_bytes(content)
    except ValueError as problem:
        return str(problem)
    return None


def _splits(files: Sequence[Path]) -> list[str]:
    return list(dict.fromkeys(file.name.split("-")[0] for file in files))


def _dataset_card(card: str, files: Sequence[Path], repo_id: str) -> str:
    """The folder's card with the metadata that it lacks, and the picture of examples."""
    num_rows = sum(pq.read_metadata(file).num_rows for file in files)
    size = next((name for limit, name in _SIZES.items() if num_rows < limit), "n>1M")
    terms = _VISUAL_GENOME_METADATA if VISUAL_GENOME_TERMS in card else {}
    card = add_metadata(card, {**terms, **_CARD_METADATA, "size_categories": [size]})
    if not DatasetCard(card).data.get("license"):
        raise ValueError(
            "Expected the card to state a licence, got none. Add a line such as `license: "
            "cc-by-4.0` to the front matter of README.md, and what it holds for to the text."
        )
    section = (
        f"\n## Examples\n\n![Images, each with its three captions]({_PICTURE})\n\n"
        "Below each image: the caption; in green the hard positive, still true; in red the hard "
        "negative, false.\n"
    )
    above, heading, below = card.partition("\n## ")
    card = f"{above}{section}{heading}{below}"
    return card.replace("<this folder or repository>", repo_id)


def _tasks_of(splits: Sequence[str]) -> list[dict[str, Any]]:
    """The tasks that results name; the rows of a published dataset are no sets."""
    figures = [figure for figure in FIGURES if figure != "set_accuracy"]
    return [
        {"id": task_of(split, figure), "config": "default", "split": split}
        for split in splits
        for figure in figures
    ]


def _benchmark_file(splits: Sequence[str], evaluation_framework: str) -> bytes:
    benchmark: dict[str, Any] = {
        "name": "Hard Positives",
        "description": (
            "Does a model prefer what is true, reworded or not, to what is false? Figures are "
            "fractions, means over categories. Of accuracies higher is better, of brittleness "
            "lower."
        ),
        "evaluation_framework": evaluation_framework,
        "tasks": _tasks_of(splits),
    }
    if evaluation_framework == "inspect-ai":  # which takes no tasks but those that it can run
        benchmark["description"] = "Is what a caption says true of the picture? Yes or no."
        benchmark["tasks"] = [inspect_task(split) for split in splits]
    return as_yaml(benchmark)


def _examples(files: Sequence[Path]) -> list[dict[str, Any]]:
    """A few rows without flaws, of different images and as many categories as there are."""
    by_category = defaultdict(dict)
    for split in _splits(files):
        reader = pq.ParquetFile(next(f for f in files if f.name.startswith(f"{split}-")))
        wanted = {"image", *CAPTION_COLUMNS, "category", "flaws"} & set(reader.schema_arrow.names)
        for row in next(reader.iter_batches(batch_size=512, columns=sorted(wanted))).to_pylist():
            if not row.get("flaws"):
                images = by_category[row.get("category") or split]
                images.setdefault(row["image"]["bytes"], row)
    turns = zip_longest(*(images.values() for images in by_category.values()))
    return [row for row in chain.from_iterable(turns) if row][:_NUM_EXAMPLES]


def _draw_examples(rows: Sequence[dict[str, Any]]) -> bytes:
    """Images side by side above their captions: a PNG for the card."""
    width, height, gap = 240, 180, 20
    font = ImageFont.load_default(15)
    canvas = Image.new("RGB", (gap + len(rows) * (width + gap), height + 400), "white")
    draw, bottom = ImageDraw.Draw(canvas), 0.0
    for place, row in enumerate(rows):
        left, top = gap + place * (width + gap), float(gap)
        image = open_image_bytes(row["image"]["bytes"]).convert("RGB")
        canvas.paste(ImageOps.pad(image, (width, height), color="white"), (left, gap))
        top += height + 12
        for column, colour in zip(CAPTION_COLUMNS, ("black", "#18703a", "#b3261e"), strict=True):
            text = "\n".join(textwrap.wrap(row[column], 32, max_lines=3)) or "(empty)"
            draw.multiline_text((left, top), text, colour, font)
            top = draw.multiline_textbbox((left, top), text, font)[3] + 10
        bottom = max(bottom, top)
    canvas = canvas.crop((0, 0, canvas.width, bottom + gap))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
