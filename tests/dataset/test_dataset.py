"""The data: published pairs to rows, images to what is scored, rows to a Parquet folder."""

import copy
import hashlib
import http.server
import io
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Image as ImageFeature
from filelock import FileLock
from PIL import Image

from attacks.dataset import annotation_flips, hostile_inputs
from attacks.trials import run_attack
from hard_positives_dataset import HardPositives, build_parquet, parquet
from hard_positives_dataset.annotations import (
    read_annotation_dir,
    read_triples,
    substitution,
)
from hard_positives_dataset.builder import FEATURES
from hard_positives_dataset.content import ContentHash, content_of
from hard_positives_dataset.flaws import DOUBTS, FLAWS, count_doubts, doubts_of, text_flaws
from hard_positives_dataset.folders import read_regular_file
from hard_positives_dataset.images import MAX_IMAGE_BYTES, open_image_bytes
from hard_positives_dataset.shapes import generate_rows

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HARD_POSITIVES_DATA", ROOT.parent / "shared" / "data")) / "replace"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="HARD_POSITIVES_DATA names no folder")

# The annotations made here are none that were ever published.
pytestmark = pytest.mark.filterwarnings("ignore:Expected the annotations to be the published")

ATTRIBUTES, RELATIONS = "vl_checklist_attributes.json", "vl_checklist_relations.json"
SWAP = "visual_genome_attribution.json"


def replace_row(image, caption, positive, negative, folder="VG_100K"):
    path = f"data/{folder}/{image}.jpg"
    base = {"image_id": str(image), "image_path": path, "false_caption": negative}
    return {**base, "true_caption": caption}, {**base, "true_caption": positive}


def swap_row(image, box, caption, positive, negative):
    base = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), box, strict=True))
    base |= {"image_path": f"{image}.jpg", "attributes": ["a", "b"], "false_caption": negative}
    return {**base, "true_caption": caption}, {**base, "true_caption": positive}


ATTRIBUTE_ROWS = [
    replace_row(1, "white dog", "ivory dog", "black dog"),
    replace_row(2, "old <b>café</b> “x”", "aged <b>café</b> “x”", 'new "café" & \u4e2d'),
    replace_row(1, "white  cat ", "ivory  cat ", "ivory dog"),
    replace_row(3, "covered cup", "covecrimson cup", "bare cup", "VG_100K_2"),
]
RELATION_ROWS = [
    replace_row(2, "cup on top of table", "cup on table", "cup under table"),
    replace_row(4, "man in car", "man within car", "man in car", "VG_100K_2"),
    replace_row(4, "man in bus", "man within bus", "man within bus", "VG_100K_2"),
    replace_row(2, "cup on top of table", "cup on table", "cup under table"),
]
SWAP_ROWS = [
    swap_row(5, (10, 5, 30, 20), "a and b", "b and a", "c"),
    swap_row(6, (0, 0, 20, 20), "d and e", "e and d", "f"),
    swap_row(5, (-8, -6, 30, 20), "g and h", "h and g", "i"),
    swap_row(5, (10, 5, 30, 20), "j and k", "k and j", "l"),
    swap_row(5, (10, 5, 30, 20), "a and b", "b and a", "c"),
]


def write_annotations(folder, layout=("original", "hard_positive"), **changed):
    files = {ATTRIBUTES: ATTRIBUTE_ROWS, RELATIONS: RELATION_ROWS, SWAP: SWAP_ROWS, **changed}
    for side, name in enumerate(layout):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, rows in files.items():
            text = json.dumps([row[side] for row in rows])
            (folder / name / file).write_text(text, encoding="utf-8")
    return folder


def jpeg(number, orientation=None, size=(60, 40)):
    # A gradient: rotation, flips and crops of it all differ.
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    picture.putpixel((3, 3), (number * 20, 255, 0))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


PICTURES = {number: jpeg(number, 6 if number in (3, 6) else None) for number in range(1, 7)}


def tree_name(number):
    return f"{'VG_100K' if number in (1, 2, 5) else 'VG_100K_2'}/{number}.jpg"


@pytest.fixture
def annotations(tmp_path):
    return write_annotations(tmp_path / "annotations")


@pytest.fixture
def images(tmp_path):
    for number, content in PICTURES.items():
        path = tmp_path / "images" / tree_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "images"


@pytest.fixture
def builder(tmp_path):
    def make(annotations, *images, splits=("replace", "swap"), partial=False):
        return HardPositives(
            cache_dir=str(tmp_path / "cache"),
            config_name="visual_genome",
            annotation_dir=annotations,
            images=list(images),
            splits=list(splits),
            partial=partial,
        )

    return make


def raw(rows):
    """Rows with the images' stored bytes."""
    return list(rows.cast_column("image", ImageFeature(decode=False)))


def stream(builder):
    return {split: raw(rows) for split, rows in builder.as_streaming_dataset().items()}


# The published files


@pytest.fixture(scope="module")
def published():
    return read_triples(read_annotation_dir(DATA, ("replace",)), "replace")


@needs_data
def test_published_files_give_the_known_counts(published):
    assert Counter(t.category for t in published) == {"attribute": 10_575, "relation": 16_868}
    assert len({t.image_path for t in published}) == 8_041
    captions = {c for t in published for c in (t.caption, t.hard_positive, t.hard_negative)}
    assert len(captions) == 50_891


FLAW_COUNTS = {
    ("relation", "negative_equals_caption"): 15,
    ("attribute", "negative_equals_hard_positive"): 1,
    ("attribute", "negative_is_synonym"): 15,
    ("attribute", "contradicted"): 6,
    ("relation", "contradicted"): 4,
    ("attribute", "duplicate"): 186,
    ("relation", "duplicate"): 1_403,
    ("attribute", "substring_accident"): 10,
    ("relation", "substring_accident_in_negative"): 24,
    ("relation", "relation_named_twice"): 14,
}


@needs_data
def test_published_flaws_are_counted(published):
    assert Counter((t.category, flaw) for t in published for flaw in t.flaws) == FLAW_COUNTS
    clean = Counter(t.category for t in published if not t.flaws)
    assert clean == {"attribute": 10_357, "relation": 15_414}


