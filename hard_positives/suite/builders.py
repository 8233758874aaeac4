"""Benchmarks whose captions and images lie apart -> a Parquet folder that is scored by its path.

    annotations --a reader for each benchmark--> rows that name images
    rows, images in folders and zips         --> OUTPUT/data/SPLIT.parquet, OUTPUT/README.md

The folder's card names the benchmark, so that `--dataset OUTPUT` is enough. It appears whole or not
at all. Images stay as the bytes that they are; each was decoded once.
"""

import ast
import base64
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datasets import Dataset, Features, Image, List, Value, load_dataset
from huggingface_hub import DatasetCardData
from PIL import Image as PILImage

from hard_positives.bars import new_bar
from hard_positives.suite.benchmarks import BenchmarkFile, known_benchmark
from hard_positives_dataset.folders import new_folder
from hard_positives_dataset.images import ImageFile, ImageStore, open_image_bytes

SHARD_ROWS = 2000  # some hundred megabytes
SUGARCREPE_PP = "Aman-J/SugarCrepe_pp"
DCI_SUMMARIES, DCI_SIDE, DCI_MARGIN = 5, 224, 0.15
# Config of the Hub, with its spelling, and file of the authors' repository -> split.
SUBSETS = {
    ("swap_object", "swap_obj"): "swap_object",
    ("swap_atribute", "swap_att"): "swap_attribute",
    ("replace_object", "replace_obj"): "replace_object",
    ("replace_attribute", "replace_att"): "replace_attribute",
    ("replace_relation", "replace_rel"): "replace_relation",
}


@dataclass(frozen=True)
class Row:
    """A row before its images were found.

    Attributes:
        split: Where it goes.
        texts: Column -> text, texts or number.
        images: Column -> path of an image, or paths.
    """

    split: str
    texts: dict[str, Any]
    images: Mapping[str, str | list[str]]

    @property
    def paths(self) -> list[str]:
        """All images that it names."""
        cells = self.images.values()
        return [path for cell in cells for path in ([cell] if isinstance(cell, str) else cell)]


def build_benchmark(
    name: str,
    output: str | Path,
    images: Sequence[str | Path],
    annotations: str | Path | None = None,
    *,
    partial: bool = False,
    progress: bool = True,
) -> Counter[str]:
    """Write a benchmark's rows with their images as a folder of Parquet files.

    Args:
        name: One of `READERS`.
        output: Must not exist yet.
        images: Folders and zips in which images are looked up.
        annotations: What `hard-positives benchmarks` says to get.
        partial: Leave out rows without an image in the place of stopping.
        progress: Show a bar with the rate.

    Returns:
        How many rows each split has; rows left out as `""`.

    Raises:
        ValueError: Another name, annotations of another form, an image that cannot be read.
        FileNotFoundError: Images are missing.
        FileExistsError: `output` holds something.
    """
    benchmark = known_benchmark(name)
    if benchmark is None or name not in READERS:
        raise ValueError(f"Expected benchmark to be one of {sorted(READERS)}, got {name!r}.")
    if annotations is None and name not in WITHOUT_ANNOTATIONS:
        raise ValueError(
            f"Expected annotations to be given for {name}, got none. {benchmark.build}"
        )
    rows = _read(name, annotations)
    with ImageStore(images) as store:
        found = {
            path: store.find(path) for path in dict.fromkeys(p for row in rows for p in row.paths)
        }
        kept = [row for row in rows if all(found[path] for path in row.paths)]
        _check_missing(rows, kept, found, partial)
        with new_folder(Path(output)) as folder:
            counts = _write(kept, found, store, folder, progress)
            (folder / "README.md").write_text(_card(benchmark, counts), encoding="utf-8")
    counts[""] = len(rows) - len(kept)
    return counts


