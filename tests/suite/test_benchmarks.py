"""Every benchmark by its name, on stand-ins with the columns that its rows have on the Hub, or in
the files that its authors publish; figures against the authors' formulas written anew.

Rows of equal captions or equal images make ties.
"""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from rich.console import Console
from stand_in_hub import WRITER, StandInHub
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from hard_positives import EvaluationResult
from hard_positives.cli import app
from hard_positives.results.files import find_results
from hard_positives.suite.benchmarks import known_benchmarks, read_benchmark
from hard_positives.suite.builders import READERS, build_benchmark
from hard_positives.suite.checking import checked_benchmark
from hard_positives.suite.comparisons import box_digest, read_comparisons
from hard_positives.suite.sources import load_splits

REQUIRED = {"replace-swap", "shapes", "sugarcrepe", "sugarcrepe++", "aro-relation", "dci", "cola"}
REQUIRED |= {"aro-attribution", "aro-coco-order", "aro-flickr-order", "winoground", "bivlc", "bla"}
REQUIRED |= {"colorswap", "vismin", "valse", "whatsup", "mmvp-vlm", "naturalbench-retrieval"}
REQUIRED |= {"vl-checklist", "spec", "negbench", "crepe", "svo-probes"}
# Of the bundled model's vocabulary.
WORDS = ["red circle", "blue square", "green cross", "small star", "large triangle", "black star"]
PLACES = ["above", "left of", "right of", "touching", "under", "far from"]
NUMBER = 24