@needs_data
def test_published_flaws_are_the_rows_that_were_read_one_by_one(published):
    found = {
        flaw: {int(t.id[-5:]) for t in published if flaw in t.flaws}
        for flaw in ("negative_is_synonym", "relation_named_twice", "contradicted")
    }
    assert found == {
        "negative_is_synonym": {
            *(8985, 9031, 9129, 9334, 9532, 9590, 9790, 9847, 9925, 10117, 10272),  # sizes
            *(10414, 10445, 10528, 10545),  # cloudless, of what is no sky
        },
        "relation_named_twice": {
            *(2062, 5451, 7219, 8424, 9975, 10301, 11308, 11874, 12899, 13745, 13746, 14796),
            *(15339, 15461),
        },
        "contradicted": {863, 1446, 1601, 3748, 5867, 7557, 10304, 10305, 11295, 14104},
    }
    accidents = [t for t in published if "substring_accident_in_negative" in t.flaws]
    words = {word for t in accidents for word in t.hard_negative.split()}
    assert {"wout", "plaout", "abovecarriage", "machout", "sout", "lout"} <= words
    known = {word for t in published for word in t.caption.split()}
    pieces = {word for word in words - known if "out" in word or word.startswith("of")}
    others = [t for t in published if pieces & set(t.hard_negative.split()) and t not in accidents]
    assert pieces and not others


@needs_data
def test_published_doubts_are_counted_as_the_card_says(published):
    counts = count_doubts(published)
    assert counts == {
        **{"nearby_for_beside": 10, "nearby_for_in_under_on": 301, "negative_may_hold": 59},
        **{"near_colour": 569, "article_lost_by_negative": 701, "thing_beside_itself": 143},
        **{"on_top_of_for_above": 273, "within_front_of": 335, "within_clothes": 364},
        **{"in_for_wearing_accessories": 311, "unclouded_for_clear": 28},
        **{"ivory_or_ebony_people": 14, "wrong_article": 138, "next_to_to": 2},
        "several_negatives": 1_756,
    }


def test_the_card_of_the_dataset_states_these_counts():
    card = (ROOT / "hard_positives_dataset" / "README.md").read_text()
    for flaw in FLAWS:
        row = next(line for line in card.splitlines() if line.startswith(f"| `{flaw}`"))
        stated = [int(cell.replace(",", "")) for cell in row.split("|")[2:4]]
        assert stated == [FLAW_COUNTS.get((kind, flaw), 0) for kind in ("attribute", "relation")]
    for name, doubt in DOUBTS.items():
        assert re.search(rf"\| `{name}` \| [\d,]+ \| {re.escape(doubt.says)} \|", card)


@pytest.mark.parametrize(
    ("flaw", "row", "neighbour"),
    [
        ("negative_equals_caption", ("A  b", "c b", "a b "), ("a b", "c b", "ab")),
        ("negative_equals_hard_positive", ("a b", "c b", "C b"), ("a b", "c b", "cb")),
        *(
            ("negative_is_synonym", row, ("small cat", "tiny cat", "thin cat"))
            for row in [
                ("small cat", "tiny cat", "little cat"),
                ("large cat", "big cat", "huge cat"),
                ("clear  glass", "unclouded  glass", "cloudless glass"),
            ]
        ),
        (
            "negative_is_synonym",
            ("big cat in big hat", "large cat in large hat", "huge cat in huge hat"),
            ("big cat in big hat", "large cat in large hat", "huge cat in tiny hat"),
        ),
        ("substring_accident", ("wetsuit", "dampsuit", "a"), ("wet suit", "damp suit", "a")),
        (
            "substring_accident_in_negative",
            ("wine in glass", "wine within glass", "wout ofe out of glass"),
            ("wine in glass", "wine within glass", "wine out of glass"),
        ),
        (
            "substring_accident_in_negative",
            ("smoke under undercoat", "smoke beneath undercoat", "smoke above abovecoat"),
            ("smoke under undercoat", "smoke beneath undercoat", "smoke above undercoat"),
        ),
        (
            "relation_named_twice",
            ("trees behind behind", "trees to the rear of behind", "a"),
            ("man behind behindhand man", "man to the rear of behindhand man", "a"),
        ),
        (
            "relation_named_twice",
            ("hill by wall by lake", "hill near wall near lake", "a"),
            ("man by man on hill", "man near man on hill", "a"),
        ),
    ],
)  # fmt: skip
def test_each_flaw_of_texts_has_a_neighbour_that_is_none(flaw, row, neighbour):
    assert flaw in set(text_flaws(*row, "relation"))
    assert flaw not in set(text_flaws(*neighbour, "relation"))


def test_two_things_of_one_colour_are_no_flaw():
    assert not list(
        text_flaws("red cat on red mat", "crimson cat on crimson mat", "b", "attribute")
    )


@pytest.mark.parametrize(
    ("flaw", "row", "neighbour"),
    [
        ("contradicted", ("f", "g", "A  b"), ("f", "g", "ab")),
        ("duplicate", ("a b ", "c b", "D"), ("a b", "c b", "e")),
    ],
)
def test_spaces_and_case_make_no_other_row(builder, tmp_path, images, flaw, row, neighbour):
    first = replace_row(1, "a b", "c b", "d")
    rows = [first, replace_row(1, *row), replace_row(1, *neighbour), replace_row(2, *row)]
    folder = write_annotations(tmp_path / "x", **{ATTRIBUTES: rows, RELATIONS: []})
    marked = read_triples(read_annotation_dir(folder, ("replace",)), "replace")
    assert [triple.flaws for triple in marked] == [(), (flaw,), (), ()]


@pytest.mark.parametrize(
    ("doubt", "row", "neighbour"),
    [
        (
            "nearby_for_beside",
            ("cat by pot", "cat near pot", "cat nearby pot"),
            ("cat by pot", "cat near pot", "cat far from pot"),
        ),
        (
            "nearby_for_in_under_on",
            ("cat in pot", "cat within pot", "cat nearby pot"),
            ("cat by pot", "cat near pot", "cat nearby pot"),
        ),
        (
            "negative_may_hold",
            ("man holding cup", "man grasping cup", "man using cup"),
            ("man holding cup", "man grasping cup", "man hitting cup"),
        ),
        (
            "near_colour",
            ("white cup", "ivory cup", "cream colored cup"),
            ("white cup", "ivory cup", "red cup"),
        ),
        (
            "article_lost_by_negative",
            ("cat in a pot", "cat within a pot", "cat out of pot"),
            ("cat in a pot", "cat within pot", "cat out of pot"),
        ),
        (
            "thing_beside_itself",
            ("a tree in the tree", "a tree within the tree", "a tree out of the tree"),
            ("street light in street", "street light within street", "street light out of street"),
        ),
        (
            "on_top_of_for_above",
            ("a above b", "a on top of b", "c"),
            ("a above b", "a over b", "c"),
        ),
        (
            "within_front_of",
            ("cat in front of bus", "cat within front of bus", "c"),
            ("cat in front", "cat within front", "c"),
        ),
        (
            "within_clothes",
            ("man in red shirt", "man within red shirt", "c"),
            ("man in shirt shop", "man within shirt shop", "c"),
        ),
        (
            "in_for_wearing_accessories",
            ("man wearing a ring", "man in a ring", "c"),
            ("man wearing a shirt", "man in a shirt", "c"),
        ),
        (
            "unclouded_for_clear",
            ("clear glass", "unclouded glass", "c"),
            ("clear sky", "unclouded sky", "c"),
        ),
        (
            "ivory_or_ebony_people",
            ("black man", "ebony man", "c"),
            ("black mantle", "ebony mantle", "c"),
        ),
        ("wrong_article", ("a white cup", "a ivory cup", "c"), ("a red cup", "a crimson cup", "c")),
        (
            "next_to_to",
            ("man near to bus", "man next to to bus", "c"),
            ("man near tower", "man next to tower", "c"),
        ),
    ],
)
def test_each_doubt_has_a_neighbour_that_is_none(doubt, row, neighbour):
    assert doubt in doubts_of(*row)
    assert doubt not in doubts_of(*neighbour)


