import base64
import csv
import http.server
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from datasets import Dataset, Features, Image, Value, load_dataset
from PIL import Image as PILImage
from typer.testing import CliRunner

from hard_positives import LanguageModel, Rules, generate, read_captions
from hard_positives.cli import app
from hard_positives.generation import forms, on_disk
from hard_positives.generation.grammar import analyse
from hard_positives.generation.language_model import PROMPTS, checked
from hard_positives.generation.rules import LEXICON, slots, substitute
from hard_positives.generation.run import TASKS, Edit, changed_words, edit_rows, flaw_of
from hard_positives_dataset import parquet
from hard_positives_dataset.annotations import read_annotation_dir, read_triples
from hard_positives_dataset.content import content_of

posix = pytest.mark.skipif(os.name != "posix", reason="signals and FIFOs are otherwise there")
REPLACE_POSITIVE, REPLACE_NEGATIVE, SWAP_POSITIVE, SWAP_NEGATIVE = TASKS
DATA = Path(os.environ.get("HARD_POSITIVES_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the published annotations are absent")
CAPTIONS = [
    "A man holding a red umbrella and a white dog.",
    "two large dogs on an old sofa",
    "The paved road and the white car.",
    "A woman eating a donut and a man riding a horse.",
    "a black and white cat next to a laptop",
    "qwerty",
]


def positives(caption: str) -> set[str]:
    return {
        substitute(caption, slot, word) for slot in slots(caption) for word in slot.hard_positive
    }


def negatives(caption: str) -> set[str]:
    return {
        substitute(caption, slot, word) for slot in slots(caption) for word in slot.hard_negative
    }


# --- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a huge dog", "an enormous dog"),
        ("An old man.", "An elderly man."),
        ("man WEARING blue jeans", "man DRESSED IN blue jeans"),
        ("The woman is on the sofa", "The lady is on the sofa"),
        ("three ladies", "three women"),
        ("She attempts a jump", "She tries a jump"),
        ("a man who attempted a trick", "a man who tried a trick"),
        ("cat  on top of  a tv", "cat  atop  a tv"),
        ("a room with two bicycles", "a room with two bikes"),
    ],
)
def test_a_synonym_takes_the_place_number_tense_case_and_article_of_the_word(caption, expected):
    assert expected in positives(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a covered bridge",
        "a wetsuit",
        "greenery",
        "silverware",
        "a whiteboard",
        "a polar bear",
        "green beans",
        "the US Navy Blue Angels perform here",
    ],
)
def test_nothing_is_replaced_inside_a_longer_word_or_a_name(caption):
    assert positives(caption) == set()


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("woman in a vest", "woman within a vest"),  # published, and reads badly
        ("a book is sitting on a desk", "a book is seated on a desk"),
        ("a man holding up a sign", "a man grasping up a sign"),
        ("a cat on top of a tv", "a cat on top under a tv"),
        # Known to the lexicon, but more than the caption says, or what nobody says.
        ("a red car", "a crimson car"),
        ("two small boys", "two tiny boys"),
        ("a young boy", "a youthful boy"),
        ("a man on a sofa", "a gentleman on a sofa"),
        ("an empty stadium", "a vacant stadium"),
        ("seven planes", "seven aircrafts"),
        ("a tree near a lake", "a tree next to a lake"),
        ("a plane in a cloudy sky", "a plane in an overcast sky"),
        ("a bird flying through a tree", "a bird soaring through a tree"),
        ("people are sitting at a table and eating", "people sit at a table and eating"),
        ("two trains during the day time", "two trains in the daytime time"),
        ("a variety of items is shown", "various items is shown"),
        (
            "a street light stands in front of a shop",
            "a street light is standing in front of a shop",
        ),
        ("a store room holds sinks", "a store room grasps sinks"),
        # True as well, or not said.
        ("a pizza sitting on a plate", "a pizza lying on a plate"),
        ("birds eating at a feeder", "birds standing at a feeder"),
        ("a half empty bottle", "a half full bottle"),
        ("a laptop with a mouse attached", "a phone with a mouse attached"),
        ("a traffic light turns green on a corner", "a traffic light turns gray on a corner"),
        ("a cat looking out of a car", "a zebra looking out of a car"),
    ],
)
def test_a_word_is_not_offered_where_it_does_not_fit(caption, wrong):
    assert wrong not in positives(caption) | negatives(caption)


def test_no_article_is_left_before_a_word_that_takes_none():
    assert not {"a wine on a boat", "a milk on a boat"} & negatives("a beer on a boat")
    assert "wine on a boat" in negatives("beer on a boat")


def test_a_hard_negative_is_never_a_hard_positive_of_the_same_caption():
    words = [row for row in csv.DictReader(lexicon_lines(), delimiter="\t")]
    synonyms = {
        (row["kind"], row["word"], other)
        for row in words
        if row["relation"] == "synonym"
        for other in row["others"].split("|")
    }
    contrasts = {
        (row["kind"], row["word"], other)
        for row in words
        if row["relation"] == "contrast"
        for other in row["others"].split("|")
    }
    assert len(synonyms) > 250 and len(contrasts) > 1000
    assert synonyms & contrasts == set()


def lexicon_lines() -> list[str]:
    return [line for line in LEXICON.read_text("utf-8").splitlines() if line[0] != "#"]


def test_every_condition_of_the_lexicon_names_a_class_that_is_there():
    rows = list(csv.DictReader(lexicon_lines(), delimiter="\t"))
    classes = {row["word"] for row in rows if row["relation"] == "class"} | {"*", "noun"}
    named = {
        condition[1:]
        for row in rows
        for condition in row["condition"].split()
        if condition[0] in "@!~<"
    }
    assert named and named <= classes


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("The paved road and the white house.", "The white house and the paved road."),
        ("A man and a woman riding bikes.", "A woman and a man riding bikes."),
        ("a black and white cat", "a white and black cat"),
        ("A white and orange cat", "An orange and white cat"),
        ("a table with a knife and fork", "a table with a fork and knife"),
        ("a dog and a cup of coffee", "a cup of coffee and a dog"),
        ("toilet paper and black tiles", "black tiles and toilet paper"),  # not: black and paper
        (
            "A man riding a horse and a woman walking a dog.",
            "A woman walking a dog and a man riding a horse.",
        ),
        (
            "A child holding an umbrella and petting a yak",
            "A child petting a yak and holding an umbrella",
        ),
    ],
)
def test_what_stands_around_an_and_changes_places(caption, expected):
    assert Rules().edit(caption, SWAP_POSITIVE) == Edit(expected, "swap")


@pytest.mark.parametrize(
    "caption",
    [
        "a red car",
        "a dog on a bench and a cat",  # not: a dog on a cat and a bench
        "a man and his dog",  # not: his dog and a man
        "a red car and truck",  # is the truck red?
        "wearing a hat and a shirt with stripes",  # not: a shirt and a hat with stripes
        "two dogs and cats",
        "a double image of a singer and a dancer",  # one image of both
        "a body of water and mountains",
        "on top of a pile of dirt and rocks are two men",
        "a chicken and waffle sandwich",
        "a black and white photo",  # nobody says "a white and black photo"
        "hands holding and dialing a phone",
        "a room with brick walls and floor with two beds",
        "a kitchen with lots of wooden cabinetry and a stove top oven",
        "windows with blinds and no curtains",  # not: no curtains and (no) blinds
        "a small gray and black raccoon and some broccoli",
    ],
)
def test_an_and_whose_sides_cannot_change_places_safely_is_left_alone(caption):
    assert Rules().edit(caption, SWAP_POSITIVE) == Edit(reason="no_rule_applies")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A red car and a blue bus.", "A blue car and a red bus."),
        ("a large dog next to a small cat", "a small dog next to a large cat"),
        ("an old man and a young woman", "a young man and an old woman"),
        ("a man watching a woman", "a woman watching a man"),
        ("A dog behind a truck", "A truck behind a dog"),
        ("two dogs and three cats", "three dogs and two cats"),
        (
            "a man holding an umbrella while a woman reads",
            "a woman holding an umbrella while a man reads",
        ),
        ("a cat on a chair next to a table", "a cat on a table next to a chair"),
        ("The paved road and the white house.", None),  # who has seen a paved house?
        ("an old man with a red umbrella", None),
        ("A man holding an umbrella", None),
        ("A woman holding a man", "A man holding a woman"),
        ("a big dog next to a large cat", None),  # it would be true
        ("A dog is behind the trucks", None),  # the verb would not agree
        ("giraffes and ostriches", None),  # NegCLIP makes a caption that is still true
        ("a man next to a dog", None),
    ],
)
def test_attributes_or_objects_change_places_only_where_the_meaning_changes(caption, expected):
    assert Rules().edit(caption, SWAP_NEGATIVE).caption == expected