def _read(name: str, annotations: str | Path | None) -> list[Row]:
    try:
        rows = list(READERS[name](annotations and Path(annotations)))
    except (KeyError, TypeError, IndexError, AttributeError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"Expected {annotations} to hold the annotations of {name}, got others "
            f"({type(error).__name__}: {error}). {known_benchmark(name).build}"
        ) from error
    if not rows:
        raise ValueError(
            f"Expected {annotations} to hold the annotations of {name}, got none. "
            f"{known_benchmark(name).build}"
        )
    return sorted(rows, key=lambda row: row.split)  # stable


def _check_missing(
    rows: Sequence[Row], kept: Sequence[Row], found: dict[str, ImageFile | None], partial: bool
) -> None:
    missing = [path for path, file in found.items() if file is None]
    if missing and (not partial or not kept):
        raise FileNotFoundError(
            f"Expected images to hold all {len(found):,}, got {len(missing):,} that are missing, "
            f"first {missing[:3]}, for {len(rows) - len(kept):,} of {len(rows):,} rows. Give more "
            "--images, or --partial for the rows that are there."
        )


def _write(
    rows: Sequence[Row],
    found: dict[str, ImageFile | None],
    store: ImageStore,
    folder: Path,
    progress: bool,
) -> Counter[str]:
    counts: Counter[str] = Counter()
    features = _features(rows[0])
    (folder / "data").mkdir()
    with new_bar("rows", len(rows), shown=progress) as bar:
        for split, of_split in groupby(rows, lambda row: row.split):
            for number, shard in enumerate(_shards(of_split)):
                cells = [
                    _cells(row, counts[split] + at, found, store) for at, row in enumerate(shard)
                ]
                table = Dataset.from_list(cells, features=features)
                table.to_parquet(folder / "data" / f"{split}-{number:05d}.parquet")
                counts[split] += len(shard)
                bar.update(len(shard))
    return counts


def _shards(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while shard := list(islice(rows, SHARD_ROWS)):
        yield shard


def _cells(
    row: Row, number: int, found: dict[str, ImageFile | None], store: ImageStore
) -> dict[str, Any]:
    def picture(path: str) -> dict[str, Any]:
        try:
            content = store.read(found[path])
            open_image_bytes(content)
        except ValueError as error:
            raise ValueError(
                f"Expected {path} to be a whole image, got {error}. Download it again."
            ) from error
        return {"bytes": content, "path": None}

    images = {
        name: picture(cell) if isinstance(cell, str) else list(map(picture, cell))
        for name, cell in row.images.items()
    }
    return {"id": f"{row.split}-{number:06d}", **row.texts, **images}


def _features(row: Row) -> Features:
    kinds = {str: Value("string"), int: Value("int64"), float: Value("float64")}
    features: dict[str, Any] = {"id": Value("string")}
    for name, cell in row.texts.items():
        features[name] = List(kinds[type(cell[0])]) if isinstance(cell, list) else kinds[type(cell)]
    for name, image in row.images.items():
        features[name] = Image() if isinstance(image, str) else List(Image())
    return Features(features)


def _card(benchmark: BenchmarkFile, counts: Counter[str]) -> str:
    splits = [{"split": split, "path": f"data/{split}-*.parquet"} for split in counts]
    about = DatasetCardData(
        pretty_name=benchmark.title,
        configs=[{"config_name": "default", "data_files": splits}],
        hard_positives={"benchmark": benchmark.name},
    )
    number = ", ".join(f"{split} {rows:,}" for split, rows in counts.items())
    return (
        f"---\n{about.to_yaml()}\n---\n\n# {benchmark.title}\n\n{benchmark.about} Rows: {number}. "
        f"Source: {benchmark.paper}. Licence: {benchmark.licence}.\n\n"
        "Built by hard-positives; score it with `hard-positives evaluate MODEL --dataset` and this "
        "folder.\n"
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _files(folder: Path, pattern: str) -> list[Path]:
    found = [folder] if folder.is_file() else sorted(folder.rglob(pattern))
    if not found:
        raise ValueError(f"Expected {folder} to hold {pattern}, got none.")
    return found


def _sugarcrepe_pp(annotations: Path | None) -> Iterator[Row]:
    for (config, file), split in SUBSETS.items():
        if annotations is None:
            rows: Iterable[dict] = load_dataset(SUGARCREPE_PP, config, split="train")
        else:
            names = [annotations / f"{name}.json" for name in (config, file, split)]
            rows = _json(next((path for path in names if path.is_file()), names[-1]))
        for row in rows:
            texts = {"caption": row["caption"], "hard_positive": row["caption2"]}
            texts["hard_negative"] = row["negative_caption"]
            yield Row(split, {**texts, "image_id": row["filename"]}, {"image": row["filename"]})


def _pairs_of_images(images: Sequence[str], captions: Sequence[str], **texts: str) -> Row:
    columns = {f"image_{at}": path for at, path in enumerate(images)}
    return Row("test", {f"caption_{at}": text for at, text in enumerate(captions)} | texts, columns)


def _cola(annotations: Path) -> Iterator[Row]:
    for entry in _json(annotations):
        first, caption_0, second, caption_1 = entry
        paths = [Path(urlsplit(url).path).name for url in (first, second)]
        yield _pairs_of_images(paths, [caption_0, caption_1])


def _naturalbench(annotations: Path) -> Iterator[Row]:
    [path] = _files(annotations, "metadata.json")
    entries = _json(path)
    for entry in entries.values() if isinstance(entries, dict) else entries:
        images, captions = (
            [entry[f"{kind}_{at}"] for at in (0, 1)] for kind in ("image", "caption")
        )
        yield _pairs_of_images(images, captions)


def _mmvp(annotations: Path) -> Iterator[Row]:
    [path] = _files(annotations, "Questions.csv")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))[1:]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        paths = [f"{first[1]}/{row[0]}.jpg" for row in (first, second)]
        captions = [f"a photo of {row[2]}" for row in (first, second)]  # as the authors ask
        yield _pairs_of_images(paths, captions, category=first[1])