def test_every_doubt_has_its_test():
    marks = test_each_doubt_has_a_neighbour_that_is_none.pytestmark
    assert [case[0] for case in marks[0].args[1]] == list(DOUBTS)


@needs_data
def test_published_captions_stay_byte_for_byte(published):
    for category, file in (("attribute", ATTRIBUTES), ("relation", RELATIONS)):
        rows = [t for t in published if t.category == category]
        original = json.loads((DATA / "original" / file).read_bytes())
        positive = json.loads((DATA / "hard_positive" / file).read_bytes())
        assert [t.id for t in rows] == [f"replace-{category}-{i:05d}" for i in range(len(rows))]
        assert [t.caption for t in rows] == [row["true_caption"] for row in original]
        assert [t.hard_positive for t in rows] == [row["true_caption"] for row in positive]
        assert [t.hard_negative for t in rows] == [row["false_caption"] for row in original]


@needs_data
def test_published_substitutions_are_recovered(published):
    table = Counter((t.category, t.substitution) for t in published)
    attributes = {
        **{"white > ivory": 2740, "black > ebony": 1789, "blue > sapphire": 1253},
        **{"brown > chestnut": 946, "red > crimson": 827, "green > emerald": 754},
        **{"large > big": 571, "small > tiny": 358, "long > lengthy": 270},
        **{"silver > metallic": 241, "standing > upright": 153, "big > large": 146},
        **{"sitting > seated": 88, "walking > strolling": 64, "wet > damp": 62},
        **{"smiling > happy": 50, "old > aged": 46, "clear > unclouded": 43},
        **{"eating > ingesting": 41, "young > youthful": 36, "huge > big": 31},
        **{"hanging > dangling": 29, "looking > gazing": 27},
    }
    clean = Counter(
        t.substitution
        for t in published
        if t.category == "attribute" and "substring_accident" not in t.flaws
    )
    assert clean == attributes
    relations = {name: number for (kind, name), number in table.items() if kind == "relation"}
    assert relations == {
        **{"in > within": 6173, "wearing > in": 3591, "behind > to the rear of": 1057},
        **{"holding > grasping": 950, "on top of > on": 683, "near > next to": 657},
        **{"sitting > seated": 639, "next to > near": 621, "under > beneath": 467},
        **{"by > near": 394, "wears > in": 385, "hanging > dangling": 382},
        **{"above > on top of": 298, "walking > strolling": 288},
        **{"riding > traveling on": 245, "riding > traveling": 38},
    }


@pytest.mark.parametrize(
    ("caption", "hard_positive", "expected"),
    [
        ("same", "same", ""),
        ("cup on top of table", "cup on table", "on top of > on"),
        ("of table", "table", "of table > table"),
        ("in box in bag", "within box within bag", "in > within"),
        ("wetsuit", "dampsuit", "wetsuit > dampsuit"),
        ("a  white cup ", "a  ivory cup ", "white > ivory"),
        ("trees behind behind", "trees to the rear of behind", "behind > to the rear of"),
    ],
)
def test_substitution_names_what_changed(caption, hard_positive, expected):
    assert substitution(caption, hard_positive) == expected


def test_flaws_are_found_by_rule(builder, annotations, images):
    rows = stream(builder(annotations, images))
    flaws = {r["id"]: r["flaws"] for split in rows.values() for r in split if r["flaws"]}
    assert flaws == {
        "replace-attribute-00002": ["contradicted"],
        "replace-attribute-00003": ["substring_accident"],
        "replace-relation-00001": ["negative_equals_caption"],
        "replace-relation-00002": ["negative_equals_hard_positive"],
        "replace-relation-00003": ["duplicate"],
        "swap-00004": ["duplicate"],
    }


def test_another_box_is_another_image(builder, tmp_path, images):
    one = swap_row(5, (0, 0, 9, 9), "a", "b", "c")
    other = swap_row(5, (0, 0, 9, 8), "a", "b", "c")
    rows = stream(
        builder(write_annotations(tmp_path / "x", **{SWAP: [one, other]}), images, splits=["swap"])
    )
    assert [row["flaws"] for row in rows["swap"]] == [[], []]


# Rows and their order


def test_rows_of_one_image_stand_together_in_order_of_appearance(builder, annotations, images):
    rows = stream(builder(annotations, images))
    assert [(r["image_id"], r["id"][8:]) for r in rows["replace"]] == [
        *(("1", "attribute-00000"), ("1", "attribute-00002"), ("2", "attribute-00001")),
        *(("2", "relation-00000"), ("2", "relation-00003"), ("3", "attribute-00003")),
        *(("4", "relation-00001"), ("4", "relation-00002")),
    ]
    assert [(r["image_id"], r["id"]) for r in rows["swap"]] == [
        *(("5", "swap-00000"), ("5", "swap-00003"), ("5", "swap-00004"), ("5", "swap-00002")),
        ("6", "swap-00001"),
    ]


def test_odd_characters_survive(builder, annotations, images, tmp_path):
    folder = build_parquet(
        builder(annotations, images).as_streaming_dataset(), tmp_path / "out", progress=False
    )
    rows = datasets.load_dataset(str(folder), split="replace", cache_dir=str(tmp_path / "c"))
    row = next(row for row in rows if row["id"] == "replace-attribute-00001")
    assert (row["caption"], row["hard_positive"], row["hard_negative"]) == (
        "old <b>café</b> “x”",
        "aged <b>café</b> “x”",
        'new "café" & \u4e2d',
    )