def test_one_word_carries_both_edits_where_one_word_allows_both():
    for caption in ("two puppies on an old sofa", "a red car and a blue bus", "a donut and a bike"):
        assert any(slot.hard_positive and slot.hard_negative for slot in slots(caption))
        for seed in range(5):
            edits = [Rules(seed).edit(caption, task).caption for task in TASKS[:2]]
            pairs = [changed_words(caption.split(), edit.split()) for edit in edits]
            assert pairs[0][0][-1] == pairs[1][0][-1], edits


def test_the_most_frequent_words_are_spared_where_another_can_be_replaced():
    captions = [f"a man on sofa {number}" for number in range(200)]
    edited = [Rules().edit(caption, REPLACE_POSITIVE).caption for caption in captions]
    kept = sum("man" in caption for caption in edited)
    assert 130 < kept < 200  # 85 % of 200 are 170; every second one without sparing
    assert Rules().edit("a man", REPLACE_POSITIVE).caption == "a guy"


def test_the_first_candidate_is_the_edit_and_none_comes_twice():
    for caption in CAPTIONS:
        for task in TASKS:
            edits = Rules().candidates(caption, task)
            assert Rules().edit(caption, task) == (edits or [Edit(reason="no_rule_applies")])[0]
            assert all(edit.caption and not edit.reason for edit in edits)
            forms = [tuple(edit.caption.lower().split()) for edit in edits]
            assert len({*forms, tuple(caption.lower().split())}) == len(edits) + 1


def test_candidates_are_all_offers_of_all_places():
    caption = CAPTIONS[1]
    for task, offered in ((REPLACE_POSITIVE, positives), (REPLACE_NEGATIVE, negatives)):
        edits = [edit.caption for edit in Rules().candidates(caption, task)]
        assert set(edits) == offered(caption) and len(edits) >= 2
    swaps = Rules().candidates("A red car, a blue bus and a white truck", SWAP_NEGATIVE)
    assert len(swaps) == 3
    assert Rules().candidates("qwerty", SWAP_NEGATIVE) == []


def test_edits_depend_on_the_seed_and_the_caption_alone():
    def edits(captions, seed):
        return {
            c: e.caption
            for c, e in zip(captions, Rules(seed).edit_batch(captions, TASKS[0]), strict=True)
        }

    captions = [*CAPTIONS, "a small sofa next to a bicycle", "a car and an airplane"]
    assert edits(captions, 0) == edits(captions[::-1], 0)
    assert edits(captions, 0) != edits(captions, 1)


def test_rules_pass_the_checks_that_language_models_must_pass():
    for caption in CAPTIONS:
        for task in TASKS:
            edit = Rules().edit(caption, task)
            assert edit.caption is None or flaw_of(caption, edit.caption, task) == ""


def test_the_tagger_knows_the_nouns_it_cannot_place():
    assert [token.tag for token in analyse("two giraffes and a kiwi")] == [
        "CRD",
        "NN2",
        "CJC",
        "AT0",
        "NN1",
    ]


@needs_data
def test_no_published_hard_positive_is_offered_as_a_hard_negative():
    triples = read_triples(read_annotation_dir(DATA / "replace", ("replace",)), "replace")[::10]
    offered = [negatives(triple.caption) for triple in triples]
    assert sum(map(bool, offered)) > 0.6 * len(triples)
    assert not [t for t, others in zip(triples, offered, strict=True) if t.hard_positive in others]


# --- reading --------------------------------------------------------------------------------------


def coco_file(folder: Path, captions: list[str]) -> Path:
    """Captions over two images, in COCO's form and in COCO's lack of order."""
    for number in (7, 9):
        PILImage.new("RGB", (8, 8), (number * 20, 0, 0)).save(folder / f"{number:012d}.jpg")
    content = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (7, 9)],
        "annotations": [
            {"id": 500 + n, "image_id": (7, 9)[n % 2], "caption": f"{caption}\n"}
            for n, caption in enumerate(captions)
        ],
    }
    path = folder / "captions_train2017.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def coco(tmp_path) -> Path:
    return coco_file(tmp_path, CAPTIONS[:4])


def test_coco_captions_are_read_with_rows_of_one_image_together(coco):
    rows = read_captions(coco).table.to_pylist()
    assert [row["id"] for row in rows] == ["500", "502", "501", "503"]
    assert [row["image_id"] for row in rows] == ["7", "7", "9", "9"]
    assert rows[0]["caption"] == CAPTIONS[0]


def test_published_hard_positives_are_joined_by_line_to_the_file_not_to_our_order(coco, tmp_path):
    published = tmp_path / "swap_hp.jsonl"
    lines = ["A white dog and a man.", "None", "c", "d"]
    published.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    captions = read_captions(coco).with_published(published, "hard_positive_swap")
    joined = dict(
        zip(
            captions.table["id"].to_pylist(),
            captions.table["hard_positive_swap"].to_pylist(),
            strict=True,
        )
    )
    assert joined == {"500": [lines[0]], "501": [], "502": ["c"], "503": ["d"]}


def test_published_hard_positives_of_another_length_or_form_are_refused(coco, tmp_path):
    published = tmp_path / "swap_hp.jsonl"
    published.write_text('"a"\n"b"\n"c"\n')
    with pytest.raises(ValueError, match=r"4 captions.*got 3 lines"):
        read_captions(coco).with_published(published, "hard_positive_swap")
    published.write_text('"a"\n"b"\nc\n"d"\n')
    with pytest.raises(ValueError, match=r"line 3 to be a JSON string, got 'c'"):
        read_captions(coco).with_published(published, "hard_positive_swap")


@needs_data
def test_negclips_own_table_gives_its_captions_and_its_negatives():
    captions = read_captions(DATA / "coco_negatives" / "valid_neg_clip.tsv")
    row = captions.table.slice(0, 1).to_pylist()[0]
    assert len(captions) == 4839
    assert row["caption"] == "A child holding a flowered umbrella and petting a yak."
    assert row["image_id"] == "184613"
    assert row["hard_negative_swap"][0].startswith("A umbrella holding a flowered child")


@pytest.mark.parametrize("given", [{"caption_column": "texts"}, {"image_column": "Pictures"}])
def test_a_column_that_was_named_and_is_not_there_is_an_error(given):
    dataset = Dataset.from_dict({"text": ["a"], "caption": ["a"], "picture": [None]})
    [(name, column)] = given.items()
    meant = {"caption_column": "text", "image_column": "picture"}[name]
    with pytest.raises(ValueError, match=rf"column {column!r}, .* Did you mean {meant}\?$"):
        read_captions(dataset, **given)


def test_a_dataset_may_hold_one_caption_a_row_or_several():
    one = Dataset.from_dict({"text": ["a", "b"], "id": ["x", "y"]})
    several = Dataset.from_dict({"caption": [["a", "b"], ["c"]]})
    assert read_captions(one, caption_column="text").table["id"].to_pylist() == ["x", "y"]
    read = read_captions(several).table
    assert read["id"].to_pylist() == ["row-0000000-0", "row-0000000-1", "row-0000001-0"]
    assert read["caption"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("captions", "ids", "message"),
    [
        (["a", "  "], ["1", "2"], r"an empty caption in 1 row \(2\)"),
        (["a", "b" * 1001], ["1", "2"], r"a caption of more than 1000 characters in 1 row \(2\)"),
        (["a", None], ["1", "2"], r"a NoneType instead of a text in 1 row \(2\)"),
        ([1, 2], ["1", "2"], r"a int instead of a text in 2 rows \(1, 2\)"),
        (["a", "b"], ["1", "1"], r"repeated id in 1 row \(1\)"),
        ([], [], "got none"),
    ],
)
def test_captions_that_are_no_use_are_counted_and_named(captions, ids, message):
    dataset = Dataset.from_dict({"caption": captions, "id": ids})
    with pytest.raises(ValueError, match=message):
        read_captions(dataset)


def test_a_source_that_is_not_there_or_of_another_form_is_named(tmp_path, coco):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt to be a file"):
        read_captions(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"column 'caption', got \['words'\]"):
        read_captions(Dataset.from_dict({"words": ["a"]}))
    other = tmp_path / "other.json"
    other.write_text("[]")
    with pytest.raises(ValueError, match="'annotations' and 'images', got list"):
        read_captions(other)
    with pytest.raises(FileNotFoundError, match=r"got none for 2 of 2 \(000000000007\.jpg"):
        read_captions(coco, images=tmp_path / "elsewhere")


def test_an_image_path_that_leads_out_of_the_folder_is_refused(coco):
    content = json.loads(coco.read_text())
    content["images"][0]["file_name"] = "../secret.jpg"
    coco.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"stay inside .*, got '\.\./secret\.jpg'"):
        read_captions(coco, images=coco.parent)