def picture(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    image = PILImage.new("RGB", (40, 30), "grey")
    for colour in random.choice(["red", "blue", "green", "yellow", "black", "white"], 3):
        left, top = random.integers(0, 25, 2).tolist()
        image.paste(str(colour), (left, top, left + 12, top + 12))
    image.putpixel((0, 0), (seed % 256, 0, 0))  # no two are equal
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def cell(seed: int) -> dict:
    return {"bytes": picture(seed), "path": None}


def text(seed: int) -> str:
    random = np.random.default_rng(seed)
    first, second = random.choice(WORDS, 2)
    return f"the {first} {random.choice(PLACES)} the {second}"


def texts(row: int, number: int) -> list[str]:
    """Of every fifth row some are equal, of every tenth all: ties."""
    found = [text(100 * row + at) for at in range(number)]
    same = number if row % 10 == 0 else 2 if row % 5 == 0 else 1
    return [found[0]] * same + found[same:]


def many(**columns) -> list[dict]:
    return [{name: make(row) for name, make in columns.items()} for row in range(NUMBER)]


def pairs_on_hub(images: tuple, captions: tuple, **others) -> tuple[list[dict], Features]:
    rows = []
    for row in range(NUMBER):
        # Every seventh row has one image twice.
        of_row = {images[0]: cell(2 * row), images[1]: cell(2 * row + (row % 7 > 0))}
        of_row |= dict(zip(captions, texts(row, 2), strict=True))
        rows.append(of_row | {name: make(row) for name, make in others.items()})
    features = dict.fromkeys(images, Image()) | dict.fromkeys(captions, Value("string"))
    kinds = {int: Value("int64"), str: Value("string")}
    features |= {name: kinds[type(make(0))] for name, make in others.items()}
    return rows, Features(features)


def aro_boxes(category: str | None) -> tuple[list[dict], Features]:
    rows = many(
        image=cell,
        true_caption=lambda row: texts(row, 2)[0],
        false_caption=lambda row: texts(row, 2)[1],
        bbox=lambda row: {"x": 1.0 + row % 3, "y": 2.0, "w": 20.0, "h": 20.0},
    )
    box = dict.fromkeys("xywh", Value("float32"))
    features = {"image": Image(), "true_caption": Value("string"), "false_caption": Value("string")}
    features["bbox"] = box
    if category:
        for row, names in enumerate(rows):
            names[category] = ["on", "by", "riding", "wearing"][row % 4 if row < 20 else 0]
        features[category] = Value("string")
    return rows, Features(features)


def aro_order() -> tuple[list[dict], Features]:
    names = ["correct_caption", *(f"hard_text_{at}" for at in range(1, 5))]
    rows = [
        {"images": cell(row), **dict(zip(names, texts(row, 5), strict=True))}
        for row in range(NUMBER)
    ]
    return rows, Features({"images": Image(), **dict.fromkeys(names, Value("string"))})


def sugarcrepe(seed: int) -> tuple[list[dict], Features]:
    tested = [texts(100 * seed + row, 2) for row in range(NUMBER // 2 + seed)]
    names = sorted({one for of_row in tested for one in of_row})
    rows = [
        {"image": cell(row), "tested_labels": both, "true_label": names.index(both[0])}
        for row, both in enumerate(tested)
    ]
    labels = {"tested_labels": List(Value("string")), "true_label": ClassLabel(names=names)}
    return rows, Features({"image": Image(), **labels})


def lists(negatives: int, **others) -> tuple[list[dict], Features]:
    def number(row: int) -> int:
        return 2 + (row % 3) * (negatives - 1) // 2

    rows = many(
        images=lambda row: [cell(row)],
        positive_caption=lambda row: texts(row, number(row))[:1],
        negative_caption=lambda row: texts(row, number(row))[1:],
        original_file_name=lambda row: f"{row // 2}.jpg",
        **others,
    )
    features = {"images": List(Image()), "original_file_name": Value("string")}
    features |= dict.fromkeys(("positive_caption", "negative_caption"), List(Value("string")))
    return rows, Features(features | dict.fromkeys(others, Value("string")))


def on_hub(name: str) -> dict[str, tuple[list[dict], Features]]:
    """Split -> rows and features, as cards on the Hub and the code that reads them have it."""
    numbered = {"id": int}
    made = {
        "aro-relation": lambda: aro_boxes("relation_name"),
        "aro-attribution": lambda: aro_boxes(None),
        "aro-coco-order": aro_order,
        "aro-flickr-order": aro_order,
        "winoground": lambda: pairs_on_hub(
            ("image_0", "image_1"),
            ("caption_0", "caption_1"),
            collapsed_tag=lambda row: ["Object", "Relation", "Both"][row % 3],
            tag=str,
            num_main_preds=int,
            **numbered,
        ),
        "bivlc": lambda: pairs_on_hub(
            ("image", "negative_image"),
            ("caption", "negative_caption"),
            type=lambda row: ["replace", "swap"][row % 2],
            subtype=lambda row: ["obj", "att"][row % 2],
        ),
        "colorswap": lambda: pairs_on_hub(
            ("image_1", "image_2"),
            ("caption_1", "caption_2"),
            image_source=str,
            caption_source=lambda row: ["human", "model"][row % 2],
            **numbered,
        ),
        "vismin": lambda: pairs_on_hub(
            ("image_0", "image_1"),
            ("text_0", "text_1"),
            category=lambda row: ["object", "counting"][row % 2],
        ),
        "valse": lambda: lists(
            1, linguistic_phenomena=lambda row: ["plurals", "actions"][row % 3 // 2], dataset=str
        ),
        "whatsup": lambda: lists(3),
    }
    if name == "sugarcrepe":
        return {part: sugarcrepe(at) for at, part in enumerate(known_benchmarks()[name].parts)}
    return {"test": made[name]()}


ON_HUB = [name for name, benchmark in known_benchmarks().items() if benchmark.parts]


@pytest.fixture(scope="module")
def rows_on_hub() -> dict:
    return {name: on_hub(name) for name in ON_HUB}


@pytest.fixture(scope="module")
def hub(rows_on_hub):
    with StandInHub() as hub:
        for name, parts in rows_on_hub.items():
            for split, (rows, features) in parts.items():
                part = known_benchmarks()[name].parts[split]
                buffer = io.BytesIO()
                Dataset.from_list(rows, features=features).to_parquet(buffer)
                files = {f"data/{part.split}-00000-of-00001.parquet": buffer.getvalue()}
                repository = hub.add("datasets", part.id, files)
                if part.revision:
                    pinned = replace(repository.at("main"), sha=part.revision)
                    repository.commits[part.revision] = pinned
                    repository.commit("main", "Other rows, which were not pinned", {})
        yield hub


def command_on(hub: StandInHub, folder: Path, *models: str) -> dict:
    """The command that scores models on every benchmark of the Hub, with caches of its own."""
    arguments = ["evaluate", *models, "--output", str(folder / "all")]
    for name in ON_HUB:
        arguments += ["--dataset", name]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": WRITER}
    environment |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"HARD_POSITIVES_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "hard_positives", *arguments]
    return {"args": command, "env": environment, "cwd": folder}


@pytest.fixture(scope="module")
def evaluated(hub, tmp_path_factory) -> Path:
    """Every benchmark on the Hub through the command."""
    folder = tmp_path_factory.mktemp("suite")
    command = command_on(hub, folder, "shapes_clip")
    done = subprocess.run(**command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "all" / "shapes_clip"


def logits_by_pair(result: EvaluationResult) -> dict[tuple, float]:
    """Row id, image and caption -> logit."""
    found = {}
    for row in result.scores.to_pylist():
        number = row["id"].split("/")[0]
        images, captions = row["images"], row["captions"]
        longer = max(len(images), len(captions))
        images, captions = (one * longer if len(one) == 1 else one for one in (images, captions))
        for image, caption, logit in zip(images, captions, row["logits"], strict=True):
            found[number, image, caption] = logit
    return found


class Scored:
    """One benchmark's rows with the logits of their pairs, for formulas written anew."""

    def __init__(self, result: EvaluationResult, rows: dict[str, list[dict]]):
        self.result, self.pairs = result, logits_by_pair(result)
        ids = {split: [] for split in rows}
        for row in result.scores.to_pylist():
            number = row["id"].split("/")[0]
            if number not in ids[row["split"]]:
                ids[row["split"]].append(number)
        self.rows = [
            (split, number, row)
            for split in rows
            for number, row in zip(ids[split], rows[split], strict=True)
        ]

    def logits(self, number: str, image: dict | bytes, captions, box=None) -> list[float]:
        content = image["bytes"] if isinstance(image, dict) else image
        digest = box_digest(hashlib.sha256(content).hexdigest(), box)
        return [self.pairs[number, digest, caption] for caption in captions]

    def share(self, right) -> float:
        return float(np.mean([right(number, row) for _, number, row in self.rows]))

    def macro(self, right, category) -> float:
        groups = defaultdict(list)
        for split, number, row in self.rows:
            groups[category(split, row)].append(right(number, row))
        return float(np.mean([np.mean(of_group) for of_group in groups.values()]))

    def value(self, title: str) -> float:
        [value] = [one for one in self.result.authors if one.figure.title == title]
        return value.estimate.value


def winoground(scored: Scored, images, captions) -> dict[str, float]:
    """compute_winoground of its authors: s[caption][image], strict."""

    def scores(number, row):
        texts = [row[name] for name in captions]
        return np.array([scored.logits(number, row[name], texts) for name in images]).T

    def text_is_right(number, row):
        s = scores(number, row)
        return s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]

    def image_is_right(number, row):
        s = scores(number, row)
        return s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]

    return {
        "text": scored.share(text_is_right),
        "image": scored.share(image_is_right),
        "group": scored.share(lambda *row: text_is_right(*row) and image_is_right(*row)),
    }


def aro_box(row) -> tuple:
    return tuple(round(row["bbox"][side]) for side in "xywh")


def aro_is_right(scored: Scored):
    """argmax with the true caption behind the false one."""

    def right(number, row):
        captions = [row["false_caption"], row["true_caption"]]
        return np.argmax(scored.logits(number, row["image"], captions, aro_box(row))) == 1

    return right


def expected_on_hub(name: str, scored: Scored) -> dict[str, float]:
    if name in ("winoground", "bivlc", "colorswap", "vismin"):
        pairs = known_benchmarks()[name].read_columns.pairs
        values = winoground(scored, *zip(*pairs, strict=True))
        titles = {"text": "I2T", "image": "T2I"} if name == "bivlc" else {}
        return {titles.get(title, title): value for title, value in values.items()}
    if name == "aro-relation":
        symmetric = set(known_benchmarks()[name].figures[0].without)
        assert "by" in symmetric and "on" not in symmetric
        counted = [one for one in scored.rows if one[2]["relation_name"] not in symmetric]
        micro, scored.rows = scored.share(aro_is_right(scored)), counted
        macro = scored.macro(aro_is_right(scored), lambda split, row: row["relation_name"])
        return {"accuracy": macro, "micro": micro}
    if name == "aro-attribution":
        return {"micro": scored.share(aro_is_right(scored))}
    if name.endswith("-order"):

        def first(number, row):
            captions = [row["correct_caption"], *(row[f"hard_text_{at}"] for at in range(1, 5))]
            return np.argmax(scored.logits(number, row["images"], captions)) == 0

        return {"precision@1": scored.share(first)}
    if name == "sugarcrepe":

        def above(number, row):
            positive, negative = scored.logits(number, row["image"], row["tested_labels"])
            return positive > negative

        values = {"macro": scored.macro(above, lambda split, row: split)}
        values["micro"] = scored.share(above)
        for split in known_benchmarks()[name].parts:
            of_split = [above(number, row) for part, number, row in scored.rows if part == split]
            values[split] = float(np.mean(of_split))
        return values

    def ranked(number, row):
        [positive], negatives = (
            scored.logits(number, row["images"][0], row[f"{kind}_caption"])
            for kind in ("positive", "negative")
        )
        return all(positive > negative for negative in negatives)

    if name == "valse":
        by = scored.macro(ranked, lambda split, row: row["linguistic_phenomena"])
        return {"mean of phenomena": by, "micro": scored.share(ranked)}
    assert name == "whatsup"
    return {"individual": scored.share(ranked)}


@pytest.mark.parametrize("name", ON_HUB)
def test_figures_of_a_benchmark_on_the_hub_are_its_authors(name, hub, evaluated, rows_on_hub):
    result = EvaluationResult.load(evaluated / name)
    rows = {split: rows for split, (rows, _) in rows_on_hub[name].items()}
    expected = expected_on_hub(name, Scored(result, rows))
    assert list(expected) and set(expected) == {v.figure.title for v in result.authors}
    found = {value.figure.title: value.estimate.value for value in result.authors}
    assert found == pytest.approx(expected, abs=1e-12)
    assert any(0 < value < 1 for value in expected.values())
    ties = [figures["tie_rate"] for figures in result.metrics["as_published"].values()]
    assert max(ties) > 0
    saved = json.loads((evaluated / name / "results.json").read_text())
    assert {one["title"]: one["value"] for one in saved["authors"]} == pytest.approx(expected)
    parts, dataset = known_benchmarks()[name].parts, result.signature["dataset"]
    taken = {
        split: part.revision or hub.repositories["datasets", part.id].refs["main"]
        for split, part in parts.items()
    }
    if len(taken) > 1:
        assert (dataset["revision"], dataset["revisions"]) == (None, taken)
    else:
        assert [dataset["revision"]] == list(taken.values()) and "revisions" not in dataset


@pytest.mark.slow
def test_all_benchmarks_by_three_models_encode_once_and_resume(hub, tiny_clip, tmp_path):
    models = ["shapes_clip", str(tmp_path / "one"), str(tmp_path / "two")]
    for seed, folder in enumerate(models[1:]):
        torch.manual_seed(seed)
        model = AutoModel.from_pretrained(tiny_clip)
        torch.nn.init.normal_(model.visual_projection.weight, std=0.3)
        model.save_pretrained(folder)
        AutoProcessor.from_pretrained(tiny_clip, backend="pil").save_pretrained(folder)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = command_on(hub, tmp_path / "whole", *models)
    done = subprocess.run(**whole, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What was computed over all benchmarks is what is distinct over all of them.
    computed = np.array(
        [
            list(map(int, re.findall(r"compute: (\d+) of \d+ distinct images, (\d+) of", line)[0]))
            for line in done.stderr.splitlines()
            if "To compute" in line
        ]
    )
    results = [EvaluationResult.load(path) for path in find_results(tmp_path / "whole" / "all")]
    assert len(results) == 3 * len(ON_HUB)
    distinct = [
        {one for result in results for of_row in result.scores[side].to_pylist() for one in of_row}
        for side in ("images", "captions")
    ]
    assert computed.sum(0).tolist() == [3 * len(values) for values in distinct]

    killed = command_on(hub, tmp_path / "killed", *models)
    process = subprocess.Popen(**killed, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.count("scored.") and "whatsup" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list(find_results(tmp_path / "killed" / "all"))
    assert 0 < len(finished) < len(results)
    done = subprocess.run(**killed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished before") == len(finished)
    for path in find_results(tmp_path / "whole" / "all"):
        for name in ("results.json", "scores.parquet"):
            other = tmp_path / "killed" / "all" / path.relative_to(tmp_path / "whole" / "all")
            assert (other / name).read_bytes() == (path / name).read_bytes()


def test_a_benchmark_that_is_given_on_request_says_how_to_ask(hub, tmp_path):
    repository = hub.repositories["datasets", "facebook/winoground"]
    repository.private = True
    try:
        command = command_on(hub, tmp_path, "shapes_clip")
        done = subprocess.run(**command, capture_output=True, text=True, check=False)
    finally:
        repository.private = False
    assert done.returncode == 1
    assert "Expected facebook/winoground to be within reach for winoground" in done.stderr
    assert "Ask for access on https://huggingface.co/datasets/facebook/winoground" in done.stderr
    assert not list((tmp_path / "all").rglob("results.json"))


# --- built ---


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for row in range(NUMBER):
        for kind in ("", "Colour/", "Text/", "count/", "size/"):
            path = folder / f"{kind}{row}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture(row))
        small = PILImage.open(io.BytesIO(picture(row)))
        small.resize(DCI_SIZE).save(folder / f"sa_{row}.jpg", format="PNG")
    return folder


def write_csv(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


DCI_SIZE = (320, 240)


def dci_entry(row: int) -> dict:
    """One JSON file: a photograph, a region that is large enough, and one that is not."""
    mask = io.BytesIO()
    PILImage.new("L", DCI_SIZE).save(mask, format="PNG")
    keys = ("base", "m-3-sc")
    made = texts(row, 12)
    entry = {"image": f"sa_{row}.jpg", "summaries": {}, "negatives": {}}
    for at, key in enumerate(keys):
        entry["summaries"][key] = made[6 * at : 6 * at + 5]
        entry["negatives"][key] = {"swaps": [made[6 * at + 5], "later ones"], "basic": ["another"]}
    bounds = {3: ((50, 5), (300, 235)), 4: ((0, 0), (223, 235))}
    entry["mask_data"] = {
        str(idx): {
            "idx": idx,
            "bounds": {
                corner: dict(zip("xy", at, strict=True))
                for corner, at in zip(("topLeft", "bottomRight"), corners, strict=True)
            },
            "outer_mask": base64.b64encode(mask.getvalue()).decode(),
        }
        for idx, corners in bounds.items()
    }
    if row == 1:  # one summary alone is a text, and no bag of five
        entry["summaries"]["m-3-sc"] = "one summary"
    if row == 2:
        del entry["negatives"]["m-3-sc"]
    if row == 3:
        del entry["summaries"]
    return entry


def annotations_of(name: str, folder: Path) -> Path:
    """Write what the authors publish, in their own form."""

    def dump(path: str, content) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))

    rows = range(NUMBER)
    pairs = [(row, (row + (row % 7 > 0)) % NUMBER, *texts(row, 2)) for row in rows]
    if name == "sugarcrepe++":
        subsets = ("swap_object", "swap_atribute", "replace_obj", "replace_att")
        for at, subset in enumerate([*subsets, "replace_relation"]):
            keys = ("caption", "negative_caption", "caption2")
            entries = [
                {"id": row, "filename": f"{row}.jpg", **dict(zip(keys, texts(row, 3), strict=True))}
                for row in range(at, NUMBER)
            ]
            dump(f"{subset}.json", entries)
    elif name == "cola":
        url = "https://example.org/vg_gqa_images/{}.jpg"
        dump("a.json", [[url.format(i), c, url.format(j), d] for i, j, c, d in pairs])
        return folder / "a.json"
    elif name == "naturalbench-retrieval":
        keys = ("image_0", "image_1", "caption_0", "caption_1")
        named = [(f"{i}.jpg", f"{j}.jpg", c, d) for i, j, c, d in pairs]
        dump("metadata.json", [dict(zip(keys, one, strict=True)) for one in named])
    elif name == "mmvp-vlm":
        kinds = ["Colour"] * (NUMBER // 2) + ["Text"] * (NUMBER // 2)
        questions = [
            {"Question ID": row, "Type": kinds[row], "Statement": text(row)} for row in rows
        ]
        write_csv(folder / "Questions.csv", questions)
    elif name == "vl-checklist":
        three = [texts(row, 6) for row in rows]
        lists = [[f"{r}.jpg", {"POS": t[::2], "NEG": t[1::2]}] for r, t in enumerate(three)]
        dump("Object/Size/swig_size/swig_item.json", lists)
        one = [
            [f"{row}.jpg", {"POS": [a], "NEG": [b]}]
            for row, (a, b) in enumerate(texts(row, 2) for row in range(9))
        ]
        dump("Attribute/vg/color.json", one)
        dump("Object/Size/swig_size/swig_place.json", [])
    elif name == "bla":
        keys = ("True1", "False1", "True2", "False2")
        for at, task in enumerate(("active_passive", "coordination", "relative_clause")):
            groups = [
                {"image_id": row, "caption_group": [dict(zip(keys, texts(row, 4), strict=True))]}
                for row in range(at, NUMBER)
            ]
            dump(f"{task}_caption.json", groups)
    elif name == "negbench":
        kinds = ["positive", "negative", "hybrid"]
        made = [
            {f"caption_{at}": one for at, one in enumerate(texts(row, 4))}
            | {"image_path": f"data/coco/{row}.jpg", "correct_answer": row % 4 % 3}
            | {"correct_answer_template": kinds[row % 3]}
            for row in rows
        ]
        return write_csv(folder / "mcq.csv", made)
    elif name == "spec":
        for subset in ("count", "size"):
            keys = [{"query": f"{r}.jpg", "keys": texts(r, 4), "label": r % 3} for r in rows]
            dump(f"{subset}/image2text.json", keys)
    elif name == "spec-images":
        for subset in ("count", "size"):
            keys = [
                {"query": text(r), "keys": [f"{r}.jpg", f"{(r + r % 7) % 9}.jpg"], "label": r % 2}
                for r in rows
            ]
            dump(f"{subset}/text2image.json", keys)
    elif name == "crepe":
        for kind in ("atom", "swap", "negate"):
            for number in (4, 5):
                made = [
                    {"image_id": row, "caption": one, "hard_negs": repr(negatives)}
                    | {"x": 1, "y": 2, "width": 20, "height": 15}
                    for row in range(number, NUMBER)
                    for one, *negatives in [texts(row, 4)]
                ]
                write_csv(folder / kind / f"prod_vg_hard_negs_{kind}_complexity_{number}.csv", made)
    elif name == "dci":
        dump("splits.json", {"train": [], "test": [f"{row}.json" for row in rows]})
        for row in rows:
            dump(f"complete/{row}.json", dci_entry(row))
    else:
        assert name == "svo-probes"
        kinds = ["subj", "verb", "obj"]
        made = [
            {"sentence": text(row), "pos_image_id": row, "neg_image_id": (row + row % 5) % NUMBER}
            | {f"{kind}_neg": str(kind == kinds[row % 3]) for kind in kinds}
            for row in rows
        ]
        return write_csv(folder / "svo_probes.csv", made)
    return folder


def built_rows(folder: Path) -> dict[str, list[dict]]:
    rows = defaultdict(list)
    for path in sorted((folder / "data").glob("*.parquet")):
        rows[path.stem.rsplit("-", 1)[0]] += pq.read_table(path).to_pylist()
    return rows


def expected_built(name: str, scored: Scored) -> dict[str, float]:
    if name in ("cola", "naturalbench-retrieval", "mmvp-vlm"):
        images, captions = ("image_0", "image_1"), ("caption_0", "caption_1")
        values = winoground(scored, images, captions)
        if name == "cola":
            return {"accuracy": values["image"]}
        if name == "naturalbench-retrieval":
            return values
        by_kind = []
        everything = scored.rows
        for kind in ("Colour", "Text"):
            scored.rows = [one for one in everything if one[2]["category"] == kind]
            by_kind.append(winoground(scored, images, captions))
        return {
            title: float(np.mean([of_kind[title] for of_kind in by_kind]))
            for title in ("image", "group")
        }
    if name == "svo-probes":

        def positive(number, row):
            return scored.logits(number, row["image"], [row["caption"]]) > scored.logits(
                number, row["negative_image"], [row["caption"]]
            )

        by = scored.macro(positive, lambda split, row: row["category"])
        return {"mean of subject verb and object": by}
    if name == "spec-images":

        def likeliest(number, row):
            logits = [scored.logits(number, one, [row["caption"]])[0] for one in row["images"]]
            return np.argmax(logits) == row["label"]

        return {"text to image": scored.macro(likeliest, lambda split, row: split)}

    def logits(number, row, *names):
        captions = [
            one
            for name in names
            for one in (row[name] if isinstance(row[name], list) else [row[name]])
        ]
        box = tuple(map(int, row["bbox"])) if "bbox" in row else None
        return scored.logits(number, row["image"], captions, box)

    def every(positives, negatives):
        return lambda *row: min(logits(*row, *positives)) > max(logits(*row, *negatives))

    if name == "sugarcrepe++":
        right = every(["caption", "hard_positive"], ["hard_negative"])
        values = {"ITT": scored.macro(right, lambda split, row: split)}
        for subset in dict.fromkeys(split for split, _, _ in scored.rows):
            of_subset = [
                right(number, row) for split, number, row in scored.rows if split == subset
            ]
            values[f"ITT {subset}"] = float(np.mean(of_subset))
        return values
    if name == "dci":  # run_clip_dense_cap_eval.py: the least of five above the negative
        return {"pick5": scored.share(every(["positives"], ["negatives"]))}
    if name == "bla":
        right = every(["true_1", "true_2"], ["false_1", "false_2"])
        return {"both true above both false": scored.macro(right, lambda split, row: split)}
    if name == "vl-checklist":

        def first(number, row):
            return logits(number, row, "positives")[0] > logits(number, row, "negatives")[0]

        right = every(["positives"], ["negatives"])
        return {
            "first against first": scored.macro(first, lambda split, row: row["category"]),
            "all against all": scored.macro(right, lambda split, row: row["category"]),
        }
    if name == "negbench":
        names = [f"caption_{at}" for at in range(4)]
        return {
            "accuracy": scored.share(
                lambda number, row: np.argmax(logits(number, row, *names)) == row["correct_answer"]
            )
        }
    if name == "spec":
        return {
            "image to text": scored.macro(
                lambda number, row: np.argmax(logits(number, row, "captions")) == row["label"],
                lambda split, row: split,
            )
        }
    assert name == "crepe"
    everything, values = scored.rows, {}
    for kind in ("atom", "swap", "negate"):
        scored.rows = [one for one in everything if one[0] == kind]
        right = every(["caption"], ["hard_negatives"])
        values[f"{kind} R@1"] = scored.macro(right, lambda split, row: row["category"])
    return values


@pytest.mark.parametrize("name", READERS)
def test_figures_of_a_benchmark_that_was_built_are_its_authors(name, images, tmp_path):
    source = annotations_of(name, tmp_path / "published")
    output = tmp_path / "built"
    arguments = ["build", str(output), "--benchmark", name, "--annotations", str(source)]
    done = CliRunner().invoke(app, [*arguments, "--images", str(images)])
    assert done.exit_code == 0, done.output
    to = tmp_path / "result"
    done = CliRunner().invoke(
        app, ["evaluate", "shapes_clip", "--dataset", str(output), "--output", str(to)]
    )
    assert done.exit_code == 0, done.output
    assert "as its authors count" in done.output
    result = EvaluationResult.load(to)
    expected = expected_built(name, Scored(result, built_rows(output)))
    found = {value.figure.title: value.estimate.value for value in result.authors}
    assert found == pytest.approx(expected, abs=1e-12)
    assert any(0 < value < 1 for value in expected.values())
    ties = [figures["tie_rate"] for figures in result.metrics["as_published"].values()]
    assert name == "mmvp-vlm" or max(ties) > 0


def test_dci_has_photographs_and_regions_with_a_margin_as_its_authors_cut_them(images, tmp_path):
    source = annotations_of("dci", tmp_path / "published")
    build_benchmark("dci", tmp_path / "built", [images], source, progress=False)
    rows = built_rows(tmp_path / "built")["test"]
    # Without rows 2 and 3, and the region of row 1.
    assert len(rows) == 2 * (NUMBER - 2) - 1
    of_first = [row for row in rows if row["image_id"] == "sa_0.jpg"]
    assert [row["category"] for row in of_first] == ["photograph", "region"]
    # 250 x 230 with int(37.5) and int(34.5) on each side, within 320 x 240.
    assert [row["bbox"] for row in of_first] == [[0, 0, 320, 240], [13, 0, 307, 240]]
    assert of_first[1]["positives"] == dci_entry(0)["summaries"]["m-3-sc"]
    assert of_first[1]["negatives"] == dci_entry(0)["negatives"]["m-3-sc"]["swaps"][:1]


def test_missing_images_are_named_and_left_out_where_asked(images, tmp_path):
    source = annotations_of("bla", tmp_path / "published")
    some = tmp_path / "some"
    some.mkdir()
    for row in range(10):
        (some / f"{row}.jpg").write_bytes(picture(row))
    with pytest.raises(
        FileNotFoundError, match=r"all 24, got 14 that are missing, .* for 42 of 69"
    ):
        build_benchmark("bla", tmp_path / "whole", [some], source, progress=False)
    assert not (tmp_path / "whole").exists()
    counts = build_benchmark("bla", tmp_path / "part", [some], source, partial=True, progress=False)
    assert counts[""] == 42 and sum(counts.values()) == 69
    (some / "3.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"Expected 3\.jpg to be a whole image"):
        build_benchmark("bla", tmp_path / "bad", [some], source, partial=True, progress=False)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("name", READERS)
def test_other_annotations_are_refused_with_what_to_get(name, images, tmp_path):
    source = annotations_of(name, tmp_path / "published")
    for path in [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]:
        path.write_text('[{"other": 1}]' if path.suffix == ".json" else "other,columns\n1,2\n3,4\n")
    with pytest.raises(
        ValueError, match=f"Expected .* to hold the annotations of {name}".replace("+", r"\+")
    ):
        build_benchmark(name, tmp_path / "built", [images], source, progress=False)


# --- files ---


def test_all_are_there_and_listed():
    assert set(known_benchmarks()) >= REQUIRED
    printed = CliRunner().invoke(app, ["benchmarks"], env={"COLUMNS": "80"}).stdout
    for name, benchmark in known_benchmarks().items():
        assert f" {name} " in printed
        shown = CliRunner().invoke(app, ["benchmarks", name], env={"COLUMNS": "80"}).stdout
        assert benchmark.title in shown and benchmark.paper in shown
    listed = json.loads(CliRunner().invoke(app, ["benchmarks", "--json"]).stdout)
    assert [one["name"] for one in listed] == list(known_benchmarks())


def test_the_bundled_world_is_as_its_file_says():
    comparisons = read_comparisons(load_splits("shapes"))
    shapes = known_benchmarks()["shapes"]
    assert (shapes.rows, shapes.images) == (len(comparisons), len(comparisons.pictures))


def test_what_must_be_built_is_said_before_anything_starts():
    done = CliRunner().invoke(app, ["evaluate", "shapes_clip", "--dataset", "bla"])
    assert done.exit_code == 1
    assert "Expected the rows of bla to be built first" in done.output
    assert "--benchmark bla --annotations" in done.output


def test_a_folder_and_a_benchmark_of_one_name_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "valse").mkdir()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["evaluate", "shapes_clip", "--dataset", "valse"])
    assert "Expected valse to be a benchmark or a folder, got both" in done.output


GOOD = """\
title: Mine
about: Which is true?
paper: https://example.org
licence: MIT
compared: 1 + 1
parts:
  test: {id: me/mine, split: test}
columns:
  positives: [caption]
  negatives: [false_caption]
figures:
  - {title: accuracy, figure: original_accuracy}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("licence: MIT\n", "", r"line 1, to have a valid licence, got: Field required"),
        (
            "licence: MIT",
            "licence: MIT\nlicense: MIT",
            r"line 5, to have a valid license, got: Unex",
        ),
        ("licence: MIT", "licence: MIT\nlicence: BSD", r"line 5, to be YAML with each key once"),
        ("split: test", "split: 3", r"line 7, to have a valid parts\.test\.split, got: .*string"),
        ("original_accuracy", "accuracy", r"line 12, to have a valid figures\.0\.figure"),
        ("positives:", "positive:", r"line 1, to have a valid benchmark, got: Name columns among"),
        ("parts:", "build: by hand\nparts:", r"Give either parts or build"),
        ("  - {title", "  - {title: accuracy, figure: set_accuracy}\n  - {title", r"another title"),
        ("title: Mine", "title: [", r"line \d+, to be YAML"),
        (GOOD, "- a list", "line 1, to be the keys of a benchmark, got list"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(tmp_path, old, new, message):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert read_benchmark(path).name == "mine"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"mine\.yaml, .*" + message):
        read_benchmark(path)


def write_own_rows(folder: Path) -> Path:
    """A folder with a true and a false caption for each picture."""
    rows = many(
        image=cell,
        caption=lambda row: texts(row, 2)[0],
        false_caption=lambda row: texts(row, 2)[1],
    )
    features = Features(image=Image(), caption=Value("string"), false_caption=Value("string"))
    data = folder / "data" / "test-00000-of-00001.parquet"
    Dataset.from_list(rows, features=features).to_parquet(data)
    return data.parent


def test_the_steps_of_contributing_add_a_benchmark(tmp_path, monkeypatch):
    steps = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [file] = re.findall(r"```yaml\n(.*?)```", steps, flags=re.DOTALL)
    file = textwrap.dedent(file).replace("me/mine", str(write_own_rows(tmp_path)))
    (tmp_path / "mine.yaml").write_text(file)
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"`hard-positives ([^`]*mine\.yaml)`", steps)
    checked, scored = (CliRunner().invoke(app, shlex.split(command)) for command in commands)
    assert checked.exit_code == 0, checked.output
    assert "test: 24 rows" in checked.output and "Not in the file: images, size." in checked.output
    assert scored.exit_code == 0, scored.output
    assert "mine.yaml, as its authors count" in scored.output


def test_a_file_of_your_own_is_checked_and_scored(tmp_path):
    folder = write_own_rows(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace("me/mine", str(folder)).replace("1 + 1", "1 + 1\nrows: 9"))
    done = CliRunner().invoke(app, ["benchmarks", "--check", str(path)])
    assert done.exit_code == 0, done.output
    assert "test: 24 rows" in done.output
    assert f"'{texts(0, 2)[0]}' is true of picture 0 (40 x 30)" in done.output.replace("\n", " ")
    assert "The file says 9 rows; there are 24." in done.output
    assert "Not in the file: images, size, published." in done.output
    assert "▄" not in done.output  # blocks without colours are no picture
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    console.print(checked_benchmark(read_benchmark(path)))
    red, green, blue = PILImage.open(io.BytesIO(cell(0)["bytes"])).convert("RGB").getpixel((0, 0))
    assert f"48;2;{red};{green};{blue}m▄" in console.file.getvalue()
    done = CliRunner().invoke(app, ["evaluate", "shapes_clip", "--dataset", str(path), "--json"])
    assert done.exit_code == 0, done.output
    [accuracy] = json.loads(done.stdout)["authors"]
    assert (accuracy["title"], accuracy["count"]) == ("accuracy", 24)
    refused = CliRunner().invoke(
        app,
        ["evaluate", "shapes_clip", "--dataset", str(path), "--positive", "a", "--negative", "b"],
    )
    assert "Expected columns to be left out for" in refused.output