def test_class_stream_and_parquet_folder_give_the_same_rows(builder, annotations, images, tmp_path):
    made = builder(annotations, images)
    made.download_and_prepare()
    streamed = stream(made)
    folder = build_parquet(made.as_streaming_dataset(), tmp_path / "out", progress=False)
    for split in ("replace", "swap"):
        kept = raw(made.as_dataset(split=split))
        read = datasets.load_dataset(str(folder), split=split, cache_dir=str(tmp_path / "c"))
        live = datasets.load_dataset(str(folder), split=split, streaming=True)
        assert kept == streamed[split] == raw(read) == raw(live)
        assert read.features == made.info.features


def test_zip_tree_and_flat_folder_give_the_same_rows(builder, annotations, images, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, content in PICTURES.items():
        (flat / f"{number}.jpg").write_bytes(content)
    zips = [tmp_path / "images.zip", tmp_path / "images2.zip"]
    for path, folder in zip(zips, ("VG_100K", "VG_100K_2"), strict=True):
        with zipfile.ZipFile(path, "w") as file:
            for number, content in PICTURES.items():
                if tree_name(number).startswith(folder + "/"):
                    file.writestr(tree_name(number), content)
    expected = stream(builder(annotations, images))
    assert stream(builder(annotations, flat)) == expected
    assert stream(builder(annotations, *zips)) == expected
    assert stream(builder(annotations, images / "VG_100K", zips[1])) == expected


def test_published_folder_names_are_accepted_too(builder, tmp_path, annotations, images):
    published = write_annotations(tmp_path / "clone", ("data", "swapped_data"))
    assert stream(builder(published, images)) == stream(builder(annotations, images))


# What is scored


def test_whole_images_keep_their_bytes_unless_exif_would_turn_them(builder, annotations, images):
    rows = {
        row["image_id"]: row["image"] for row in stream(builder(annotations, images))["replace"]
    }
    assert [rows[str(n)]["bytes"] == PICTURES[n] for n in (1, 2, 3, 4)] == [True, True, False, True]
    assert {image["path"] for image in rows.values()} == {None}
    turned = builder(annotations, images).as_streaming_dataset()["replace"]
    seen = next(row["image"] for row in turned if row["image_id"] == "3")
    expected = Image.open(io.BytesIO(PICTURES[3])).convert("RGB")
    assert expected.getexif()[0x0112] == 6  # The fixture asks for a turn.
    assert (seen.size, seen.tobytes()) == (expected.size, expected.tobytes())


def test_crops_have_the_pixels_of_the_published_loader(builder, annotations, images):
    rows = builder(annotations, images, splits=["swap"]).as_streaming_dataset()["swap"]
    for row in rows:
        x, y, width, height = row["bbox"]
        whole = Image.open(io.BytesIO(PICTURES[int(row["image_id"])])).convert("RGB")
        crop = whole.crop((x, y, x + width, y + height))
        assert (row["image"].size, row["image"].tobytes()) == (crop.size, crop.tobytes())
        assert not row["image"].getexif()


def test_a_file_of_an_images_name_in_the_working_directory_is_not_read(
    builder, annotations, images, tmp_path, monkeypatch
):
    expected = stream(builder(annotations, images))
    (tmp_path / "1.jpg").write_bytes(jpeg(9))
    monkeypatch.chdir(tmp_path)
    assert stream(builder(annotations, images)) == expected


def test_an_edited_input_gets_another_cache(builder, annotations, images):
    first = builder(annotations, images).config_id
    assert builder(annotations, images).config_id == first
    (images / tree_name(1)).write_bytes(jpeg(8))
    second = builder(annotations, images).config_id
    write_annotations(annotations, **{SWAP: SWAP_ROWS[:1]})
    third = builder(annotations, images).config_id
    assert len({first, second, third, builder(annotations, images, splits=["swap"]).config_id}) == 4


@pytest.mark.skipif(
    int(datasets.__version__.split(".")[0]) >= 4, reason="datasets 4 and later run no scripts"
)
def test_datasets_3_runs_the_builder_as_a_script(builder, annotations, images, tmp_path):
    loaded = datasets.load_dataset(
        str(ROOT / "hard_positives_dataset" / "builder.py"),
        "visual_genome",
        trust_remote_code=True,
        annotation_dir=str(annotations),
        images=[str(images)],
        cache_dir=str(tmp_path / "script"),
    )
    assert {split: raw(rows) for split, rows in loaded.items()} == stream(
        builder(annotations, images)
    )


# Bad annotations


def changed(rows, position, side=None, **fields):
    """Copies of rows, one of them with other fields; a field of None is dropped."""
    rows = [tuple(dict(row) for row in pair) for pair in rows]
    for row in rows[position] if side is None else [rows[position][side]]:
        row.update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del row[name]
    return rows


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (changed(ATTRIBUTE_ROWS, 1, true_caption=None), r"no field true_caption in 1 row \(r"),
        (changed(ATTRIBUTE_ROWS, 2, 1, image_id=1), "image_id of type int instead of str"),
        (changed(ATTRIBUTE_ROWS, 0, true_caption="\ud800"), "not valid Unicode"),
        (changed(ATTRIBUTE_ROWS, 0, image_path="/etc/1.jpg"), "absolute image_path in 1 row"),
        (changed(ATTRIBUTE_ROWS, 0, image_path="data/../1.jpg"), r"'\.\.' in 1 row"),
        (changed(ATTRIBUTE_ROWS, 0, image_path="http://x/1.jpg"), "URL scheme"),
        (changed(ATTRIBUTE_ROWS, 0, image_path="data\\1.jpg"), "backslash"),
        (changed(ATTRIBUTE_ROWS, 3, 1, false_caption="z"), "another false_caption in 1 row"),
    ],
)  # fmt: skip
def test_bad_replace_rows_are_named(builder, tmp_path, images, rows, match):
    folder = write_annotations(tmp_path / "bad", **{ATTRIBUTES: rows})
    with pytest.raises(ValueError, match=match):
        builder(folder, images).as_streaming_dataset()


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (changed(SWAP_ROWS, 0, bbox_w=None), "no field bbox_w"),
        (changed(SWAP_ROWS, 0, bbox_w=True), "bbox_w of type bool"),
        (changed(SWAP_ROWS, 0, bbox_w=2.5), "bbox_w of type float"),
        (changed(SWAP_ROWS, 0, bbox_w=2**31), "32-bit"),
        (changed(SWAP_ROWS, 1, 1, bbox_y=3), r"another bbox_y in 1 row \(swap-00001\)"),
    ],
)
def test_bad_swap_rows_are_named(builder, tmp_path, images, rows, match):
    folder = write_annotations(tmp_path / "bad", **{SWAP: rows})
    with pytest.raises(ValueError, match=match):
        builder(folder, images).as_streaming_dataset()


