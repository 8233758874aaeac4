"""The rendered world is true to its captions, and the tiny CLIP that comes along can see it."""

import hashlib
import io
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, CLIPModel

from hard_positives_dataset import shapes

MODEL = Path(__file__).parents[2] / "hard_positives" / "shapes_clip"
USUAL = 0.5
TEXTS = ("caption", "hard_positive", "hard_negative")
COLUMNS = {"id", "image", *TEXTS, "category", "substitution", "image_id", "bbox", "flaws"}


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {
        "replace": list(shapes.generate_rows("replace")),
        "swap": list(shapes.generate_rows("swap")),
        "train": list(shapes.generate_rows("train", 3000)),
    }


@pytest.fixture(scope="module")
def usual_rows() -> dict[str, list[dict]]:
    return {
        split: list(shapes.generate_rows(split, 1200, usual=USUAL))
        for split in shapes.SPLIT_CATEGORIES
    }


def scene_of(row: dict, usual: float = 0.0) -> shapes.Scene:
    split, index = row["image_id"].split("-")
    return shapes.make_scene(split, int(index), usual=usual)


@pytest.mark.parametrize("split", shapes.SPLIT_CATEGORIES)
def test_every_positive_is_true_and_every_negative_is_false(rows, split):
    for _, family in itertools.groupby(rows[split], key=lambda row: row["image_id"]):
        family = list(family)
        scene = scene_of(family[0])
        for row in family:
            answers = [shapes.truth(scene, row[text]) for text in TEXTS]
            assert answers == [True, True, False], row


@pytest.mark.parametrize("split", shapes.SPLIT_CATEGORIES)
def test_captions_are_as_true_and_false_in_a_world_with_habits(usual_rows, split):
    for row in usual_rows[split]:
        scene = scene_of(row, USUAL)
        assert [shapes.truth(scene, row[text]) for text in TEXTS] == [True, True, False], row


@pytest.mark.parametrize("kind", shapes.ATTRIBUTES)
@pytest.mark.parametrize("usual", [0.3, 0.7])
def test_the_share_of_usual_things_is_as_set(kind, usual):
    things = [
        thing
        for index in range(0, 4000, shapes.FAMILY_SIZE)
        for thing in shapes.make_scene("train", index, usual=usual).things
    ]
    share = np.mean([getattr(t, kind) == shapes.USUAL_TRAITS[t.shape][kind] for t in things])

    assert share == pytest.approx(usual + (1 - usual) / len(shapes.ATTRIBUTES[kind]), abs=0.06)


def test_shapes_mostly_stand_where_they_usually_do(usual_rows):
    def share(text: str) -> float:
        found = []
        for row in usual_rows["replace"]:
            if row["category"] == "relation":
                first, second = (w for w in row[text].split() if w in shapes.SHAPES)
                relation = next(r for r in shapes.RELATIONS if f" {r} " in row[text])
                found.append(shapes.usual_place(first, second, relation) == relation)
        return np.mean(found)

    assert share("caption") > USUAL
    assert share("hard_negative") < (1 - USUAL) / 2


def test_the_published_world_has_no_habits(rows):
    texts = [(row["id"], *(row[text] for text in TEXTS)) for row in rows["train"][:600]]

    assert list(shapes.generate_rows("swap", 40, usual=0.0)) == rows["swap"][:40]
    assert hashlib.sha256(repr(texts).encode()).hexdigest() == (
        "ba4846505af54f7b05e40563e047aee56f2feb0d2b66ab98596a512d7102bfec"
    )


@pytest.mark.parametrize(
    ("caption", "answer"),
    [
        ("red circle", True),
        ("crimson circle", True),
        ("blue circle", False),
        ("large red circle", True),
        ("circle left of square", True),
        ("circle to the left of square", True),
        ("square left of circle", False),
        ("circle above square", False),
        ("circle touching square", False),
        ("circle in square", False),
        ("circle far from square", None),
        ("star in circle", True),
        ("star touching circle", False),
        ("star left of circle", False),
        ("circle in star", False),
        ("star far from square", True),
        ("the red circle and the small square", True),
        ("the small circle and the red square", False),
    ],
)
def test_truth_of_a_scene_written_by_hand(caption, answer):
    circle = shapes.Thing("red", "large", "circle", 15, 30, 10, 0, (0, 0, 0))
    square = shapes.Thing("blue", "small", "square", 42, 31, 6, 0, (0, 0, 0))
    star = shapes.Thing("white", "small", "star", 14, 31, 5, 0, (0, 0, 0))
    scene = shapes.Scene((circle, square, star), ((150,) * 3, (150,) * 3), True)

    assert shapes.truth(scene, caption) is answer