@pytest.mark.parametrize("kind", ["a link out", "a link to itself", "a path that is none"])
def test_an_image_behind_a_link_out_of_the_folder_is_refused(coco, kind):
    images = coco.parent / "images"
    images.mkdir()
    (coco.parent / "secret.jpg").write_bytes(b"private")
    names = {"a link out": "link.jpg", "a link to itself": "circle.jpg"}
    name = names.get(kind, "a\0b.jpg")
    (images / "link.jpg").symlink_to(coco.parent / "secret.jpg")
    (images / "circle.jpg").symlink_to(images / "circle.jpg")
    content = json.loads(coco.read_text())
    content["images"][0]["file_name"] = name
    coco.write_text(json.dumps(content))
    error, message = ValueError, rf"stay inside .*, got {re.escape(repr(name))}"
    if name == "circle.jpg" and sys.version_info >= (3, 13):  # no file that is there
        error, message = FileNotFoundError, r"got none for 2 of 2 \(circle\.jpg"
    with pytest.raises(error, match=message):
        read_captions(coco, images=images)


@posix
def test_an_image_that_is_no_regular_file_is_not_opened(coco):
    image = coco.parent / "000000000007.jpg"
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(FileNotFoundError, match=r"got none for 1 of 2 \(000000000007\.jpg\)"):
        read_captions(coco, images=coco.parent)


DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][2].pop("id"),
            r"annotations\[2\] of .* to have 'id' as a whole",
        ),
        (lambda c: c["annotations"][1].update(id=1.5), r"annotations\[1\] of .* to have 'id'"),
        (lambda c: c["annotations"][1].update(id=True), r"annotations\[1\] of .* to have 'id'"),
        (lambda c: c["annotations"][0].pop("image_id"), r"annotations\[0\] .* to have 'image_id'"),
        (lambda c: c["annotations"].insert(1, 7), r"annotations\[1\] of .* got 7"),
        (lambda c: c["images"][1].pop("id"), r"images\[1\] of .* to have 'id'"),
        (lambda c: c["images"][1].update(file_name=5), r"images\[1\] of .* 'file_name' as a text"),
        (lambda c: c["images"][1].update(id="7"), r"ids of their own, got '7' for"),
        (lambda c: c.update(images={}), r"'images' of .* to be a list, got dict"),
        (lambda c: c.update(annotations=None), r"'annotations' of .* to be a list, got NoneType"),
        (lambda c: c.update(annotations=[]), "captions, got none"),
        (lambda c: c["annotations"][0].update(caption=[1]), r"a list instead of a text .*\(500\)"),
        (lambda c: c["annotations"][0].update(caption="\ud800"), r"halves of characters .*\(500\)"),
        (lambda c: c["annotations"][0].update(id="\x1b[31m"), r"control .*\(\\x1b\[31m\)"),
    ],
)
def test_a_coco_file_with_missing_or_wrong_fields_is_refused_by_their_place(coco, change, message):
    content = json.loads(coco.read_text())
    change(content)
    coco.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_captions(coco)


@pytest.mark.parametrize("text", [DEEP, '{"annotations": [', "\x00", "\ud800"])
def test_a_coco_file_that_is_no_json_is_named(tmp_path, text):
    path = tmp_path / "captions.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"captions\.json to be a JSON file, got one that cannot"):
        read_captions(path)


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_a_coco_file_is_read_alike_in_pieces_of_any_size(coco, monkeypatch, piece):
    content = json.loads(coco.read_text())
    other = {"info": {"year": 2017, "of": [1, [23, None]]}, "licenses": [], "version": 12345}
    coco.write_text(json.dumps({**other, **content}, indent=1) + "\n", encoding="utf-8-sig")
    whole = read_captions(coco).table
    assert whole.num_rows == 4
    monkeypatch.setattr(forms, "_PIECE", piece)
    assert read_captions(coco).table == whole


@pytest.mark.parametrize(
    ("before", "after"),
    [("}], ", "}, ], "), ("}, {", "} {"), ('"id": ', '"id" '), ("}]}", "}]}}"), ("}]}", "}]")],
)
def test_a_coco_file_with_a_mark_too_few_or_too_many_is_named(coco, before, after):
    text = coco.read_text()
    assert before in text
    coco.write_text(text.replace(before, after))
    with pytest.raises(ValueError, match=r"to be a JSON file, got .* at character \d+\. Fetch it"):
        read_captions(coco)