def test_where_swap_negatives_differ_the_hard_positive_files_counts(builder, tmp_path, images):
    rows = changed(SWAP_ROWS, 0, 0, false_caption="another")
    folder = write_annotations(tmp_path / "x", **{SWAP: rows})
    assert stream(builder(folder, images))["swap"][0]["hard_negative"] == "c"


def test_shifted_and_shortened_files_are_refused(builder, annotations, images):
    path = annotations / "hard_positive" / RELATIONS
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(rows[1:] + rows[:1]))
    with pytest.raises(ValueError, match=r"another image_path in \d rows \(replace-relation"):
        builder(annotations, images).as_streaming_dataset()
    path.write_text(json.dumps(rows[1:]))
    with pytest.raises(ValueError, match="one length, got 4 original and 3 hard positive"):
        builder(annotations, images).as_streaming_dataset()
    path.write_text(json.dumps({"rows": rows}))
    with pytest.raises(ValueError, match="JSON list of rows, got dict"):
        builder(annotations, images).as_streaming_dataset()
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match="got lists or objects nested without end"):
        builder(annotations, images).as_streaming_dataset()
    os.truncate(path, 2**26 + 1)
    with pytest.raises(
        ValueError, match=r"to be an annotation file, got a file of 67,108,865 byte"
    ):
        builder(annotations, images)
    path.write_text("[{")
    with pytest.raises(ValueError, match="to be JSON in UTF-8"):
        builder(annotations, images).as_streaming_dataset()
    path.write_text(json.dumps(rows))
    assert stream(builder(annotations, images))


@needs_data
def test_the_published_files_pass_without_a_word(builder, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = builder(DATA, images, splits=["replace"])
    assert "the published files of commit" in made.info.description


def test_files_that_are_not_the_published_ones_are_built_with_a_warning(
    annotations, images, tmp_path
):
    pytest.importorskip("torch")  # where the dataset is tested alone, there is no command line
    command = ["build", tmp_path / "out", "--annotations", annotations, "--images", images]
    done = child("-m", "hard_positives", *command, cwd=tmp_path, HF_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    [told] = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert told.startswith("Warning: Expected the annotations to be the published files of commit")
    assert "got others: data/vl_checklist_attributes.json, swapped_data/" in told
    card = (tmp_path / "out" / "README.md").read_text()
    assert "NOT the published files; these differ: data/vl_checklist_attributes.json" in card
    assert "Doubtful rows are not marked. Among those of `replace`" in card


def test_absent_splits_and_unknown_names_say_what_to_do(builder, annotations, images):
    (annotations / "original" / SWAP).unlink()
    with pytest.raises(FileNotFoundError, match=f"{SWAP} .split swap.*Get them from https"):
        builder(annotations, images)
    assert stream(builder(annotations, images, splits=["replace"]))
    with pytest.raises(ValueError, match=r"out of \['replace', 'swap'\], got \['train'\]"):
        builder(annotations, images, splits=["train"])
    with pytest.raises(TypeError, match="Expected images to be a list"):
        HardPositives(config_name="visual_genome", annotation_dir=annotations, images="images")


# Bad images


def test_missing_images_are_counted_before_one_is_read(builder, annotations, images):
    (images / tree_name(2)).unlink()
    (images / tree_name(4)).unlink()
    (images / tree_name(1)).write_bytes(b"")  # Would fail, were it read.
    with pytest.raises(
        FileNotFoundError, match=r"no image file in 5 rows \(replace-attr.*2 images"
    ):
        builder(annotations, images, splits=["replace"]).download_and_prepare()


def test_partial_leaves_out_rows_without_an_image_and_tells_how_many(builder, annotations, images):
    whole = list(builder(annotations, images, splits=["replace"]).as_streaming_dataset()["replace"])
    (images / tree_name(2)).unlink()
    some = builder(annotations, images, splits=["replace"], partial=True)
    with pytest.warns(UserWarning, match="5 of 8 rows of `replace`"):
        rows = list(some.as_streaming_dataset()["replace"])
    assert [row["id"] for row in rows] == [row["id"] for row in whole if row["image_id"] != "2"]
    assert "5 of 8 rows of `replace`" in some.info.description
    for number in (1, 3, 4):
        (images / tree_name(number)).unlink()
    with pytest.raises(FileNotFoundError, match="no image file in 8 rows"):
        builder(annotations, images, splits=["replace"], partial=True).as_streaming_dataset()


def test_unreadable_images_are_counted_together(builder, annotations, images):
    (images / tree_name(1)).write_bytes(PICTURES[1][:-200])
    (images / tree_name(4)).write_bytes(b"<html>not found</html>")
    made = builder(annotations, images, splits=["replace"])
    match = r"truncated or damaged image in 2 rows \(.*\); a file that is no JPEG, .* in 2 rows"
    with pytest.raises(ValueError, match=match):
        made.download_and_prepare()
    with pytest.raises(ValueError, match=match):
        stream(made)
    (images / tree_name(1)).write_bytes(PICTURES[1])
    (images / tree_name(4)).write_bytes(PICTURES[4])
    assert len(stream(made)["replace"]) == 8


def encoded(form, size=(8, 8), **options):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, form, **options)
    return buffer.getvalue()


def blank_png(width, height, *more):
    """A PNG of zeros that takes a thousandth of its pixels, with chunks more before the pixels."""
    rows = zlib.compress(bytes(height * (width + 1)), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_formats_of_photographs_are_opened(form):
    assert open_image_bytes(encoded(form)).size == (8, 8)


def test_an_image_of_as_many_pixels_as_allowed_is_opened():
    assert open_image_bytes(blank_png(2**16, 2**10)).size == (65_536, 1_024)


TEXT_BOMB = (b"zTXt", b"bomb\0\0" + zlib.compress(bytes(10_000_000)))


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"", "a file that is no JPEG, PNG, WEBP, GIF or BMP image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a file that is no JPEG"),
        (encoded("TIFF"), "a file that is no JPEG"),
        (encoded("PPM"), "a file that is no JPEG"),
        (encoded("PNG", (99, 99))[:-40], "a truncated or damaged image"),
        (blank_png(4, 4, TEXT_BOMB), "a truncated or damaged image"),
        (blank_png(8193, 8192), r"an image of 8193 x 8192 pixels, more than 67,108,864 in all"),
        (blank_png(13_000, 13_000), "an image of 13000 x 13000 pixels"),
        (blank_png(14_000, 14_000), "an image of more than 67,108,864 pixels"),
        (encoded("GIF")[:6] + b"\xff" * 4 + encoded("GIF")[10:], "an image of .*pixels"),
        (bytes(MAX_IMAGE_BYTES + 1), "a file of 67,108,865 bytes, more than 67,108,864"),
    ],
)  # fmt: skip
def test_what_is_no_photograph_is_told_in_a_phrase_before_memory_is_spent(content, phrase):
    with pytest.raises(ValueError, match=f"^{phrase}"):
        open_image_bytes(content)