def _vl_checklist(annotations: Path) -> Iterator[Row]:
    for path in _files(annotations, "*.json"):
        name = path.relative_to(annotations).with_suffix("").as_posix()
        for image, texts in _json(path):
            if texts["POS"] and texts["NEG"]:
                lists = {"positives": texts["POS"], "negatives": texts["NEG"]}
                split = name.split("/")[0].lower()
                yield Row(split, {**lists, "category": name, "image_id": image}, {"image": image})


def _bla(annotations: Path) -> Iterator[Row]:
    for path in _files(annotations, "*.json"):
        split = re.sub(r"\W+", "_", path.stem)
        for entry in _json(path):
            [texts, *_] = entry["caption_group"]
            columns = {
                "true_1": "True1",
                "true_2": "True2",
                "false_1": "False1",
                "false_2": "False2",
            }
            named = {column: texts[key] for column, key in columns.items()}
            image = f"{int(entry['image_id'])}.jpg"
            yield Row(split, {**named, "image_id": image}, {"image": image})


def _dci(annotations: Path) -> Iterator[Row]:
    """The test `all_swaps_pick5`: whole photographs, and regions with a margin of 15 %."""
    for name in _json(annotations / "splits.json")["test"]:
        entry = _json(annotations / "complete" / name)
        summaries, negatives = entry.get("summaries"), entry.get("negatives")
        if not summaries or not negatives or len(negatives) == 1:
            continue
        boxes = _dci_boxes(list(entry["mask_data"].values()))
        if not boxes.keys() <= summaries.keys() & negatives.keys():
            continue  # the authors' code leaves out the photograph, too
        for key, box in boxes.items():
            if len(summaries[key]) < DCI_SUMMARIES or isinstance(summaries[key], str):
                continue
            texts = {"positives": summaries[key][:DCI_SUMMARIES], "bbox": box}
            texts["negatives"] = negatives[key]["swaps"][:1]
            texts["category"] = "photograph" if key == "base" else "region"
            texts["image_id"] = entry["image"]
            yield Row("test", texts, {"image": entry["image"]})