@pytest.mark.parametrize(
    "cell",
    ["['a', 'b'", DEEP[:90_000], "-" * 90_000 + "1", "[5]", "'abc'", "", "{}", "['a\0']", "None"],
)
def test_a_negclip_line_without_a_list_of_texts_is_refused_by_its_line(tmp_path, cell):
    path = tmp_path / "captions.tsv"
    head = "title\tfilepath\tneg_caption\n"
    path.write_text(f"{head}a cat\timages/7.jpg\t['a dog']\na dog\timages/8.jpg\t{cell}\n")
    message = r"neg_caption in .*captions\.tsv, line 3 to be a list of"
    if "\0" in cell and sys.version_info < (3, 11):  # the library csv itself refuses it there
        message = r"captions\.tsv, line 3 to be a line of NegCLIP's table, got .* contains NUL"
    with pytest.raises(ValueError, match=message):
        read_captions(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a dog\timages/8.jpg\t" + "a" * 131_073, r"line 3 .*field larger than field limit"),
        ('"a dog\timages/8.jpg\t[]', r"line 3 .*unexpected end of data"),
        ("a dog", r"neg_caption in .*line 3"),
        ("a dog\t\t[]", r"filepath in .*line 3 to name an image"),
        ("\timages/8.jpg\t[]", r"an empty caption in 1 row \(line-0000001\)"),
    ],
)
def test_a_negclip_line_that_cannot_be_read_is_refused_by_its_line(tmp_path, line, message):
    path = tmp_path / "captions.tsv"
    head = "title\tfilepath\tneg_caption\n"
    path.write_text(f"{head}a cat\timages/7.jpg\t['a dog']\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_captions(path)


def test_the_mark_at_the_start_of_a_file_is_no_part_of_its_first_caption(tmp_path):
    text, table = tmp_path / "captions.txt", tmp_path / "captions.tsv"
    text.write_text("a cat\na dog\n", encoding="utf-8-sig")
    table.write_text("title\tfilepath\tneg_caption\na cat\t7.jpg\t[]\n", encoding="utf-8-sig")
    for path in (text, table):
        assert read_captions(path).table["caption"][0].as_py() == "a cat"


def test_text_that_is_not_utf_8_is_refused_by_its_line(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("a cat\na caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"captions\.txt to be text in UTF-8, got .* in line 2"):
        read_captions(path)


@pytest.mark.parametrize("unfit", ["\x00", "\x1b[31m", "\x9b", "\u202e", "\u2066", "\x7f"])
def test_control_characters_in_captions_are_refused_by_row(unfit):
    dataset = Dataset.from_dict({"caption": ["a cat", f"a{unfit} dog"], "id": ["1", "2"]})
    with pytest.raises(ValueError, match=r"control characters .* in 1 row \(2\)"):
        read_captions(dataset)


def test_blanks_of_all_kinds_and_any_script_stay_in_captions_byte_for_byte():
    captions = ["a\tcat", "a dog\non a sofa", "ein Käse", "赤い車", "a 🐕\u200d🦺 dog", "a\xa0b"]
    read = read_captions(Dataset.from_dict({"caption": captions})).table
    assert read["caption"].to_pylist() == captions


def test_an_id_of_zero_is_an_id():
    read = read_captions(Dataset.from_dict({"caption": ["a", "b"], "id": [0, 1]})).table
    assert read["id"].to_pylist() == ["0", "1"]


def test_a_published_file_that_is_nested_or_of_another_encoding_is_refused(coco, tmp_path):
    published = tmp_path / "swap_hp.jsonl"
    published.write_text(f'"a"\n{DEEP}\n"c"\n"d"\n')
    with pytest.raises(ValueError, match=r"line 2 to be a JSON string, got '\[\[\["):
        read_captions(coco).with_published(published, "hard_positive_swap")
    published.write_bytes(b'"a"\n"\xff"\n"c"\n"d"\n')
    with pytest.raises(ValueError, match=r"swap_hp\.jsonl to be text in UTF-8, got .* in line 2"):
        read_captions(coco).with_published(published, "hard_positive_swap")


def test_a_cut_parquet_dataset_is_named(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    Dataset.from_dict({"caption": CAPTIONS}).to_parquet(folder / "train.parquet")
    content = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        ValueError, match=r"rows to be a whole dataset, got .*train\.parquet cannot"
    ):
        read_captions(folder)


def rows_with_images(folder: Path, paths: list[str]) -> Path:
    """A Parquet folder whose rows name image files."""
    features = Features({"image": Image(), "caption": Value("string")})
    cells = [{"bytes": None, "path": path} for path in paths]
    rows = Dataset.from_dict({"image": cells, "caption": CAPTIONS[: len(paths)]}, features=features)
    folder.mkdir(exist_ok=True)
    pq.write_table(rows.data.table, folder / "train.parquet")
    return folder


def test_images_that_the_rows_of_a_folder_name_are_read_from_that_folder_only(tmp_path):
    inside, outside = tmp_path / "rows" / "7.jpg", tmp_path / "secret.jpg"
    inside.parent.mkdir()
    for image in (inside, outside):
        PILImage.new("RGB", (8, 8)).save(image)
    source = read_captions(rows_with_images(inside.parent, ["7.jpg"]))
    folder = generate(source, tmp_path / "train", Rules(), workers=1, progress=False)
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    content = rows.cast_column("image", Image(decode=False))[0]["image"]["bytes"]
    assert content == inside.read_bytes()
    for path in (str(outside), "../secret.jpg", "/dev/zero"):
        with pytest.raises(ValueError, match=r"regular files inside the dataset's folder, .*row 1"):
            read_captions(rows_with_images(inside.parent, ["7.jpg", path]))


@posix
def test_an_image_that_became_a_fifo_while_captions_were_edited_is_not_opened(coco):
    source = read_captions(coco, images=coco.parent)
    image = coco.parent / "000000000007.jpg"
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(ValueError, match=r"image of row 0 to be a file that can be read"):
        generate(source, coco.parent / "train", Rules(), workers=1, progress=False)


# --- running --------------------------------------------------------------------------------------


def source_of(captions: list[str]):
    ids = [f"caption-{place}" for place in range(len(captions))]
    return read_captions(Dataset.from_dict({"caption": captions, "id": ids}))


def loaded(folder: Path, cache: Path) -> list[dict]:
    return load_dataset(str(folder), split="train", cache_dir=str(cache)).to_list()


def test_a_training_set_has_the_benchmarks_columns_and_each_captions_edits(tmp_path):
    source = source_of(CAPTIONS)
    folder = generate(source, tmp_path / "train", Rules(), workers=1, progress=False)
    rows = loaded(folder, tmp_path / "cache")
    expected = []
    for caption in CAPTIONS:
        for kind in ("replace", "swap"):
            made = [Rules().edit(caption, task).caption for task in TASKS if task.kind == kind]
            if any(made):
                expected.append((f"caption-{CAPTIONS.index(caption)}-{kind}", caption, *made))
    columns = ("id", "caption", "hard_positive", "hard_negative")
    assert [tuple(row[name] for name in columns) for row in rows] == expected
    assert {row["category"] for row in rows if row["substitution"] == ""} == {"swap"}
    assert set(rows[0]) == {*columns, "category", "substitution", "image_id", "bbox", "flaws"}
    assert list(folder.parent.glob(".*")) == [tmp_path / ".train.lock"]


def test_the_counts_add_up_to_the_captions(tmp_path):
    folder = generate(source_of(CAPTIONS), tmp_path / "train", Rules(), workers=1, progress=False)
    record = json.loads((folder / "generation.json").read_text())
    assert {task: sum(n.values()) for task, n in record["counts"].items()} == {
        str(task): len(CAPTIONS) for task in TASKS
    }
    assert record["settings"]["num_captions"] == len(CAPTIONS)
    assert record["counts"]["hard_positive_swap"]["no_rule_applies"] == 2


def test_processes_change_nothing(tmp_path):
    captions = [f"{caption} number {n}" for n in range(400) for caption in CAPTIONS]
    folders = [
        generate(source_of(captions), tmp_path / str(n), Rules(), workers=n, progress=False)
        for n in (1, 2)
    ]
    files = [next(folder.glob("data/*.parquet")).read_bytes() for folder in folders]
    assert files[0] == files[1]


def test_images_are_stored_once_and_rows_of_one_image_stand_together(coco, tmp_path):
    source = read_captions(coco, images=coco.parent)
    folder = generate(source, tmp_path / "train", Rules(), workers=1, progress=False)
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["image"] == Image()
    images = rows.cast_column("image", Image(decode=False))
    content = {row["image_id"]: row["image"]["bytes"] for row in images}
    assert content == {str(n): (coco.parent / f"{n:012d}.jpg").read_bytes() for n in (7, 9)}
    assert [row["image_id"] for row in images] == sorted(rows["image_id"])


def test_images_of_a_dataset_come_along(tmp_path):
    pictures = [PILImage.new("RGB", (8, 8), (n, 0, 0)) for n in (10, 200)]
    features = Features({"image": Image(), "caption": [Value("string")]})
    dataset = Dataset.from_dict(
        {"image": pictures, "caption": [CAPTIONS[:2], CAPTIONS[2:3]]}, features=features
    )
    folder = generate(read_captions(dataset), tmp_path / "t", Rules(), workers=1, progress=False)
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    reds = {row["id"].rpartition("-")[0]: row["image"].getpixel((0, 0))[0] for row in rows}
    assert reds == {"row-0000000-0": 10, "row-0000000-1": 10, "row-0000001-0": 200}


def test_published_edits_replace_our_own_where_they_are_usable(coco, tmp_path):
    published = tmp_path / "swap_hp.jsonl"
    lines = ["A white dog and a red umbrella a man holding.", "None", "other words", "None"]
    published.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    source = read_captions(coco).with_published(published, "hard_positive_swap")
    folder = generate(source, tmp_path / "train", Rules(), workers=1, progress=False)
    rows = {
        row["id"]: row["hard_positive"]
        for row in loaded(folder, tmp_path / "cache")
        if row["category"] == "swap"
    }
    assert rows["500-swap"] == lines[0]
    assert set(rows.values()) == {lines[0]}
    counts = json.loads((folder / "generation.json").read_text())["counts"]["hard_positive_swap"]
    assert counts == {"edited": 1, "none_given": 2, "other_length": 1}


def test_a_hard_negative_that_equals_the_hard_positive_is_dropped():
    class Parrot(Rules):
        def edit_batch(self, captions, task):
            return [Edit("a crimson car", "attribute") for _ in captions]

    columns = edit_rows({"row": [0], "caption": ["a red car"]}, editor=Parrot())
    assert columns["hard_positive_replace"] == ["a crimson car"]
    assert columns["hard_negative_replace"] == [None]
    assert columns["hard_negative_replace_reason"] == ["equals_hard_positive"]


KILLED_RUN = """
import os, signal, sys
from datasets import Dataset
from hard_positives import Rules, generate, read_captions

class Killed(Rules):
    chunk_size = 10
    def edit_batch(self, captions, task):
        with open(sys.argv[2], "a") as log:
            log.write(f"{captions[0]}/{task}\\n")
        if str(task) == sys.argv[3] and captions[0].endswith(" 20"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().edit_batch(captions, task)

captions = [f"a cat and a dog on sofa {n}" for n in range(45)]
source = read_captions(Dataset.from_dict({"caption": captions}))
generate(source, sys.argv[1], Killed(), workers=1, progress=False)
"""


@pytest.mark.parametrize(
    "last_task", [str(TASKS[0]), pytest.param(str(TASKS[3]), marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_with_no_row_lost_or_twice(tmp_path, last_task):
    def run(task: str) -> int:
        arguments = [str(tmp_path / "train"), str(tmp_path / "log"), task]
        return subprocess.run([sys.executable, "-c", KILLED_RUN, *arguments]).returncode

    assert run(last_task) == -signal.SIGKILL
    assert not (tmp_path / "train").exists()
    assert run("never") == 0
    captions = [f"a cat and a dog on sofa {n}" for n in range(45)]
    whole = generate(
        read_captions(Dataset.from_dict({"caption": captions})),
        tmp_path / "whole",
        Rules(),
        workers=1,
        progress=False,
    )
    rows = loaded(tmp_path / "train", tmp_path / "cache")
    assert rows == loaded(whole, tmp_path / "cache")
    kinds = ("replace", "swap")
    assert [row["id"] for row in rows] == [
        f"row-{n:07d}-{kind}" for n in range(45) for kind in kinds
    ]
    started = Counter((tmp_path / "log").read_text().splitlines())
    assert started[f"{captions[0]}/{TASKS[0]}"] == 1, "a finished chunk was made again"
    assert started[f"{captions[20]}/{TASKS[0]}"] == 2


def test_a_finished_run_is_not_run_again_and_another_one_is_not_overwritten(tmp_path):
    class Counting(Rules):
        def edit_batch(self, captions, task):
            calls.append(task)
            return super().edit_batch(captions, task)

    calls: list = []
    generate(source_of(CAPTIONS), tmp_path / "train", Counting(), workers=1, progress=False)
    assert len(calls) == 4
    generate(source_of(CAPTIONS), tmp_path / "train", Counting(), workers=1, progress=False)
    assert len(calls) == 4
    with pytest.raises(FileExistsError, match="absent or empty"):
        generate(source_of(CAPTIONS), tmp_path / "train", Rules(seed=1), progress=False)


def test_an_unfinished_run_is_not_gone_on_with_under_other_settings(tmp_path):
    class Broken(Rules):
        def edit_batch(self, captions, task):
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError):
        generate(source_of(CAPTIONS), tmp_path / "train", Broken(), workers=1, progress=False)
    with pytest.raises(ValueError, match="got another seed"):
        generate(source_of(CAPTIONS), tmp_path / "train", Rules(seed=1), progress=False)
    with pytest.raises(ValueError, match="got another source_sha256, num_captions"):
        generate(source_of(CAPTIONS[1:]), tmp_path / "train", Rules(), progress=False)


def test_wrong_options_are_refused_before_any_work(tmp_path):
    for wrong in ({"workers": 0}, {"engine": "spark"}):
        with pytest.raises(ValueError, match="Expected engine to be one of"):
            generate(source_of(CAPTIONS), tmp_path / "train", Rules(), **wrong)
    assert list(tmp_path.iterdir()) == []


# --- resuming -------------------------------------------------------------------------------------


class InChunksOfTen(Rules):
    chunk_size = 10


class Stopping(InChunksOfTen):
    """Fails in the third chunk."""

    def edit_batch(self, captions, task):
        if captions[0].endswith(" 20"):
            raise RuntimeError("the power is gone")
        return super().edit_batch(captions, task)


NUMBERED = [f"a cat and a dog on sofa {n}" for n in range(45)]


def stopped_run(output: Path, captions=NUMBERED, seed: int = 0) -> list[Path]:
    """The two parts of a run that failed in its third chunk."""
    with pytest.raises(RuntimeError):
        generate(source_of(captions), output, Stopping(seed), workers=1, progress=False)
    return sorted(output.with_name(f".{output.name}.parts").glob("part-*"))


def resumed(output: Path) -> dict[str, bytes]:
    generate(source_of(NUMBERED), output, InChunksOfTen(), workers=1, progress=False)
    return contents(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_any_flipped_bit_in_any_part_leaves_the_bytes_of_an_undamaged_run(tmp_path):
    whole = resumed(tmp_path / "whole")
    stopped_run(tmp_path / "stopped")
    chance = random.Random(0)
    for number in range(68):
        parts = tmp_path / f".{number}.parts"
        shutil.copytree(tmp_path / ".stopped.parts", parts)
        part = chance.choice(sorted(parts.glob("part-*")))
        content = bytearray(part.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        part.write_bytes(content)
        assert resumed(tmp_path / str(number)) == whole


def test_a_part_that_is_cut_exchanged_or_of_another_run_is_made_again(tmp_path):
    whole = resumed(tmp_path / "whole")
    parts = stopped_run(tmp_path / "cut")
    parts[0].write_bytes(parts[0].read_bytes()[:-1])
    parts[1].write_bytes(b"")
    assert resumed(tmp_path / "cut") == whole

    first, second = stopped_run(tmp_path / "exchanged")
    number = len("part-000000000")
    first.rename(first.with_name(second.name[:number] + first.name[number:]))
    second.rename(second.with_name(first.name[:number] + second.name[number:]))
    assert resumed(tmp_path / "exchanged") == whole

    others = stopped_run(tmp_path / "other", seed=1)
    for path in stopped_run(tmp_path / "foreign"):
        path.unlink()
    for path in others:
        shutil.copy(path, tmp_path / ".foreign.parts")
    assert resumed(tmp_path / "foreign") == whole


class Cutting(InChunksOfTen):
    """Cuts in the third chunk what the first two have left on the disk."""

    def edit_batch(self, captions, task):
        for part in Path.cwd().glob(".train.parts/part-*") if captions[0].endswith(" 20") else ():
            part.write_bytes(part.read_bytes()[:99])
        return super().edit_batch(captions, task)


def test_the_set_is_written_while_captions_are_edited_and_no_part_is_read_back(
    tmp_path, monkeypatch
):
    whole = resumed(tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    generate(source_of(NUMBERED), tmp_path / "train", Cutting(), workers=1, progress=False)
    assert contents(tmp_path / "train") == whole


@pytest.mark.parametrize("memory", [parquet._MEMORY, 1])
def test_a_set_of_texts_alone_states_its_content_and_counts_its_captions(
    tmp_path, monkeypatch, memory
):
    monkeypatch.setattr(parquet, "GROUP_ROWS", 7)
    monkeypatch.setattr(parquet, "_MEMORY", memory)
    captions = ["a red car and a dog", "a red car and a cat", "a red car and a dog"]
    folder = generate(
        source_of(captions * 9), tmp_path / "train", Rules(), workers=1, progress=False
    )
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    card = (folder / "README.md").read_text()
    assert f"train: {content_of(rows)}" in card
    columns = [rows[name] for name in ("caption", "hard_positive", "hard_negative")]
    distinct = {text for column in columns for text in column if text is not None}
    [counts] = [line for line in card.splitlines() if line.startswith("| `train`")]
    assert counts.endswith(f"| 0 | {len(distinct)} | {len(rows)} |")
    [file] = (folder / "data").iterdir()
    assert pq.ParquetFile(file).num_row_groups == -(-len(rows) // 7)


def test_settings_of_an_unfinished_run_that_cannot_be_read_are_refused(tmp_path):
    stopped_run(tmp_path / "train")
    for damaged in ("", "[]", "[" * 100_000, '{"seed": 0', "\x00"):
        (tmp_path / ".train.parts" / "settings.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"settings\.json to hold the settings.*Remove that"):
            resumed(tmp_path / "train")


def test_a_finished_set_whose_record_cannot_be_read_is_left_alone(tmp_path):
    resumed(tmp_path / "train")
    (tmp_path / "train" / "generation.json").write_text("{")
    before = contents(tmp_path / "train")
    with pytest.raises(FileExistsError, match="absent or empty"):
        resumed(tmp_path / "train")
    assert contents(tmp_path / "train") == before


# --- processes ------------------------------------------------------------------------------------

# Rules that write down what they edit. Each process says that it is there, and waits to be let go.
MEETING_RULES = """
import os, time
from pathlib import Path
from hard_positives.generation.rules import Rules

class MeetingRules(Rules):
    chunk_size = 20

    def edit_batch(self, captions, task):
        meeting = Path(os.environ["MEETING"])
        (meeting / f"process-{os.getpid()}").touch()
        while not (meeting / "go").exists():
            time.sleep(0.01)
        with open(meeting / f"log-{os.getpid()}", "a") as log:
            log.writelines(f"{task}/{caption}\\n" for caption in captions)
        return super().edit_batch(captions, task)
"""
# The command, with batches so small that few captions are work for two processes.
COMMAND = """
import hard_positives, meeting_rules
from hard_positives.generation import run as generation
from hard_positives.cli import app

hard_positives.Rules = meeting_rules.MeetingRules
generation.BATCH_SIZE = 5
app()
"""


class Started:
    """`generate` in a process of its own, its workers waiting in `meeting`."""

    def __init__(self, folder: Path, workers: int = 2):
        self.meeting, self.temporary = folder / "meeting", folder / "tmp"
        self.output, self.captions = folder / "train", folder / "captions.txt"
        for path in (self.meeting, self.temporary):
            path.mkdir(exist_ok=True)
        self.captions.write_text("".join(f"{caption}\n" for caption in NUMBERED))
        (folder / "meeting_rules.py").write_text(MEETING_RULES)
        command = ["generate", str(self.captions), "--output", str(self.output)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *command, "--workers", str(workers)],
            env={
                **os.environ,
                "MEETING": str(self.meeting),
                "TMPDIR": str(self.temporary),
                "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C goes to a group
        )

    def children(self, workers: int) -> list[psutil.Process]:
        """All processes that it has started, once so many work."""
        wait_until(lambda: len(list(self.meeting.glob("process-*"))) == workers)
        working = {int(path.name.partition("-")[2]) for path in self.meeting.glob("process-*")}
        children = psutil.Process(self.process.pid).children(recursive=True)
        expected = {child.pid for child in children} if workers > 1 else {self.process.pid}
        assert working <= expected
        return children

    def let_go(self) -> None:
        (self.meeting / "go").touch()

    def ended(self) -> tuple[int, str]:
        errors = self.process.communicate(timeout=300)[1]
        return self.process.returncode, errors


def wait_until(condition, seconds: float = 60) -> None:
    latest = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < latest, "waited in vain"
        time.sleep(0.02)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@posix
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_main_process_whatever_ends_it(tmp_path, end):
    started = Started(tmp_path)
    children = started.children(workers=2)
    started.process.send_signal(end)
    assert started.ended()[0] == -end
    wait_until(lambda: not any(map(is_running, children)))
    assert list(started.temporary.iterdir()) == []

    again = Started(tmp_path)
    again.let_go()
    assert again.ended()[0] == 0
    source = read_captions(again.captions)
    whole = generate(source, tmp_path / "whole", InChunksOfTwenty(), workers=1, progress=False)
    assert contents(again.output) == contents(whole)


class InChunksOfTwenty(Rules):
    chunk_size = 20


@posix
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("to_group", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_ctrl_c_ends_all_processes_with_130_and_no_traceback(tmp_path, workers, to_group):
    started = Started(tmp_path, workers)
    children = started.children(workers)
    (os.killpg if to_group else os.kill)(started.process.pid, signal.SIGINT)
    status, errors = started.ended()
    assert status == 130
    assert "Traceback" not in errors and "Error" not in errors
    wait_until(lambda: not any(map(is_running, children)))
    assert list(started.temporary.iterdir()) == []


@posix
def test_a_killed_worker_is_one_sentence_that_says_what_to_do(tmp_path):
    started = Started(tmp_path)
    children = started.children(workers=2)
    os.kill(int(next(started.meeting.glob("process-*")).name.partition("-")[2]), signal.SIGKILL)
    status, errors = started.ended()
    assert status == 1
    assert "got one that was killed" in errors and "fewer workers" in errors
    assert "Traceback" not in errors
    wait_until(lambda: not any(map(is_running, children)))


def test_two_processes_share_the_work_and_each_caption_is_edited_once_for_each_task(tmp_path):
    started = Started(tmp_path)
    started.children(workers=2)
    started.let_go()
    assert started.ended()[0] == 0
    logs = [path.read_text().splitlines() for path in tmp_path.glob("meeting/log-*")]
    assert len(logs) == 2, "one process did all the work"
    assert Counter(chain(*logs)) == {f"{task}/{text}": 1 for task in TASKS for text in NUMBERED}


@pytest.mark.slow
def test_of_two_identical_runs_at_once_one_is_refused_and_the_other_ends_well(tmp_path):
    first = Started(tmp_path)
    first.children(workers=2)
    second = Started(tmp_path)
    status, errors = second.ended()
    assert status == 1 and "another process that is writing it" in errors
    first.let_go()
    assert first.ended()[0] == 0
    assert len(loaded(first.output, tmp_path / "cache")) == 2 * len(NUMBERED)


@contextmanager
def files_of_at_most(size: int):
    """No file grows beyond so many bytes: an error of the system, as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@posix
@pytest.mark.parametrize("kind", ["texts", "images"])
def test_a_full_disk_is_one_true_sentence_and_the_same_command_resumes(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(Rules, "chunk_size", 10)
    if kind == "texts":
        path, options = tmp_path / "captions.txt", []
        captions = [f"a cat and a dog on sofa {n}" for n in range(400)]
        path.write_text("".join(f"{caption}\n" for caption in captions))
    else:
        captions = NUMBERED
        path, options = coco_file(tmp_path, captions), ["--images", str(tmp_path)]
        for image in tmp_path.glob("*.jpg"):
            PILImage.effect_noise((200, 200), 100).save(image)
    output, parts = tmp_path / "train", tmp_path / ".train.parts"
    command = ["generate", str(path), *options, "--output", str(output), "--workers", "1", "-q"]
    # The first is less than a part takes, the second less than the set.
    for limit, kept in ((1_000, 0), (11_000, -(-len(captions) // 10))):
        with files_of_at_most(limit):
            done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        assert f"Error: Expected room on the disk for {output}, got: " in done.stderr
        assert f"finished chunks are kept in {parts}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not output.exists()
        assert len(list(parts.glob("part-*"))) == kept
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert not parts.exists()
    assert len(loaded(output, tmp_path / "cache")) == 2 * len(captions)


class Mirror(InChunksOfTen):
    """Edits that cost nothing."""

    chunk_size = 100

    def edit_batch(self, captions, task):
        return [Edit(f"{task.column} {caption[::-1]}", "swap") for caption in captions]


def most_memory(number: int, folder: Path) -> int:
    """What Python and Arrow take at most for a run over so many captions, in bytes."""
    path = folder / f"{number}.txt"
    path.write_text("".join(f"a red car and a dog number {n}\n" for n in range(number)))
    tracemalloc.start()
    try:
        source = read_captions(path)
        in_arrow = pa.total_allocated_bytes()
        generate(source, folder / f"{number}", Mirror(), workers=1, progress=False)
        return tracemalloc.get_traced_memory()[1] + in_arrow
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_captions(tmp_path, monkeypatch):
    for module in (on_disk, parquet):
        monkeypatch.setattr(module, "_MEMORY", 2**14)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 100)
    most_memory(200, tmp_path)  # what is loaded once
    few, many = (most_memory(number, tmp_path) for number in (1000, 4000))
    assert many < few + 50 * 3000, f"{(many - few) / 3000:.0f} bytes a caption"


def test_what_lies_on_disk_is_the_same(coco, tmp_path, monkeypatch):
    published = tmp_path / "swap_hp.jsonl"
    published.write_text('"a"\n"b"\n"None"\n"d"\n')

    def read():
        return read_captions(coco, images=tmp_path).with_published(published, "hard_positive_swap")

    small = read()
    monkeypatch.setattr(on_disk, "_MEMORY", 0)
    large = read()
    assert large.table == small.table and large.images.to_list() == small.images.to_list()


@posix
def test_a_full_disk_of_temporary_files_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(on_disk, "_MEMORY", 0)
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"{caption}\n" for caption in NUMBERED))
    expected = r"Expected room on the disk for .*, got: .*another folder in TMPDIR"
    with files_of_at_most(1000), pytest.raises(OSError, match=expected):
        read_captions(path)
    with (
        files_of_at_most(1000),
        pytest.raises(OSError, match=expected),
        on_disk.database("CREATE TABLE texts (text TEXT)") as store,
    ):
        store.executemany("INSERT INTO texts VALUES (?)", [("a" * 2**20,)] * 20)


def test_captions_without_images_are_edited_without_torch(tmp_path):
    (tmp_path / "captions.txt").write_text("a red car\n")
    program = """
import sys
from hard_positives import Rules, generate, read_captions
generate(read_captions("captions.txt"), "train", Rules(), workers=1, progress=False)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_reads_text_and_writes_a_set_that_load_dataset_reads(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    output = tmp_path / "train"
    done = CliRunner().invoke(
        app, ["generate", str(path), "--output", str(output), "--workers", "1"]
    )
    assert done.exit_code == 0, done.output
    assert loaded(output, tmp_path / "cache")[0]["id"] == "line-0000000-replace"


def test_the_command_says_in_one_sentence_what_is_wrong(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a dog\n\n")
    command = ["generate", str(path), "--output", str(tmp_path / "train")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "an empty caption in 1 row (line-0000001)" in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "train").exists()


# --- a language model -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "answer", "task", "expected"),
    [
        ("a red car", "a crimson car", REPLACE_POSITIVE, "attribute"),
        ("A red car.", '"a crimson car"', REPLACE_POSITIVE, "attribute"),
        ("a man on a horse", "a man riding a horse", REPLACE_POSITIVE, "relation"),
        ("a red car", "a blue car", REPLACE_POSITIVE, "changes_the_meaning"),
        ("a red car", "a crimson car", REPLACE_NEGATIVE, "keeps_the_meaning"),
        ("a red car", "a red truck", REPLACE_NEGATIVE, "object"),
        ("a red car", "a red quickly", REPLACE_NEGATIVE, "another_kind_of_word"),
        ("a red car", "the red car", REPLACE_NEGATIVE, "another_kind_of_word"),
        ("a red car", "a red car", REPLACE_POSITIVE, "unchanged"),
        ("a red car", "", REPLACE_POSITIVE, "empty"),
        ("a red car", "None", REPLACE_POSITIVE, "none_given"),
        ("a red car", None, REPLACE_POSITIVE, "declined_by_server"),
        ("a red car", "a crimson car\nIt means the same.", REPLACE_POSITIVE, "several_lines"),
        ("a red car", "Sure! a crimson car", REPLACE_POSITIVE, "refusal"),
        ("a red car", "I'm sorry, I cannot.", REPLACE_POSITIVE, "refusal"),
        ("a red car", "a crimson\x00 car", REPLACE_POSITIVE, "unfit_characters"),
        ("a red car", "a \u202ecrimson car", REPLACE_POSITIVE, "unfit_characters"),
        ("a red car", "a \x1b[31mcrimson car", REPLACE_POSITIVE, "unfit_characters"),
        ("a red car", "a crimson\ud800 car", REPLACE_POSITIVE, "unfit_characters"),
        ("a red car", "a crimson\u2028car", REPLACE_POSITIVE, "several_lines"),
        ("a red car", "a crimson\rcar", REPLACE_POSITIVE, "several_lines"),
        ("a red car", "a car " * 20, REPLACE_POSITIVE, "other_length"),
        (
            "a dog on the grass near a big tree",
            "one cat in some hay beside a tall bush",
            REPLACE_NEGATIVE,
            "too_much_changed",
        ),
        ("a cat and a dog", "a dog and a cat", SWAP_POSITIVE, "swap"),
        ("a cat and a dog", "a dog and a cat", SWAP_NEGATIVE, "keeps_the_meaning"),
        ("a cat and a dog", "a dog and a bird", SWAP_POSITIVE, "other_words"),
        ("a cat on an old dog", "an old cat on a dog", SWAP_NEGATIVE, "swap"),
    ],
)
def test_an_answer_is_checked_before_it_is_believed(caption, answer, task, expected):
    edit = checked(caption, answer, task)
    assert expected == (edit.category if edit.caption else edit.reason)


def test_an_answer_takes_the_captions_capital_and_full_stop():
    assert checked("A red car.", "a crimson car", REPLACE_POSITIVE).caption == "A crimson car."
    assert checked("a red car", "A crimson car.", REPLACE_POSITIVE).caption == "a crimson car"


class ScriptedServer(http.server.ThreadingHTTPServer):
    """An OpenAI-compatible server that does to each request what `script` says.

    `script(caption, attempt)` returns a status, a body, or one of: "answer", "drop" (hang up),
    "half" (hang up half-way), "garbage" (no JSON), "silence" (nothing until the server is closed),
    "drip" (the answer after ten seconds of blanks, one every 50 ms).
    """

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Conversation)
        self.script = script
        self.attempts: Counter = Counter()
        self.requests: list[dict] = []
        self.heads: list[tuple[str, str | None]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # clients that give up are part of the script


class Conversation(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        caption = request["messages"][-1]["content"]
        task = next(t for t in TASKS if PROMPTS[str(t)][0] == request["messages"][0]["content"])
        with self.server.lock:
            self.server.requests.append(request)
            self.server.heads.append((self.path, self.headers["Authorization"]))
            self.server.attempts[caption, task] += 1
            attempt = self.server.attempts[caption, task]
        act = self.server.script(caption, attempt)
        content = Rules().edit(caption, task).caption or "None"
        self.reply(act, act if isinstance(act, bytes) else completion(content))

    def reply(self, act, body: bytes) -> None:
        if act == "silence":
            self.server.closing.wait()
        if act in ("drop", "silence"):
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        blanks = 200 if act == "drip" else 0
        self.send_response(act if isinstance(act, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(blanks + len(body)))
        if act == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        for _ in range(blanks):
            self.server.closing.wait(0.05)
            self.wfile.write(b" ")
        if isinstance(act, int):
            body = b'{"error": {"message": "Unsupported parameter: seed"}}'.ljust(len(body))
        self.wfile.write(
            {"half": body[:20], "garbage": b"<html>" * 100}.get(act, body)[: len(body)]
        )

    def log_message(self, *_):
        pass


def completion(content) -> bytes:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    body = {"id": "1", "created": 1, "model": "scripted", "system_fingerprint": ""}
    return json.dumps({**body, "choices": [choice], "usage": usage}).encode()


def language_model(server: ScriptedServer, **options) -> LanguageModel:
    options = {"max_tries": 4, "backoff": 0.001, "timeout": 30, **options}
    return LanguageModel("scripted", server.base_url, **options)


def test_a_language_models_answers_become_the_training_set(tmp_path):
    captions = CAPTIONS[:4]
    with ScriptedServer(lambda caption, attempt: "answer") as server:
        model = language_model(server, temperature=0.3, seed=5)
        folder = generate(source_of(captions), tmp_path / "lm", model, progress=False)
    by_rules = generate(source_of(captions), tmp_path / "r", Rules(), workers=1, progress=False)
    columns = ("id", "caption", "hard_positive", "hard_negative")
    one, other = (
        [tuple(row[name] for name in columns) for row in loaded(folder, tmp_path / "cache")]
        for folder in (folder, by_rules)
    )
    assert one == other
    settings = json.loads((folder / "generation.json").read_text())["settings"]
    assert (settings["temperature"], settings["seed"]) == (0.3, 5)
    assert settings["model"] == "scripted"
    assert {request["temperature"] for request in server.requests} == {0.3}
    assert {request["model"] for request in server.requests} == {"scripted"}


def test_requests_are_seeded_by_seed_task_and_caption():
    with ScriptedServer(lambda caption, attempt: "answer") as server:
        for seed in (0, 0, 1):
            language_model(server, seed=seed).edit_batch(CAPTIONS[:3], REPLACE_POSITIVE)
    seeds = [sorted(r["seed"] for r in server.requests[i : i + 3]) for i in (0, 3, 6)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(set(seeds[0])) == 3


@pytest.mark.parametrize("trouble", [429, 500, 502, 503, "drop", "half", "garbage"])
def test_a_server_in_trouble_is_asked_again_and_no_caption_is_lost(trouble):
    def script(caption, attempt):
        return "answer" if attempt == 3 or caption == CAPTIONS[0] else trouble

    with ScriptedServer(script) as server:
        edits = language_model(server).edit_batch(CAPTIONS[:4], REPLACE_POSITIVE)
    expected = Rules().edit_batch(CAPTIONS[:4], REPLACE_POSITIVE)
    assert [edit.caption for edit in edits] == [edit.caption for edit in expected]
    assert [server.attempts[c, REPLACE_POSITIVE] for c in CAPTIONS[:4]] == [1, 3, 3, 3]


def test_a_request_without_an_answer_is_given_up_and_asked_again():
    with ScriptedServer(lambda caption, attempt: "answer" if attempt > 1 else "silence") as server:
        edits = language_model(server, timeout=0.5).edit_batch(CAPTIONS[:1], REPLACE_POSITIVE)
    assert edits[0].caption == Rules().edit(CAPTIONS[0], REPLACE_POSITIVE).caption


def test_a_server_that_never_answers_is_an_error_before_the_work_begins(tmp_path):
    with ScriptedServer(lambda caption, attempt: "silence") as server:
        model = language_model(server, timeout=0.2, max_tries=2)
        with pytest.raises(ConnectionError, match=r"got no whole answer within 0.2 s \(tries: 2\)"):
            generate(source_of(CAPTIONS), tmp_path / "train", model, progress=False)
        assert len(server.requests) == 2
    with pytest.raises(ConnectionError, match="got ClientConnectorError"):
        generate(source_of(CAPTIONS), tmp_path / "train", model, progress=False)


def test_a_wrong_key_or_name_is_not_tried_again():
    with ScriptedServer(lambda caption, attempt: 401) as server:
        with pytest.raises(ConnectionError, match="got status 401"):
            language_model(server).edit_batch(CAPTIONS[:1], REPLACE_POSITIVE)
        assert len(server.requests) == 1


def test_a_caption_that_the_server_declines_is_counted_and_the_others_go_on():
    with ScriptedServer(lambda caption, _: 400 if caption == CAPTIONS[1] else "answer") as server:
        edits = language_model(server).edit_batch(CAPTIONS[:3], REPLACE_POSITIVE)
    assert [edit.reason for edit in edits] == ["", "declined_by_server", ""]


def test_as_many_requests_are_in_flight_as_asked_for_and_no_more():
    together, inside, most = threading.Barrier(8), count(), []

    def script(caption, attempt):
        with lock:
            most.append(next(entered) - len(left))
        together.wait(timeout=30)  # nobody goes on before eight are here
        with lock:
            left.append(next(inside))
        return "answer"

    lock, entered, left = threading.Lock(), count(1), []
    captions = [f"a red car in lane {n}" for n in range(32)]
    with ScriptedServer(script) as server:
        edits = language_model(server, max_in_flight=8).edit_batch(captions, REPLACE_POSITIVE)
    assert all(edit.caption for edit in edits)
    assert max(most) == 8


def test_a_request_has_a_limit_of_time_however_often_a_blank_comes():
    with ScriptedServer(lambda caption, attempt: "drip") as server:
        model = language_model(server, timeout=0.3, max_tries=2)
        with pytest.raises(ConnectionError, match=r"no whole answer within 0\.3 s \(tries: 2\)"):
            model.edit_batch(CAPTIONS[:1], REPLACE_POSITIVE)
        assert len(server.requests) == 2


def test_an_answer_has_a_limit_of_size():
    with ScriptedServer(lambda caption, attempt: b" " * 2**21) as server:
        model = language_model(server, max_tries=2)
        with pytest.raises(ConnectionError, match=r"more than 1,048,576 bytes \(tries: 2\)"):
            model.edit_batch(CAPTIONS[:1], REPLACE_POSITIVE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (completion(7), "a chat completion whose content is a int"),
        (completion(["a", "b"]), "a chat completion whose content is a list"),
        (completion({"text": "a"}), "a chat completion whose content is a dict"),
        (completion(None).replace(b"message", b"massage"), "no chat completion"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": 5}', "no chat completion"),
        (b"[]", "no chat completion"),
        (DEEP.encode(), "no chat completion"),
        (b"\xff\xfe", "no chat completion"),
    ],
)
def test_an_answer_of_another_form_is_asked_for_again_and_then_named(body, message):
    with ScriptedServer(lambda caption, attempt: body) as server:
        with pytest.raises(ConnectionError, match=rf"got ValueError: .*{message} \(tries: 2\)"):
            language_model(server, max_tries=2).edit_batch(CAPTIONS[:1], REPLACE_POSITIVE)
        assert len(server.requests) == 2


def run_command(address: str, folder: Path):
    """`generate` on the command line, with a language model."""
    path = folder / "captions.txt"
    path.write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    command = ["generate", str(path), "--output", str(folder / "train"), "--quiet"]
    return CliRunner().invoke(app, [*command, "--model", "scripted", "--base-url", address])


def test_a_server_that_declines_everything_is_an_error_and_leaves_no_set(tmp_path):
    with ScriptedServer(lambda caption, attempt: 400) as server:
        done = run_command(server.base_url, tmp_path)
    assert done.exit_code == 1
    assert "got status 400: Unsupported parameter: seed (tries: 1)" in done.stderr
    assert "Wrote" not in done.output and not (tmp_path / "train").exists()


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (400, "declined_by_server"),
        (completion(None), "empty"),
        (completion("the very same words for all"), "too_much_changed"),
    ],
)
def test_where_not_one_row_comes_of_it_the_set_is_not_made_and_nothing_is_kept(
    tmp_path, act, reason
):
    probe = "a cat and a dog"
    with ScriptedServer(lambda caption, _: "answer" if caption == probe else act) as server:
        done = run_command(server.base_url, tmp_path)
        assert done.exit_code == 1
        assert re.search(
            rf"Expected an edit of at least one of the 6 captions .*{reason} \d+ times", done.stderr
        )
        assert "Wrote" not in done.output and not (tmp_path / "train").exists()
        assert not (tmp_path / ".train.parts").exists()
        server.script = lambda caption, attempt: "answer"
        assert run_command(server.base_url, tmp_path).exit_code == 0
    assert (tmp_path / "train").exists()


def test_no_user_password_or_key_of_an_address_is_kept_or_shown(tmp_path):
    secrets = ("ann", "pass-word", "query-key")
    with ScriptedServer(lambda caption, attempt: "answer") as server:
        address = server.base_url.replace("//", "//ann:pass-word@") + "?api-key=query-key"
        assert run_command(address, tmp_path).exit_code == 0
    assert {path for path, _ in server.heads} == {"/v1/chat/completions?api-key=query-key"}
    basic = base64.b64encode(b"ann:pass-word").decode()
    assert {authorization for _, authorization in server.heads} == {f"Basic {basic}"}
    for name, content in contents(tmp_path / "train").items():
        assert not any(secret.encode() in content for secret in secrets), name
    settings = json.loads((tmp_path / "train" / "generation.json").read_text())["settings"]
    assert settings["base_url"] == server.base_url
    assert not any(secret in f"{LanguageModel('m', address)}" for secret in secrets)


@pytest.mark.parametrize("act", [401, "silence", "garbage", "drop"])
def test_no_error_shows_the_user_password_or_key_of_an_address(act):
    with ScriptedServer(lambda caption, attempt: act) as server:
        address = server.base_url.replace("//", "//ann:pass-word@") + "?api-key=query-key"
        with pytest.raises(ConnectionError) as error:
            LanguageModel("m", address, max_tries=1, timeout=0.3).prepare()
    shown = "".join(traceback.format_exception(error.value))
    assert f"Expected {server.base_url} to answer" in shown
    assert not any(secret in shown for secret in ("ann", "pass-word", "query-key"))


def test_what_a_server_repeats_of_the_key_is_left_out_of_the_error():
    echo = (
        b'{"error": {"message": "Incorrect key \\u001b[31msecret-key for /v1?token=t%2Fk (t/k)"}}'
    )

    class Echo(Conversation):
        def reply(self, act, body):
            self.send_response(401)
            self.send_header("Content-Length", str(len(echo)))
            self.end_headers()
            self.wfile.write(echo)

    with ScriptedServer(lambda *_: 401) as server:
        server.RequestHandlerClass = Echo
        model = LanguageModel("m", f"{server.base_url}?token=t%2Fk", api_key="secret-key")
        with pytest.raises(ConnectionError) as error:
            model.prepare()
    assert r"got status 401: Incorrect key \x1b[31m*** for /v1?*** (***)" in str(error.value)


def test_a_run_resumes_with_another_key_but_not_with_another_server(tmp_path):
    def script(caption, attempt):
        return 401 if caption == CAPTIONS[5] else "answer"

    class OneByOne(LanguageModel):
        chunk_size = 1

    def run(server, script, address):
        server.script = script
        model = OneByOne("scripted", address, max_tries=1)
        return generate(source_of(CAPTIONS), tmp_path / "train", model, progress=False)

    with ScriptedServer(script) as server:
        with pytest.raises(ConnectionError):
            run(server, script, f"{server.base_url}?api-key=old")
        asked = len(server.requests)
        with pytest.raises(ValueError, match="got another base_url"):
            run(server, script, server.base_url.replace("127.0.0.1", "localhost"))
        run(server, lambda *_: "answer", f"{server.base_url}?api-key=new")
    assert len(server.requests) - asked <= 1 + len(TASKS)


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000/v1",
        "ann:pw@host/v1",
        "http:///v1",
        "",
        "http://ann:pw@h:port/v1",
        "ftp://ann:pw@h/v1",
        "http://[::1",
    ],
)
def test_an_address_that_is_none_is_refused_without_being_shown(address):
    with pytest.raises(ValueError, match="Expected base_url to be the address") as error:
        LanguageModel("m", address)
    assert "pw" not in str(error.value)


@posix
def test_ctrl_c_ends_a_run_that_waits_for_a_server(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a cat and a dog\n")
    with ScriptedServer(lambda caption, attempt: "silence") as server:
        command = ["generate", str(path), "--output", str(tmp_path / "train"), "--model", "m"]
        process = subprocess.Popen(
            [sys.executable, "-m", "hard_positives", *command, "--base-url", server.base_url],
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: server.requests)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]  # a request may take 60 s
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_no_path_of_this_machine_stands_in_a_set(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    source = read_captions(path)
    folder = generate(source, tmp_path / "train", Rules(), workers=1, progress=False)
    for name, content in contents(folder).items():
        assert str(tmp_path).encode() not in content, name
    record = json.loads((folder / "generation.json").read_text())
    assert record["settings"]["source"] == "captions.txt"


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"max_in_flight": 0}, {"max_tries": 0}, {"timeout": 0}, {"backoff": -1}],
)
def test_a_language_models_numbers_are_checked(wrong):
    with pytest.raises(ValueError, match=f"Expected {next(iter(wrong))} to be"):
        LanguageModel("m", "http://127.0.0.1:1/v1", **wrong)


def test_a_key_is_sent_but_never_shown_or_recorded():
    model = LanguageModel("m", "http://127.0.0.1:1/v1", api_key="secret-key")
    assert "secret-key" not in f"{model} {model.settings}"


@pytest.fixture
def tiny_chat_model(tmp_path) -> Path:
    """A random chat model that reads and writes letter by letter."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    wrapped.chat_template = template
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 1, "max_position_embeddings": 4096}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    config = LlamaConfig(vocab_size=len(letters), **shape, **ends)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    wrapped.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_real_server_of_a_real_model_is_understood(tiny_chat_model, tmp_path):
    """Random weights write nothing usable: every answer arrives, is read and is rejected."""
    for part in ("fastapi", "openai", "uvicorn"):
        pytest.importorskip(part, reason="`transformers serve` is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("transformers"))
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen([program, "serve", str(tiny_chat_model), *options])
    try:
        model = LanguageModel(str(tiny_chat_model), f"http://127.0.0.1:{port}/v1", max_tries=10)
        with pytest.raises(ValueError, match="got none") as error:
            generate(source_of(CAPTIONS[:2]), tmp_path / "train", model, progress=False)
    finally:
        server.terminate()
        server.wait()
    reasons = re.findall(r"(\w+) (\d+) times", str(error.value))
    assert sum(int(number) for _, number in reasons) == 2 * len(TASKS)
    assert "declined_by_server" not in dict(reasons)