def test_only_regular_files_within_a_size_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    os.mkfifo(tmp_path / "fifo")
    assert read_regular_file(tmp_path / "file", 4) == b"1234"
    for path, phrase in {
        tmp_path / "file": "a file of 4 bytes, more than 3",
        tmp_path / "fifo": "a FIFO",
        tmp_path: "a folder",
        "/dev/zero": "a device",
    }.items():
        with pytest.raises(ValueError, match=f"^{phrase}"):
            read_regular_file(path, 3)
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "none", 3)


@pytest.mark.parametrize(
    ("box", "match"),
    [
        ((5, 5, 0, 9), "an empty box in 1 row"),
        ((5, 5, 9, -1), "an empty box"),
        ((60, 0, 5, 5), "a box outside the image"),
        ((-5, 0, 5, 5), "a box outside the image"),
        ((0, 0, 2**30, 2**30), "a box far larger"),
    ],
)
def test_boxes_that_cut_nothing_out_are_named(builder, tmp_path, images, box, match):
    rows = [*SWAP_ROWS, swap_row(6, box, "a", "b", "c")]
    folder = write_annotations(tmp_path / "x", **{SWAP: rows})
    with pytest.raises(ValueError, match=match + r".*swap-00005"):
        stream(builder(folder, images, splits=["swap"]))


def test_a_link_out_of_the_folder_is_refused_before_it_is_opened(builder, annotations, images):
    outside = images.parent / "outside.jpg"
    (images / tree_name(1)).rename(outside)
    (images / tree_name(1)).symlink_to(outside)
    os.truncate(outside, 0)  # Would be told as damaged, were it opened.
    with pytest.raises(ValueError, match=r"a link out of it in 2 rows \(replace-attribute-00000"):
        builder(annotations, images).as_streaming_dataset()
    (images / tree_name(1)).unlink()
    (images / "real.jpg").write_bytes(PICTURES[1])
    (images / tree_name(1)).symlink_to(images / "real.jpg")
    assert stream(builder(annotations, images))


def test_sources_that_are_no_folder_or_zip_are_refused(builder, annotations, images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"existing folders or zip files, got .*nowhere"):
        builder(annotations, tmp_path / "nowhere")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"folders or zip files, got .*cut\.zip, which is neither"):
        builder(annotations, tmp_path / "cut.zip")


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_sources_that_never_end_are_refused_unopened(builder, annotations, images, tmp_path, kind):
    source = "/dev/zero"
    if kind == "fifo":
        source = tmp_path / "fifo.zip"
        os.mkfifo(source)
    with pytest.raises(ValueError, match=r"folders or zip files, got .*, which is neither"):
        builder(annotations, source)
    (images / tree_name(1)).unlink()
    (images / tree_name(1)).symlink_to(source)
    with pytest.raises(
        FileNotFoundError, match=r"no image file in 2 rows \(replace-attribute-00000"
    ):
        builder(annotations, images).as_streaming_dataset()
    (annotations / "original" / ATTRIBUTES).unlink()
    (annotations / "original" / ATTRIBUTES).symlink_to(source)
    with pytest.raises(FileNotFoundError, match=f"{ATTRIBUTES} .split replace"):
        builder(annotations, images)


def zip_of(path, number, content, **options):
    """All pictures in a zip, one of them with another content or written in another way."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for place, picture in PICTURES.items():
            changed = place == number
            file.writestr(
                tree_name(place), content if changed else picture, **(options if changed else {})
            )
    return path


def patched(path, *changes):
    """Replace bytes behind a marker, counted from the last or first place of the marker."""
    data = bytearray(path.read_bytes())
    for marker, nth, offset, new in changes:
        places = [found.start() for found in re.finditer(re.escape(marker), bytes(data))]
        start = places[nth] + offset
        data[start : start + len(new)] = new
    path.write_bytes(data)


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


@pytest.mark.parametrize(
    ("phrase", "changes"),
    [
        ("a file encrypted in its zip", [(CENTRAL, 0, 8, b"\x01")]),
        ("a file compressed by another method than deflate", [(CENTRAL, 0, 10, b"\x0e")]),
        ("a file damaged in its zip", [(LOCAL, 0, 0, b"PX")]),
        ("a file damaged in its zip", [(LOCAL, 0, 30, b"XX")]),
        ("a file damaged in its zip", [(CENTRAL, 0, 16, b"\0\0\0\0")]),
        ("a file damaged in its zip", [(CENTRAL, 0, 24, b"\x09\0\0\0")]),
        ("a file of 4,294,967,294 bytes, more than 67", [(CENTRAL, 0, 24, b"\xfe\xff\xff\xff")]),
    ],
)
def test_members_of_a_zip_that_cannot_be_used_are_named(
    builder, annotations, tmp_path, phrase, changes
):
    path = zip_of(tmp_path / "images.zip", 1, PICTURES[1])
    made = builder(annotations, path, splits=["replace"])
    assert len(stream(made)["replace"]) == 8
    patched(path, *changes)
    match = rf"{phrase}.* in 2 rows \(replace-attribute-00000, .*first is VG_100K/1.jpg in .*s.zip"
    with pytest.raises(ValueError, match=match):
        stream(builder(annotations, path, splits=["replace"]))


@pytest.mark.parametrize("content", [bytes(2**27), blank_png(13_000, 13_000)])
def test_bombs_in_a_zip_are_refused_before_they_are_unpacked(
    builder, annotations, tmp_path, content
):
    path = zip_of(tmp_path / "images.zip", 1, content)
    assert path.stat().st_size < 500_000
    made = builder(annotations, path, splits=["replace"])
    with pytest.raises(ValueError, match=r"a(n image| file) of .*, more than 67.* in 2 rows"):
        stream(made)


def test_a_damaged_directory_of_a_zip_is_told(builder, annotations, tmp_path):
    path = zip_of(tmp_path / "images.zip", 1, PICTURES[1])
    patched(path, (CENTRAL, 2, 0, b"PX"))
    with pytest.raises(ValueError, match=r"images.zip to be a whole zip, got a damaged directory"):
        builder(annotations, path).as_streaming_dataset()


def test_no_bit_flip_in_annotations_is_accepted_without_a_word(tmp_path):
    tally = run_attack(annotation_flips(8, 8), range(8), jobs=0, scratch=tmp_path)
    assert (tally.verdicts.total(), tally.wrong) == (8, [])


def test_no_hostile_path_image_or_zip_is_accepted_without_a_word(tmp_path):
    numbers = range(0, 120, 3)
    tally = run_attack(hostile_inputs(40, 120), numbers, jobs=0, scratch=tmp_path)
    assert (tally.verdicts, tally.wrong) == ({"refused": 40}, [])


# Downloads

DOWNLOAD = """
import sys
from dataclasses import replace
from hard_positives_dataset import HardPositives, annotations, builder
server, cache = sys.argv[1:]
builder.ANNOTATION_URL = server + "/{folder}/{file_name}"
builder.IMAGE_URLS = (server + "/images.zip",)
def blob_ids(pair):
    contents = [(folder, pair.file_name) for folder in builder.PUBLISHED_FOLDERS]
    return tuple(annotations.git_blob_id(open("/".join(c), "rb").read()) for c in contents)