@pytest.mark.parametrize(
    "caption", ["", "red", "red dog", "circle beside square", "red circle and"]
)
def test_a_caption_in_other_words_is_an_error(caption):
    with pytest.raises(ValueError, match="Expected a caption in the words of this world"):
        shapes.truth(shapes.make_scene("swap", 0), caption)


@pytest.mark.parametrize("split", shapes.SPLIT_CATEGORIES)
def test_rows_have_the_columns_of_the_benchmark(rows, split):
    assert all(row.keys() == COLUMNS for row in rows[split])
    assert {row["category"] for row in rows[split]} == set(shapes.SPLIT_CATEGORIES[split])
    assert len({row["id"] for row in rows[split]}) == len(rows[split])
    image = Image.open(io.BytesIO(rows[split][0]["image"]["bytes"]))
    assert (image.mode, image.size) == ("RGB", (shapes.IMAGE_SIZE,) * 2)


def test_ids_count_within_their_category(rows):
    assert [row["id"] for row in rows["replace"][:5]] == [
        "replace-attribute-00000",
        "replace-attribute-00001",
        "replace-relation-00000",
        "replace-relation-00001",
        "replace-attribute-00002",
    ]
    assert rows["swap"][-1]["id"] == "swap-00999"


def test_swap_captions_are_permutations_of_the_same_words(rows):
    for row in rows["swap"]:
        assert len({tuple(sorted(row[text].split())) for text in TEXTS}) == 1
        assert len({row[text] for text in TEXTS}) == 3
        assert row["substitution"] == ""


def test_the_substitution_is_what_changed(rows):
    for row in (*rows["replace"], *rows["train"]):
        if row["category"] != "swap":
            old, new = row["substitution"].split(" > ")
            padded = f" {row['caption']} "
            assert f" {row['hard_positive']} " in {
                padded[:at] + f" {new} " + padded[at + len(old) + 2 :]
                for at in range(len(padded))
                if padded.startswith(f" {old} ", at)
            }


def test_published_substitutions_are_among_the_synonyms():
    published = {"red": "crimson", "blue": "sapphire", "white": "ivory", "in": "within"}
    published |= {"large": "big", "small": "tiny", "under": "beneath"}

    assert all(shapes.SYNONYMS[word][0] == synonym for word, synonym in published.items())


def test_no_word_stands_for_two_things():
    words = [w for base, synonyms in shapes.SYNONYMS.items() for w in (base, *synonyms)]

    assert len(words) == len(set(words))


def test_training_captions_use_synonyms_seldom_and_hard_negatives_often(rows):
    synonyms = set(itertools.chain(*shapes.SYNONYMS.values())) - set(shapes.SYNONYMS)
    colours = {w for w in synonyms if any(w in shapes.COLOURS[c] for c in shapes.COLOURS)}
    named = {w for c, ws in shapes.COLOURS.items() for w in (c, *ws)}
    attribute_rows = [row for row in rows["train"] if row["category"] == "attribute"]

    def share(text: str) -> float:
        used = [w for row in attribute_rows for w in row[text].split() if w in named]
        return sum(w in colours for w in used) / len(used)

    assert 0.02 < share("caption") < 0.1 < 0.3 < share("hard_negative")


def test_rows_are_the_same_each_time_and_alone(rows):
    assert list(shapes.generate_rows("replace", 40)) == rows["replace"][:40]
    for split, at in [("replace", 1337), ("swap", 501), ("train", 2999)]:
        assert list(shapes.generate_rows(split, 1, start=at)) == [rows[split][at]]


def test_another_seed_is_another_world(rows):
    other = next(shapes.generate_rows("swap", seed=1))

    assert other["image"] != rows["swap"][0]["image"]


def test_no_picture_of_an_evaluation_split_is_in_another_split(rows):
    pictures = [{row["image"]["bytes"] for row in rows[split]} for split in rows]

    assert not any(a & b for a, b in itertools.combinations(pictures, 2))
    assert len(pictures[0]) == len({row["image_id"] for row in rows["replace"]})


def test_every_second_family_is_of_the_same_objects_and_the_others_are_dealt_out_anew():
    size = shapes.FAMILY_SIZE
    families = [
        [shapes.make_scene("train", i) for i in range(start, start + size)]
        for start in range(0, 400, size)
    ]

    def alike(family: list[shapes.Scene], *names: str) -> bool:
        objects = {
            tuple(sorted(tuple(getattr(t, name) for name in names) for t in scene.things))
            for scene in family
        }
        return len(objects) == 1

    assert np.mean([alike(family, "colour") for family in families]) > 0.8
    assert np.mean([alike(f, "colour", "size", "shape") for f in families[::2]]) > 0.8
    assert np.mean([alike(f, "colour", "size", "shape") for f in families[1::2]]) < 0.2
    assert len(set(itertools.chain(*families))) == 400