def _dci_boxes(masks: Sequence[dict]) -> dict[str, list[float]]:
    """Key of a summary -> left, top, width, height in the photograph."""
    with PILImage.open(BytesIO(base64.b64decode(masks[0]["outer_mask"]))) as image:
        size = image.size  # the photograph's
    boxes = {"base": [0.0, 0.0, *map(float, size)]}
    for mask in masks:
        first, last = mask["bounds"]["topLeft"], mask["bounds"]["bottomRight"]
        sides = [last[axis] - first[axis] for axis in "xy"]
        if min(sides) < DCI_SIDE:
            continue
        margins = [int(side * DCI_MARGIN) for side in sides]
        start = [max(first[axis] - by, 0) for axis, by in zip("xy", margins, strict=True)]
        end = [
            min(last[axis] + by, most) for axis, by, most in zip("xy", margins, size, strict=True)
        ]
        widths = [after - before for before, after in zip(start, end, strict=True)]
        boxes[f"m-{mask['idx']}-sc"] = list(map(float, [*start, *widths]))
    return boxes


def _negbench(annotations: Path) -> Iterator[Row]:
    with annotations.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            texts: dict[str, Any] = {f"caption_{at}": row[f"caption_{at}"] for at in range(4)}
            texts["correct_answer"] = int(row["correct_answer"])
            texts["category"] = row["correct_answer_template"]
            yield Row("test", texts, {"image": row["image_path"]})


def _spec(annotations: Path) -> Iterator[Row]:
    for path in _files(annotations, "image2text.json"):
        for row in _json(path):
            texts = {"captions": row["keys"], "label": int(row["label"])}
            yield Row(path.parent.name, texts, {"image": f"{path.parent.name}/{row['query']}"})


def _spec_images(annotations: Path) -> Iterator[Row]:
    for path in _files(annotations, "text2image.json"):
        for row in _json(path):
            images = [f"{path.parent.name}/{name}" for name in row["keys"]]
            texts = {"caption": row["query"], "label": int(row["label"])}
            yield Row(path.parent.name, texts, {"images": images})


def _crepe(annotations: Path) -> Iterator[Row]:
    for path in _files(annotations, "prod_vg_hard_negs_*_complexity_*.csv"):
        _, kind, number = re.split(r"hard_negs_|_complexity_", path.stem)
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                image = f"{int(row['image_id'])}.jpg"
                box = [float(row[side]) for side in ("x", "y", "width", "height")]
                texts = {"caption": row["caption"], "bbox": box, "image_id": image}
                texts["hard_negatives"] = list(ast.literal_eval(row["hard_negs"]))
                yield Row(kind, {**texts, "category": f"{kind} {number}"}, {"image": image})


def _svo_probes(annotations: Path) -> Iterator[Row]:
    with annotations.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kinds = ("subj", "verb", "obj")
            [kind] = [kind for kind in kinds if row[f"{kind}_neg"].lower() == "true"]
            images = {"image": f"{row['pos_image_id']}.jpg"}
            images["negative_image"] = f"{row['neg_image_id']}.jpg"
            yield Row("test", {"caption": row["sentence"], "category": kind}, images)


WITHOUT_ANNOTATIONS = {"sugarcrepe++"}
READERS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "bla": _bla,
    "cola": _cola,
    "crepe": _crepe,
    "dci": _dci,
    "mmvp-vlm": _mmvp,
    "naturalbench-retrieval": _naturalbench,
    "negbench": _negbench,
    "spec": _spec,
    "spec-images": _spec_images,
    "sugarcrepe++": _sugarcrepe_pp,
    "svo-probes": _svo_probes,
    "vl-checklist": _vl_checklist,
}