if not cache.endswith("spoiled"):
    pairs = annotations.PUBLISHED_PAIRS
    builder.PUBLISHED_PAIRS = [replace(pair, blob_ids=blob_ids(pair)) for pair in pairs]
made = HardPositives(config_name="visual_genome", cache_dir=cache)
made.download_and_prepare()
streamed = made.as_streaming_dataset()
print({split: [len(made.as_dataset(split)), len(list(streamed[split]))] for split in streamed})
"""


@pytest.fixture
def server(tmp_path):
    folder = write_annotations(tmp_path / "site", ("data", "swapped_data"))
    with zipfile.ZipFile(folder / "images.zip", "w") as file:
        for number, content in PICTURES.items():
            file.writestr(tree_name(number), content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def child(*arguments, cwd, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0", **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_without_folders_the_published_files_are_downloaded_and_checked(server, tmp_path):
    folder, url = server
    home = {"HF_HOME": str(tmp_path / "home")}
    done = child("-c", DOWNLOAD, url, tmp_path / "cache", cwd=folder, **home)
    assert "{'replace': [8, 8], 'swap': [5, 5]}" in done.stdout, done.stderr
    failed = child("-c", DOWNLOAD, url, tmp_path / "spoiled", cwd=folder, **home)
    assert "to have the git blob id 8502f610" in failed.stderr
    assert failed.returncode


# The Parquet folder


BUILD = """
import sys
from hard_positives_dataset import HardPositives, build_parquet, parquet
annotations, images, output, group = sys.argv[1:]
parquet.GROUP_BYTES = parquet.SHARD_BYTES = int(group)
made = HardPositives(config_name="visual_genome", annotation_dir=annotations, images=[images],
                     splits=["replace"], cache_dir=output + "-cache")