def guessed_from_text(rows: dict[str, list[dict]], category: str, width: int) -> float:
    """The best guess from how often words stand together in captions and in hard negatives."""
    chosen = [r for r in (*rows["replace"], *rows["swap"]) if r["category"] == category]
    learned, judged = chosen[::2], chosen[1::2]

    def grams(text: str) -> list[tuple[str, ...]]:
        return list(itertools.combinations(text.split(), width))

    true, false = (
        Counter(gram for row in learned for gram in grams(row[text]))
        for text in ("caption", "hard_negative")
    )

    def score(row: dict, text: str) -> float:
        return sum(np.log((true[gram] + 1) / (false[gram] + 1)) for gram in grams(row[text]))

    right = [
        (np.sign(score(row, "caption") - score(row, "hard_negative")) + 1) / 2 for row in judged
    ]
    return float(np.mean(right))


@pytest.mark.parametrize("category", ["attribute", "relation", "swap"])
def test_words_alone_do_not_tell_which_caption_is_false(rows, category):
    assert 0.42 < guessed_from_text(rows, category, 1) < 0.58


@pytest.mark.parametrize("category", ["attribute", "relation", "swap"])
def test_text_alone_often_tells_it_in_a_world_with_habits(usual_rows, category):
    assert 0.65 < guessed_from_text(usual_rows, category, 2) < 0.95


def test_unknown_splits_and_endless_training_rows_are_errors():
    with pytest.raises(ValueError, match="Expected split to be one of replace, swap, train"):
        shapes.generate_rows("validation")
    with pytest.raises(ValueError, match="Expected num_rows for train"):
        shapes.generate_rows("train")


def test_a_share_of_usual_things_beyond_all_is_an_error():
    for usual in (-0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="Expected usual to be between 0 and 1"):
            shapes.generate_rows("swap", usual=usual)
    assert list(shapes.generate_rows("swap", 1, usual=1))


@pytest.fixture(scope="module")
def clip():
    return CLIPModel.from_pretrained(MODEL).eval(), AutoProcessor.from_pretrained(MODEL)


def test_the_tokenizer_tells_the_three_captions_of_every_row_apart(rows):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for row in (*rows["replace"], *rows["swap"]):
        tokens = tokenizer([row[text] for text in TEXTS])["input_ids"]
        assert len(set(map(tuple, tokens))) == 3
        assert not any(tokenizer.unk_token_id in ids for ids in tokens)
        assert max(map(len, tokens)) <= tokenizer.model_max_length


def test_the_end_token_has_the_highest_id_and_unknown_words_do_no_harm(clip):
    model, processor = clip
    config, tokenizer = model.config.text_config, processor.tokenizer
    tokens = tokenizer("a photograph of my Red circle", return_tensors="pt")

    assert config.eos_token_id == tokenizer.eos_token_id == config.vocab_size - 1 != 2
    assert tokens["input_ids"][0, -1] == tokenizer.eos_token_id
    assert tokenizer.model_max_length == config.max_position_embeddings
    assert torch.isfinite(model.get_text_features(**tokens).pooler_output).all()


@torch.no_grad()
def test_padding_changes_no_embedding(clip):
    model, processor = clip
    captions = ["red circle", "small red circle to the left of large blue square"]
    padded = processor(text=captions, padding="max_length", return_tensors="pt")
    for caption, row in zip(captions, model.get_text_features(**padded).pooler_output, strict=True):
        alone = model.get_text_features(**processor(text=[caption], return_tensors="pt"))
        torch.testing.assert_close(alone.pooler_output[0], row, atol=1e-5, rtol=1e-4)


def test_the_model_is_small():
    assert (MODEL / "model.safetensors").stat().st_size < 5_000_000


@torch.no_grad()
@pytest.mark.parametrize(
    ("category", "least"), [("attribute", 0.7), ("relation", 0.64), ("swap", 0.65)]
)
def test_the_model_is_well_above_chance_in_every_category(clip, rows, category, least):
    model, processor = clip
    chosen = [r for r in (*rows["replace"], *rows["swap"]) if r["category"] == category]
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in chosen]
    pixels = processor(images=images, return_tensors="pt")
    image_embeds = model.get_image_features(**pixels).pooler_output

    def similarity(text: str) -> torch.Tensor:
        tokens = processor(text=[r[text] for r in chosen], padding=True, return_tensors="pt")
        return torch.cosine_similarity(
            image_embeds, model.get_text_features(**tokens).pooler_output
        )

    accuracy = (similarity("caption") > similarity("hard_negative")).float().mean()
    assert least < accuracy < 0.99