print("start", flush=True)
build_parquet(made.as_streaming_dataset(), output, progress=False)
"""


@pytest.fixture
def large(tmp_path):
    """600 images of noise with four rows each: a build that takes a moment."""
    images, rows = tmp_path / "large", []
    images.mkdir()
    for number in range(600):
        noise = Image.effect_noise((160, 120), 10 + number / 10)
        noise.save(images / f"{number}.jpg")
        rows += [replace_row(number, f"white {i}", f"ivory {i}", f"red {i}") for i in range(4)]
    annotations = write_annotations(tmp_path / "annotations", **{ATTRIBUTES: rows, RELATIONS: []})
    return annotations, images


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_and_the_next_gives_the_same_bytes(large, tmp_path):
    arguments = [*large, tmp_path / "whole", 1_000_000]
    assert child("-c", BUILD, *arguments, cwd=tmp_path).returncode == 0
    expected, output, partial = contents(tmp_path / "whole"), tmp_path / "out", 0
    assert len(expected) > 3  # Several shards and the card.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments[2] = output
    for moment in (0.05, 0.3, 0.5):
        command = [sys.executable, "-c", BUILD, *map(str, arguments)]
        running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert running.stdout.readline() == "start\n"
        while not list(tmp_path.glob(".out.incomplete/data/*")) and running.poll() is None:
            time.sleep(0.005)
        time.sleep(moment / 2)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        partial += (tmp_path / ".out.incomplete").exists()
        assert not output.exists() or contents(output) == expected
        if output.exists():  # A fast machine: the build was done before the signal.
            break
    assert partial  # At least one was killed at work.
    if not output.exists():
        assert child("-c", BUILD, *arguments, cwd=tmp_path).returncode == 0
    assert contents(output) == expected
    assert not (tmp_path / ".out.incomplete").exists()


def test_each_image_is_stored_once(large, builder, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_BYTES", 2_000_000)
    annotations, images = large
    made = builder(annotations, images, splits=["replace"])
    folder = build_parquet(made.as_streaming_dataset(), tmp_path / "out", progress=False)
    size = sum(path.stat().st_size for path in (folder / "data").iterdir())
    distinct = sum(path.stat().st_size for path in images.iterdir())
    assert distinct < size <= 1.05 * distinct
    file = pq.ParquetFile(next((folder / "data").iterdir()))
    assert file.num_row_groups > 5
    assert all(file.metadata.row_group(i).num_rows % 4 == 0 for i in range(file.num_row_groups))


READ = """
import sys
sys.modules["hard_positives_dataset"] = None
import datasets
folder, cache = sys.argv[1:]
kept = datasets.load_dataset(folder, split="replace", cache_dir=cache)
live = list(datasets.load_dataset(folder, split="replace", streaming=True))
assert [row["caption"] for row in live] == kept["caption"][:]
print(len(live), live[0]["image"].size, set(datasets.load_dataset(folder, cache_dir=cache)))
"""


def test_the_folder_is_read_with_nothing_of_ours(builder, annotations, images, tmp_path):
    made = builder(annotations, images)
    folder = build_parquet(made.as_streaming_dataset(), tmp_path / "out", progress=False)
    (tmp_path / "elsewhere").mkdir()
    done = child(
        "-I", "-c", READ, folder, tmp_path / "c", cwd=tmp_path / "elsewhere", PYTHONPATH=""
    )
    assert done.stdout.startswith("8 (60, 40)"), done.stderr
    card = (folder / "README.md").read_text()
    assert "| `replace` | 8 | attribute 4, relation 4 | 4 | 18 | 3 |" in card
    assert "NOT the published files" in card and "CC BY 4.0" in card and "@inproceedings" in card


def card_metadata(folder):
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_the_card_states_the_content_of_each_split_as_anybody_reads_it(
    builder, annotations, images, tmp_path
):
    made = builder(annotations, images)
    folder = build_parquet(made.as_streaming_dataset(), tmp_path / "out", progress=False)
    stated = card_metadata(folder)["hard_positives"]["content_sha256"]
    assert list(stated) == ["replace", "swap"]
    for split, digest in stated.items():
        rows = datasets.load_dataset(str(folder), split=split, cache_dir=str(tmp_path / "c"))
        digests = [hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in raw(rows)]
        by_hand = ContentHash()
        for row, image in zip(raw(rows), digests, strict=True):
            by_hand.add({**row, "image": image})
        assert digest == by_hand.hexdigest() == content_of(rows) == content_of(rows, digests)
        assert digest in (folder / "README.md").read_text().split("---\n")[2]


@pytest.mark.parametrize("column", ["id", "image", "caption", "image_id", "bbox", "flaws"])
def test_any_other_cell_is_another_content(builder, annotations, images, column):
    rows = stream(builder(annotations, images))["swap"]
    other = copy.deepcopy(rows)
    value = {"image": {"bytes": PICTURES[1], "path": None}, "bbox": None, "flaws": ["duplicate"]}
    other[1][column] = value.get(column, "other")
    assert (
        len({content_of(datasets.Dataset.from_list(part, FEATURES)) for part in (rows, other)}) == 2
    )


def test_the_bundled_worlds_card_states_its_content():
    folder = ROOT / "hard_positives_dataset"
    stated = card_metadata(folder)["hard_positives"]["content_sha256"]
    rows = datasets.load_dataset(str(folder))
    assert stated == {split: content_of(part) for split, part in rows.items()}


def test_what_stands_in_the_output_folder_is_never_overwritten(
    builder, annotations, images, tmp_path
):
    rows = builder(annotations, images).as_streaming_dataset()
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="to be absent or an empty folder"):
        build_parquet(rows, output, progress=False)
    assert contents(output) == {"mine.txt": b"mine"}
    (output / "mine.txt").unlink()
    lock = FileLock(tmp_path / ".out.lock")
    with lock, pytest.raises(FileExistsError, match="another process that is writing it"):
        build_parquet(rows, output, progress=False)
    assert build_parquet(rows, output, progress=False) == output
    with pytest.raises(FileExistsError):
        build_parquet(rows, output, progress=False)


@pytest.mark.parametrize("name", ["br[ack]*ets", "what?", "in*/out", "a::b"])
def test_a_folder_that_could_not_be_loaded_is_not_made(
    builder, annotations, images, tmp_path, name
):
    rows = builder(annotations, images).as_streaming_dataset()
    with pytest.raises(ValueError, match=r"path to have no \*, \?, \[ or ::, got .*"):
        build_parquet(rows, tmp_path / name, progress=False)
    assert not (tmp_path / name).parent.exists() or list(tmp_path.glob(".*")) == []
    folder = build_parquet(rows, tmp_path / "a {b} (c)", progress=False)
    loaded = datasets.load_dataset(str(folder), split="replace", cache_dir=str(tmp_path / "c"))
    assert len(loaded) == 8


def test_an_error_in_the_rows_leaves_nothing(builder, annotations, images, tmp_path):
    (images / tree_name(4)).write_bytes(PICTURES[4][:-200])
    with pytest.raises(ValueError, match="truncated"):
        build_parquet(
            builder(annotations, images).as_streaming_dataset(), tmp_path / "out", progress=False
        )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out.inc", "out"))]


def test_a_full_disk_is_told_and_leaves_nothing(builder, large, tmp_path):
    annotations, images = large
    rows = builder(annotations, images, splits=["replace"]).as_streaming_dataset()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"Expected room on the disk for .*File too large"):
            build_parquet(rows, tmp_path / "out", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.incomplete").exists()
    assert build_parquet(rows, tmp_path / "out", progress=False).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk_is_told_and_leaves_nothing(builder, large, tmp_path):
    annotations, images = large
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        rows = builder(annotations, images, splits=["replace"]).as_streaming_dataset()
        with pytest.raises(OSError, match=r"Expected room on the disk for .*No space left"):
            build_parquet(rows, disk / "out", progress=False)
        assert [path.name for path in disk.iterdir()] == [".out.lock"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_rows_that_no_folder_can_be_made_of_are_refused(tmp_path):
    columns = {"image": [Image.new("RGB", (4, 4))]}
    captions = {name: ["x"] for name in ("caption", "hard_positive", "hard_negative")}
    rows = datasets.Dataset.from_dict({**columns, **captions})
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="none called caption"):
        build_parquet({"train": datasets.Dataset.from_dict(columns)}, out)
    with pytest.raises(ValueError, match="split names to be letters"):
        build_parquet({"../train": rows}, out)
    with pytest.raises(ValueError, match="at least one split"):
        build_parquet({}, out)
    with pytest.raises(ValueError, match="to have rows, got none"):
        build_parquet({"train": rows.select([])}, out, progress=False)
    (tmp_path / "a.png").write_bytes(jpeg(1))
    path = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], **captions})
    with pytest.raises(ValueError, match="to carry its bytes"):
        build_parquet({"train": path.cast_column("image", ImageFeature())}, out, progress=False)
    assert not out.exists()
    assert build_parquet({"train": rows}, out, progress=False)


def test_the_rendered_world_comes_from_the_same_builder():
    builder = HardPositives(config_name="shapes", splits=["train"], num_rows=6, seed=1)
    rows = list(builder.as_streaming_dataset()["train"])
    assert len(rows) == 6
    assert set(rows[0]) == set(builder.info.features)
    assert rows[0]["image"].mode == "RGB"


def test_a_world_with_habits_comes_from_the_same_builder_and_has_a_cache_of_its_own():
    worlds = [
        HardPositives(config_name="shapes", splits=["swap"], num_rows=40, usual=usual)
        for usual in (0.0, 0.5)
    ]
    captions = [[row["caption"] for row in w.as_streaming_dataset()["swap"]] for w in worlds]
    assert captions[1] == [row["caption"] for row in generate_rows("swap", 40, usual=0.5)]
    assert captions[0] != captions[1]
    assert worlds[0].config_id != worlds[1].config_id


def test_a_training_split_without_a_size_is_an_error():
    with pytest.raises(ValueError, match="num_rows for the split train, got None"):
        HardPositives(config_name="shapes", splits=["train"])
    with pytest.raises(ValueError, match=r"out of \['replace', 'swap', 'train'\], got \['test'\]"):
        HardPositives(config_name="shapes", splits=["test"])


def test_the_bundled_world_is_what_the_builder_renders():
    bundled = datasets.load_dataset(str(ROOT / "hard_positives_dataset"))
    built = HardPositives(config_name="shapes").as_streaming_dataset()
    assert list(bundled) == ["replace", "swap"]
    for split, rows in bundled.items():
        rows = rows.cast_column("image", ImageFeature(decode=False))
        rendered = built[split].cast_column("image", ImageFeature(decode=False))
        assert list(rows) == list(rendered)
