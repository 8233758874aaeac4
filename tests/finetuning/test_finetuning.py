"""The training side: the loss, what a batch holds, processes, kills, what is left behind."""

import io
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT
from datasets import ClassLabel, Dataset, Image, load_dataset
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoProcessor, CLIPModel, TrainingArguments
from typer.testing import CliRunner

from hard_positives import (
    RECIPES,
    Recipe,
    Rules,
    contrastive_loss,
    evaluate,
    finetune,
    generate,
    read_captions,
    score,
)
from hard_positives.cli import app
from hard_positives.finetuning.checkpoints import in_order, is_whole
from hard_positives.finetuning.loss import texts_known_true
from hard_positives.finetuning.rows import (
    Collator,
    TrainingRows,
    check_training_rows,
    choose_texts,
    identify_content,
)
from hard_positives.finetuning.trainer import ContrastiveTrainer
from hard_positives.suite.columns import CAPTION_COLUMNS
from hard_positives_dataset.folders import lock_for
from hard_positives_dataset.shapes import generate_rows

SMALL = Recipe(batch_size=8, learning_rate=1e-3, epochs=4, warmup_steps=2)


@pytest.fixture(scope="module")
def training_rows(triples) -> Dataset:
    """The forty triples, a third of them without hard positive, a third without hard negative."""
    records = triples.to_list()
    for place, record in enumerate(records):
        record["caption"] += f" {place}"
        record["hard_positive"] = None if place % 3 == 0 else record["hard_positive"] + f" {place}"
        record["hard_negative"] = None if place % 3 == 1 else record["hard_negative"] + f" {place}"
        record["category"] = "swap" if place % 4 == 0 else "attribute"
    return Dataset.from_list(records).cast_column("image", Image())


@pytest.fixture(scope="module")
def training_folder(training_rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    training_rows.to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def held_out(triples) -> Dataset:
    """The forty triples, ten of them false, in a category of their own."""
    records = triples.to_list()
    for place, record in enumerate(records):
        record["category"] = "attribute" if place < 10 else "relation"
        if place < 10:
            names = ("caption", "hard_negative")
            record.update(zip(names, (record["hard_negative"], record["caption"]), strict=True))
    return Dataset.from_list(records).cast_column("image", Image())


# --- the loss -------------------------------------------------------------------------------------


def slow_loss(
    images, captions, positives, negatives, scale, has_p, has_n, hard_negatives, weight, ids=None
):
    """The formula of the docstring, one number at a time; ids as for texts_known_true."""
    size = len(images)
    ids = [[i, 4 * i, 4 * i + 1, 4 * i + 2] for i in range(size)] if ids is None else ids
    has = [[True, bool(has_p[i]), bool(has_n[i])] for i in range(size)]
    embeds = [captions, positives, negatives]

    def is_true(i, j, kind):  # text `kind` of row j, of the image of row i
        return any(
            ids[k][0] == ids[i][0] and has[k][said] and ids[k][1 + said] == ids[j][1 + kind]
            for k in range(size)
            for said in (0, 1)
        )

    total, aligned = 0.0, []
    for i in range(size):
        of_others = [(j, kind) for j in range(size) if j != i for kind in (0, 1)]
        of_others += [(j, 2) for j in (range(size) if hard_negatives == "batch" else [i])]
        false = [(j, k) for j, k in of_others if has[j][k] and not is_true(i, j, k)]
        terms = []
        for own in (0, 1) if has_p[i] else (0,):
            text = embeds[own][i]
            right = math.e ** (scale * (images[i] @ text))
            wrong = sum(math.e ** (scale * (images[i] @ embeds[k][j])) for j, k in false)
            others = [j for j in range(size) if j == i or not is_true(j, i, own)]
            every = sum(math.e ** (scale * (images[j] @ text)) for j in others)
            terms.append(-torch.log(right / (right + wrong)) - torch.log(right / every))
        total = total + sum(terms) / len(terms)
        if has_p[i]:
            others = [j for j in range(size) if j == i or not is_true(i, j, 0)]
            every = sum(math.e ** (scale * (positives[i] @ captions[j])) for j in others)
            aligned.append(-torch.log(math.e ** (scale * (positives[i] @ captions[i])) / every))
    loss = total / size / 2
    return loss + weight * sum(aligned) / len(aligned) if weight and aligned else loss


def random_embeds(size: int, seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shape = (4, size, 5)
    return list(normalize(torch.randn(shape, generator=random, dtype=torch.float64), dim=-1))


MASKS = {"all": [1] * 6, "none": [0] * 6, "some": [1, 0, 0, 1, 1, 0], "others": [0, 0, 1, 1, 0, 1]}


@pytest.mark.parametrize("hard_negatives", ["batch", "own"])
@pytest.mark.parametrize("alignment", [0.0, 0.7])
@pytest.mark.parametrize(("with_p", "with_n"), list(itertools.product(MASKS, MASKS)))
def test_loss_and_gradients_are_those_of_the_plain_formula(
    hard_negatives, alignment, with_p, with_n
):
    has_p, has_n = torch.tensor(MASKS[with_p]).bool(), torch.tensor(MASKS[with_n]).bool()
    gradients = []
    for loss_of in (contrastive_loss, slow_loss):
        embeds = [values.requires_grad_() for values in random_embeds(6, seed=len(with_p + with_n))]
        scale = torch.tensor(7.3, dtype=torch.float64, requires_grad=True)
        if loss_of is slow_loss:
            loss = slow_loss(*embeds, scale, has_p, has_n, hard_negatives, alignment)
        else:
            loss = contrastive_loss(
                *embeds,
                scale,
                has_hard_positive=has_p,
                has_hard_negative=has_n,
                hard_negatives=hard_negatives,
                alignment=alignment,
            )
        found = torch.autograd.grad(loss, [*embeds, scale], materialize_grads=True)
        gradients.append([loss.detach(), *found])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


# Image, caption, hard positive, hard negative of each row; equal numbers, equal content.
SHARED = {
    "a picture twice": [[0, 0, 1, 2], [0, 3, 4, 5], [2, 6, 7, 8], [3, 9, 10, 11]],
    "a caption of two pictures": [[0, 0, 1, 2], [1, 0, 4, 5], [2, 6, 7, 8], [3, 9, 10, 11]],
    "a hard positive that is a caption": [[0, 0, 1, 2], [1, 1, 4, 5], [2, 6, 4, 8], [3, 9, 10, 11]],
    "a hard negative that is a caption": [[0, 0, 1, 2], [1, 2, 4, 5], [2, 6, 7, 8], [2, 8, 10, 0]],
    "a picture whose other caption another has": [
        [0, 0, 1, 2],
        [0, 3, 4, 5],
        [1, 3, 7, 8],
        [2, 9, 10, 4],
    ],
    "all of one picture": [[0, 0, 1, 2], [0, 3, 4, 5], [0, 0, 7, 8], [0, 9, 10, 11]],
    "texts that are missing": [[0, 0, -1, -1], [0, 1, -1, -1], [1, 2, -1, 0], [2, 3, 4, -1]],
}


@pytest.mark.parametrize("hard_negatives", ["batch", "own"])
@pytest.mark.parametrize("shared", SHARED)
def test_what_is_known_to_be_true_of_an_image_does_not_count_as_false_for_it(
    shared, hard_negatives
):
    ids = torch.tensor(SHARED[shared])
    has = {"has_hard_positive": ids[:, 2] >= 0, "has_hard_negative": ids[:, 3] >= 0}
    gradients = []
    for is_slow in (False, True):
        embeds = [values.requires_grad_() for values in random_embeds(4, seed=4)]
        if is_slow:
            loss = slow_loss(*embeds, 7.3, *has.values(), hard_negatives, 0.7, ids.tolist())
        else:
            loss = contrastive_loss(
                *embeds,
                7.3,
                **has,
                hard_negatives=hard_negatives,
                alignment=0.7,
                known_true=texts_known_true(ids),
            )
        found = torch.autograd.grad(loss, embeds, materialize_grads=True)
        gradients.append([loss.detach(), *found])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


def test_where_nothing_is_shared_the_loss_keeps_every_bit():
    ids = torch.arange(24).reshape(6, 4)
    has = {name: torch.tensor(MASKS["some"]).bool() for name in ("hard_positive", "hard_negative")}
    has = {f"has_{name}": values for name, values in has.items()}
    found = []
    for known in (None, texts_known_true(ids)):
        embeds = [values.float().requires_grad_() for values in random_embeds(6, seed=5)]
        loss = contrastive_loss(*embeds, 50.0, alignment=0.5, known_true=known, **has)
        found.append([loss.detach(), *torch.autograd.grad(loss, embeds)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_batch_with_nothing_to_tell_apart_moves_nothing():
    ids = torch.tensor([[0, 0, -1, -1], [0, 1, -1, -1]])
    none = torch.tensor([False, False])
    embeds = [values.requires_grad_() for values in random_embeds(2, seed=6)]
    loss = contrastive_loss(
        *embeds,
        9.0,
        has_hard_positive=none,
        has_hard_negative=none,
        known_true=texts_known_true(ids),
    )
    gradients = torch.autograd.grad(loss, embeds, materialize_grads=True)
    assert loss == 0 and all((values == 0).all() for values in gradients)


def test_with_hard_negatives_alone_it_is_negclips_published_formula():
    images, captions, positives, negatives = random_embeds(16, seed=1)
    none, every = torch.zeros(16, dtype=torch.bool), torch.ones(16, dtype=torch.bool)
    loss = contrastive_loss(
        images,
        captions,
        positives,
        negatives,
        20.0,
        has_hard_positive=none,
        has_hard_negative=every,
    )
    # github.com/vinid/neg_clip: text_features holds the captions, then the hard captions.
    text_features, labels = torch.cat([captions, negatives]), torch.arange(16)
    logits_per_image = 20.0 * images @ text_features.T
    logits_per_text = 20.0 * text_features @ images.T
    published = (
        cross_entropy(logits_per_image, labels)
        + cross_entropy(logits_per_text[: len(logits_per_image)], labels)
    ) / 2
    torch.testing.assert_close(loss, published, rtol=1e-12, atol=0)


def test_without_edits_it_is_the_loss_of_clip_itself(tiny_clip, training_rows):
    batch = batch_of(tiny_clip, training_rows, replace(SMALL, **no_edits()), range(8))
    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float64).eval()
    pixels = batch["pixel_values"].double()
    outputs = model(pixel_values=pixels, input_ids=batch["input_ids"], return_loss=True)
    none = torch.zeros(8, dtype=torch.bool)
    loss = contrastive_loss(
        outputs.image_embeds,
        *[outputs.text_embeds] * 3,
        model.logit_scale.exp(),
        has_hard_positive=none,
        has_hard_negative=none,
    )
    torch.testing.assert_close(loss, outputs.loss, rtol=1e-10, atol=0)


def test_what_stands_in_the_place_of_a_missing_text_does_not_matter():
    images, captions, positives, negatives = random_embeds(6, seed=2)
    has = {
        "has_hard_positive": torch.tensor([True, False] * 3),
        "has_hard_negative": torch.tensor([False, True] * 3),
    }
    loss = contrastive_loss(images, captions, positives, negatives, 9.0, alignment=0.5, **has)
    positives[1], negatives[4] = images[1], -captions[2]
    same = contrastive_loss(images, captions, positives, negatives, 9.0, alignment=0.5, **has)
    assert loss == same


def test_a_caption_and_its_hard_positive_do_not_push_each_other_away():
    images, captions, positives, negatives = random_embeds(2, seed=3)
    positives = positives.requires_grad_()
    has = {"has_hard_positive": torch.tensor([True, False])}
    has["has_hard_negative"] = torch.tensor([False, False])
    loss = contrastive_loss(images, captions, positives, negatives, 5.0, **has)
    gradient = torch.autograd.grad(loss, positives)[0]
    # Nearer to its own image is always better, whatever the caption's place.
    assert gradient[0] @ (images[0] - images[1]) < 0
    assert gradient[1].abs().max() == 0


# --- the data -------------------------------------------------------------------------------------


def no_edits() -> dict[str, float]:
    return {"hard_positive_share": 0.0, "hard_negative_share": 0.0}


def batch_of(model, rows, recipe, places) -> dict[str, torch.Tensor]:
    checked = check_training_rows({"train": rows})
    data = TrainingRows(
        checked, identify_content(checked)[0], *choose_texts(checked, recipe, seed=0)
    )
    processor = AutoProcessor.from_pretrained(model, backend="pil")
    return Collator(processor)([data[place] for place in places])


def test_a_batch_is_as_long_as_its_longest_caption_and_its_texts_stand_in_order(
    tiny_clip, training_rows
):
    places = [3, 4, 6]  # without positive, without negative, without positive
    batch = batch_of(tiny_clip, training_rows, SMALL, places)
    records = [training_rows[place] for place in places]
    texts = [r["caption"] for r in records] + [records[1]["hard_positive"]]
    texts += [records[0]["hard_negative"], records[2]["hard_negative"]]
    tokenizer = AutoProcessor.from_pretrained(tiny_clip, backend="pil").tokenizer
    expected = tokenizer(texts)["input_ids"]
    assert batch["input_ids"].shape == (6, max(map(len, expected)))
    for ids, row in zip(expected, batch["input_ids"].tolist(), strict=True):
        assert row[: len(ids)] == ids
    present = (batch["content_ids"] >= 0).tolist()
    assert present == [[True, True, False, True], [True, True, True, False], present[0]]


def test_rows_know_which_of_them_share_a_picture_or_a_text(triples):
    records = [dict(record) for record in triples.to_list()[:8]]
    records[5]["hard_positive"] = records[0]["caption"]
    records[6]["hard_negative"] = None
    rows = Dataset.from_list(records, triples.features)
    ids, digests = identify_content(check_training_rows({"train": rows}))
    assert [digests.index(digest) for digest in digests] == [0, 0, 0, 0, 4, 4, 4, 4]
    assert ids[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert ids[5, 2] == ids[0, 1] and ids[6, 3] == -1
    texts = [[row[name] for name in CAPTION_COLUMNS] for row in records]
    for (i, a), (j, b) in itertools.product(itertools.product(range(8), range(3)), repeat=2):
        same = texts[i][a] is not None and texts[i][a] == texts[j][b]
        assert same == (ids[i, 1 + a] == ids[j, 1 + b] >= 0)


def test_trimming_changes_no_vector(tiny_clip, training_rows):
    ids = batch_of(tiny_clip, training_rows, replace(SMALL, **no_edits()), range(8))["input_ids"]
    tokenizer = AutoProcessor.from_pretrained(tiny_clip, backend="pil").tokenizer
    captions = training_rows[:8]["caption"]
    full = tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt")
    assert ids.shape[1] < full["input_ids"].shape[1]
    model = CLIPModel.from_pretrained(tiny_clip, dtype=torch.float64).eval()
    with torch.inference_mode():
        trimmed = model.get_text_features(input_ids=ids).pooler_output
        padded = model.get_text_features(**full).pooler_output
    torch.testing.assert_close(trimmed, padded, rtol=1e-9, atol=1e-9)


def test_shares_are_exact_parts_of_one_another_and_follow_the_seed(training_rows):
    rows = check_training_rows({"train": training_rows})
    used = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        recipe = replace(SMALL, hard_negative_share=share, hard_positive_share=share)
        used[share] = choose_texts(rows, recipe, seed=0)
        again = choose_texts(rows, recipe, seed=0)
        np.testing.assert_array_equal(used[share], again)
    for which, there in enumerate((26, 27)):
        sets = [set(np.flatnonzero(both[which])) for both in used.values()]
        assert [len(chosen) for chosen in sets] == [round(share * there) for share in used]
        assert all(small <= large for small, large in itertools.pairwise(sets))
    half = replace(SMALL, hard_negative_share=0.5, hard_positive_share=0.5)
    for one, other in zip(used[0.5], choose_texts(rows, half, seed=1), strict=True):
        assert not np.array_equal(one, other)


@pytest.mark.parametrize(("kind", "is_swap"), [("swap", True), ("replace", False)])
def test_hard_positives_of_one_kind_alone_leave_the_hard_negatives_be(training_rows, kind, is_swap):
    rows = check_training_rows({"train": training_rows})
    positives, negatives = choose_texts(rows, replace(SMALL, hard_positive_kind=kind), seed=0)
    expected = [
        text is not None and (category == "swap") == is_swap
        for text, category in zip(rows["hard_positive"], rows["category"], strict=True)
    ]
    assert positives.tolist() == expected
    assert negatives.sum() == 27


def test_kinds_are_read_from_class_labels_too_and_nothing_else_passes_for_one(
    training_rows, held_out, tmp_path
):
    recipe = replace(SMALL, hard_positive_kind="swap")
    labels = training_rows.cast_column("category", ClassLabel(names=["attribute", "swap"]))
    for named, coded in zip(
        choose_texts(check_training_rows({"train": training_rows}), recipe, seed=0),
        choose_texts(check_training_rows({"train": labels}), recipe, seed=0),
        strict=True,
    ):
        assert coded.any()
        np.testing.assert_array_equal(named, coded)
    nulls, numbers = [None] + ["swap"] * 39, list(range(40))
    rows = [
        training_rows.remove_columns("category").add_column("category", wrong)
        for wrong in (nulls, numbers)
    ]
    for wrong in rows:
        with pytest.raises(TypeError, match=r"column 'category' to hold strings, got .* first 0"):
            finetune("no/such-model", wrong, tmp_path / "out", recipe=recipe)
    without = held_out.remove_columns("category").add_column("category", nulls)
    with pytest.raises(ValueError, match=r"'category' .* got null in 1 rows, first 0"):
        finetune("no/such-model", training_rows, tmp_path / "out", recipe=SMALL, held_out=without)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"caption": ""}, ValueError, "Expected caption to be text, or null, got '' in 1 rows"),
        ({"hard_positive": " "}, ValueError, "Expected hard_positive to be text"),
        ({"caption": None}, TypeError, "Expected every row to have a caption, got none in 1 rows"),
        ({"hard_negative": "white cat 0"}, ValueError, "hard negatives to differ .* first 0"),
        ({"caption": "word " * 40}, ValueError, "caption to be at most 77 tokens long"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(
    training_rows, tiny_clip, tmp_path, change, error, match
):
    records = training_rows.to_list()
    records[0].update(change)
    rows = Dataset.from_list(records, features=training_rows.features)
    with pytest.raises(error, match=match):
        finetune(tiny_clip, rows, tmp_path / "out", recipe=SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["/dev/zero", "pipe", "/etc/hostname", "../mine.png", "/mine.png"])
def test_rows_that_name_files_outside_their_folder_are_refused_before_a_model_is_looked_for(
    path, training_rows, tmp_path
):
    folder = tmp_path / "data"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    training_rows[0]["image"].save(tmp_path / "mine.png")
    if path == "/mine.png":
        path = str(tmp_path / "mine.png")
    records = training_rows.cast_column("image", Image(decode=False)).to_list()
    records[3]["image"] = {"bytes": None, "path": path}
    table = pa.Table.from_pylist(records, schema=training_rows.features.arrow_schema)
    pq.write_table(table, folder / "train.parquet")
    with pytest.raises(ValueError, match=r"image.*3"):
        finetune("no/such-model", folder, tmp_path / "out", recipe=SMALL)
    assert not (tmp_path / "out").exists()


def test_data_other_than_its_card_states_are_refused(generated_folder, tmp_path):
    card = generated_folder / "README.md"
    stated = re.search(r"content_sha256:\s+train: '?([0-9a-f]{64})", card.read_text())
    assert stated, card.read_text()[:600]
    card.write_text(card.read_text().replace(stated[1], "0" * 64))
    with pytest.raises(ValueError, match="the dataset's card states"):
        finetune("no/such-model", generated_folder, tmp_path / "out", recipe=SMALL)


def test_wrong_data_and_settings_are_found_before_a_model_is_looked_for(training_rows, tmp_path):
    def run(rows=training_rows, recipe=SMALL, **options):
        finetune("no/such-model", rows, tmp_path / "out", recipe=recipe, **options)

    with pytest.raises(ValueError, match=r"columns .* Rename or add \['hard_negative'\]"):
        run(training_rows.remove_columns("hard_negative"))
    numbers = training_rows.remove_columns("caption").add_column("caption", list(range(40)))
    with pytest.raises(TypeError, match="'caption' to hold strings, got Value"):
        run(numbers)
    with pytest.raises(ValueError, match="at least 64 rows, one batch, got 40"):
        run(recipe=replace(SMALL, batch_size=64))
    with pytest.raises(ValueError, match="column 'category' for hard_positive_kind"):
        run(training_rows.remove_columns("category"), replace(SMALL, hard_positive_kind="swap"))
    with pytest.raises(ValueError, match="one split, got"):
        run({"train": training_rows, "test": training_rows})
    with pytest.raises(ValueError, match="dtype to be one of"):
        run(dtype="float8")
    with pytest.raises(ValueError, match="checkpoint_steps to be at least 1"):
        run(checkpoint_steps=0)
    with pytest.raises(OSError):
        run()
    with pytest.raises(TypeError, match="model to be a Hub id or a folder, got Linear"):
        finetune(torch.nn.Linear(1, 1), training_rows, tmp_path / "out", recipe=SMALL)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hard_negative_share": 1.01}, "hard_negative_share to be between 0 and 1, got 1.01"),
        ({"hard_positive_share": -0.1}, "hard_positive_share to be between 0 and 1"),
        ({"hard_positive_share": math.nan}, "hard_positive_share to be between 0 and 1"),
        ({"hard_negatives": "all"}, r"hard_negatives to be one of \['batch', 'own'\], got 'all'"),
        ({"hard_positive_kind": "move"}, "hard_positive_kind to be one of"),
        ({"alignment": -1.0}, "alignment to be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate to be above 0"),
        ({"epochs": math.inf}, "epochs to be above 0"),
        ({"batch_size": 1}, "batch_size to be at least 2"),
    ],
)
def test_a_recipe_refuses_what_is_out_of_range(change, match):
    with pytest.raises(ValueError, match=match):
        Recipe(**change)


def test_published_recipes_name_their_source_and_what_they_lack():
    assert all(
        recipe.source and recipe.differs for name, recipe in RECIPES.items() if name != "both"
    )
    # None of their losses leaves out what is true; ours does.
    leaves_out = {name: recipe.leave_out_true for name, recipe in RECIPES.items()}
    assert leaves_out == {**dict.fromkeys(RECIPES, False), "both": True}


# --- the training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tiny_clip, training_folder, held_out, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("tuned") / "model"
    return finetune(
        tiny_clip, training_folder, output, recipe=SMALL, held_out=held_out, checkpoint_steps=6
    )


def test_the_result_is_a_clip_that_learnt_and_scores_as_was_recorded(tuned, held_out):
    assert CLIPModel.from_pretrained(tuned).num_parameters() > 0
    record = json.loads((tuned / "finetuning.json").read_text())
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    scored_at = [e["step"] for e in record["history"] if "eval_rows_brittleness" in e]
    assert scored_at[:3] == [6, 12, 18]
    metrics = evaluate(tuned, held_out, cache=False).metrics["as_published"]["rows"]
    macro = metrics["macro"]
    assert macro["original_accuracy"] != metrics["original_accuracy"]
    for name in ("original_accuracy", "augmented_accuracy", "brittleness"):
        assert record["after"][f"eval_rows_{name}"] == pytest.approx(macro[name], abs=1e-9)
    assert not (tuned / "checkpoints").exists()


def test_a_terminal_is_told_steps_loss_and_figures(
    tiny_clip, training_folder, held_out, tmp_path, monkeypatch
):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    options = {"recipe": replace(SMALL, epochs=1), "held_out": held_out, "checkpoint_steps": 2}
    finetune(tiny_clip, training_folder, tmp_path / "model", **options)
    shown = sys.stderr.getvalue()
    record = json.loads((tmp_path / "model" / "finetuning.json").read_text())
    steps = record["history"][-1]["step"]
    assert "steps: 100%|" in shown and f"{steps}/{steps}" in shown
    brittleness = record["after"]["eval_rows_brittleness"]
    figures = rf"step {steps}: rows original .*, rows brittleness {100 * brittleness:.1f}"
    assert re.search(figures, shown)
    assert "Loading weights" not in shown and "model shards" not in shown


def test_the_card_states_data_shares_loss_and_figures(tuned, training_folder):
    card = (tuned / "README.md").read_text()
    record = json.loads((tuned / "finetuning.json").read_text())
    for stated in (
        f"`{training_folder.name}`: 40 images",
        "| hard positives | 26 | 1 |",
        "| hard negatives | 27 | 1 |",
        "all hard negatives of its batch",
        "4 epochs in batches of 8",
        f"| rows_original_accuracy | {record['before']['eval_rows_original_accuracy']:.1%} |",
        record["settings"]["data"]["content_sha256"],
    ):
        assert stated in card
    assert "base_model" not in card  # a folder is no id on the Hub
    assert str(training_folder.parent) not in card


def test_a_finished_folder_and_one_of_other_settings_are_refused(
    tuned, tiny_clip, training_folder, tmp_path
):
    with pytest.raises(FileExistsError, match="got a finished model"):
        finetune(tiny_clip, training_folder, tuned, recipe=SMALL)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="got something there"):
        finetune(tiny_clip, training_folder, tmp_path, recipe=SMALL)
    record = json.loads((tuned / "finetuning.json").read_text())
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "finetuning.json").write_text(json.dumps(record))
    with pytest.raises(FileExistsError, match="same settings, got another"):
        finetune(tiny_clip, training_folder, begun, recipe=replace(SMALL, alignment=0.5))


def test_a_run_that_diverges_ends_with_a_sentence(tiny_clip, training_folder, tmp_path):
    recipe = replace(SMALL, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(ValueError, match=r"loss to be finite, got .* Lower the learning rate"):
        finetune(tiny_clip, training_folder, tmp_path / "out", recipe=recipe)


def test_the_scale_stays_where_clips_training_kept_it(tiny_clip, training_folder, tmp_path):
    model = CLIPModel.from_pretrained(tiny_clip)
    model.logit_scale.data.fill_(9.0)
    model.save_pretrained(tmp_path / "steep")
    AutoProcessor.from_pretrained(tiny_clip, backend="pil").save_pretrained(tmp_path / "steep")
    recipe = replace(SMALL, epochs=1)
    output = finetune(tmp_path / "steep", training_folder, tmp_path / "out", recipe=recipe)
    scale = load_file(output / "model.safetensors")["logit_scale"].exp().item()
    assert scale <= 100.01


def trainer_of(model: Path, recipe: Recipe, folder: Path, **options) -> ContrastiveTrainer:
    return ContrastiveTrainer(
        recipe=recipe,
        processor=AutoProcessor.from_pretrained(model, backend="pil"),
        model=CLIPModel.from_pretrained(model, dtype=torch.float64),
        args=TrainingArguments(str(folder), use_cpu=True, report_to="none", **options),
    )


def test_every_text_of_a_batch_is_compared_as_its_own_rows(tiny_clip, training_rows, tmp_path):
    recipe = replace(SMALL, hard_negatives="own", alignment=0.5)
    trainer = trainer_of(tiny_clip, recipe, tmp_path)
    batch = batch_of(tiny_clip, training_rows, recipe, range(8))
    loss = trainer.compute_loss(
        trainer.model.eval(), {**batch, "pixel_values": batch["pixel_values"].double()}
    )
    columns = {}
    for name in ("caption", "hard_positive", "hard_negative"):
        texts = [text or "nothing" for text in training_rows[:8][name]]
        tokens = [trainer.processor.tokenizer(text, return_tensors="pt") for text in texts]
        vectors = [trainer.model.get_text_features(**ids).pooler_output for ids in tokens]
        columns[name] = normalize(torch.cat(vectors), dim=-1)
    pixels = trainer.model.get_image_features(batch["pixel_values"].double()).pooler_output
    expected = contrastive_loss(
        normalize(pixels, dim=-1),
        *columns.values(),
        trainer.model.logit_scale.exp(),
        has_hard_positive=batch["content_ids"][:, 2] >= 0,
        has_hard_negative=batch["content_ids"][:, 3] >= 0,
        hard_negatives="own",
        alignment=0.5,
        known_true=texts_known_true(batch["content_ids"]),
    )
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_scoring_on_the_way_leaves_the_mode_that_it_found(
    tiny_clip, training_folder, held_out, tmp_path
):
    modes, evaluate_trainer = [], ContrastiveTrainer.evaluate

    def watched(self, *args, **options):
        before = [module.training for module in self.model.modules()]
        figures = evaluate_trainer(self, *args, **options)
        modes.append((before, [module.training for module in self.model.modules()]))
        return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveTrainer, "evaluate", watched)
        finetune(
            tiny_clip,
            training_folder,
            tmp_path / "out",
            recipe=SMALL,
            held_out=held_out,
            checkpoint_steps=10,
        )
    assert all(before == after for before, after in modes)
    assert [all(before) for before, _ in modes][:2] == [False, True]  # before and in training


def test_gains_biases_and_the_scale_do_not_decay(tiny_clip, tmp_path):
    trainer = trainer_of(tiny_clip, SMALL, tmp_path, weight_decay=0.3)
    decaying, others = trainer.create_optimizer().param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {values.ndim for values in decaying["params"]} == {2, 4}
    assert {values.ndim for values in others["params"]} == {0, 1}


def test_mixed_precision_trains_float32_weights(tiny_clip, training_folder, tmp_path):
    recipe = replace(SMALL, epochs=1)
    output = finetune(tiny_clip, training_folder, tmp_path / "out", recipe=recipe, dtype="bfloat16")
    weights = load_file(output / "model.safetensors")
    assert {values.dtype for values in weights.values()} == {torch.float32}


def command(model: Path, data: Path, output: Path, *options: str) -> list[str]:
    return [
        *("-m", "hard_positives", "finetune", str(model), "--data", str(data)),
        *("--output", str(output), "--batch-size", "8", "--learning-rate", "1e-3"),
        *("--epochs", "4", "--warmup-steps", "2", "--quiet", *options),
    ]


@pytest.fixture
def generated_folder(tmp_path) -> Path:
    """A set that our rules made from true captions of rendered scenes."""
    rows = Dataset.from_list(list(generate_rows("train", 80))).cast_column("image", Image())
    captions = read_captions(rows.select_columns(["id", "image", "caption"]))
    return generate(captions, tmp_path / "generated", Rules(), workers=1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["own rows", "shapes_clip on a generated set"])
def test_a_run_killed_again_and_again_ends_with_the_bytes_of_one_that_was_not(
    case, tiny_clip, training_folder, generated_folder, tmp_path
):
    model, data = (
        (tiny_clip, training_folder) if case == "own rows" else ("shapes_clip", generated_folder)
    )
    run = [sys.executable, *command(model, data, tmp_path / "killed")]
    run += ["--checkpoint-steps", "6"]
    checkpoints = tmp_path / "killed" / "checkpoints"
    for step in (6, 18):
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (checkpoints / f"checkpoint-{step}").exists():
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "README.md").exists()
    # As a kill in the middle of writing leaves it: no mark, and no optimizer.
    broken = checkpoints / "checkpoint-19"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = [sys.executable, *command(model, data, tmp_path / "whole")]
    subprocess.run([*whole, "--checkpoint-steps", "6"], check=True, capture_output=True)
    for name in ("model.safetensors", "README.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    histories = [
        json.loads((tmp_path / name / "finetuning.json").read_text())["history"]
        for name in ("killed", "whole")
    ]
    losses = [[e["loss"] for e in history if "loss" in e] for history in histories]
    assert losses[0] == losses[1]


# --- interruptions, damage, full disks ------------------------------------------------------------

LONG = replace(SMALL, epochs=8)  # 40 steps


@pytest.fixture(scope="module")
def whole(tiny_clip, training_folder, tmp_path_factory) -> Path:
    """What a run leaves that nothing happened to."""
    output = tmp_path_factory.mktemp("whole") / "model"
    return finetune(tiny_clip, training_folder, output, recipe=LONG, checkpoint_steps=6)


@pytest.fixture(scope="module")
def interrupted(tiny_clip, training_folder, tmp_path_factory) -> Path:
    """A run that Ctrl-C ended after its second checkpoint."""
    output = tmp_path_factory.mktemp("interrupted") / "model"

    def press():
        while not (output / "checkpoints" / "checkpoint-12" / "complete").exists():
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny_clip, training_folder, output, recipe=LONG, checkpoint_steps=6)
    finger.join()
    assert not (output / "README.md").exists()
    return output


@pytest.fixture
def begun(interrupted, tmp_path) -> Path:
    return shutil.copytree(interrupted, tmp_path / "begun")


def assert_ends_like(whole: Path, output: Path) -> None:
    """The model, the card and all that belongs to them, to the byte; the record holds times."""
    files = [{path.name for path in folder.iterdir()} for folder in (whole, output)]
    assert files[0] == files[1]
    for name in files[0] - {"finetuning.json"}:
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def test_an_interrupted_run_resumes_and_ends_with_the_bytes_of_a_whole_one(
    begun, whole, tiny_clip, training_folder
):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        finetune(tiny_clip, training_folder, begun, recipe=LONG, checkpoint_steps=6)
    assert_ends_like(whole, begun)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "all of both"])
def test_a_damaged_checkpoint_is_not_used_and_a_line_says_what_is(
    name, begun, whole, tiny_clip, training_folder
):
    before, last = in_order(begun / "checkpoints")
    if name == "all of both":
        for path in (*before.iterdir(), *last.iterdir()):
            flip(path, 12_345)
        start = "Starting again from the beginning"
    else:
        flip(last / name, 12_345)
        start = f"Resuming from {before.name}"
    with pytest.warns(UserWarning, match=f"Expected .*{last.name}.* got other bytes. {start}"):
        finetune(tiny_clip, training_folder, begun, recipe=LONG, checkpoint_steps=6)
    assert_ends_like(whole, begun)


def test_no_file_of_a_checkpoint_can_change_come_or_go_unnoticed(interrupted):
    last = in_order(interrupted / "checkpoints")[-1]
    assert is_whole(last)
    files = sorted(path for path in last.iterdir())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < {
        path.name for path in files
    }
    random = np.random.default_rng(0)
    for path in files:
        for bit in random.integers(0, 8 * path.stat().st_size, 5).tolist():
            flip(path, bit)
            assert not is_whole(last), (path.name, bit)
            flip(path, bit)
        aside = path.rename(interrupted / path.name)
        assert not is_whole(last), path.name
        aside.rename(path)
    (last / "more.bin").touch()
    assert not is_whole(last)
    (last / "more.bin").unlink()
    assert is_whole(last)
    other = shutil.copytree(last, interrupted / "checkpoints" / "checkpoint-99")
    assert not is_whole(other)
    shutil.rmtree(other)


def test_a_damaged_record_is_named(begun, tiny_clip, training_folder):
    record = begun / "finetuning.json"
    kept = record.read_bytes()
    number = kept.replace(b'"learning_rate": 0.001', b'"learning_rate": 0.002')
    for content in (kept[:-40], number, b"{}", b"[]", b"\xff" + kept, b"[" * 100_000):
        assert content != kept
        record.write_bytes(content)
        with pytest.raises(ValueError, match=r"finetuning\.json to be as finetune wrote it, got"):
            finetune(tiny_clip, training_folder, begun, recipe=LONG, checkpoint_steps=6)


def test_a_run_is_known_by_content_and_not_by_names(
    begun, whole, tiny_clip, training_folder, training_rows, held_out, tmp_path
):
    def refused(match, model=tiny_clip, data=training_folder, **options):
        with pytest.raises(FileExistsError, match=match):
            finetune(model, data, begun, recipe=LONG, checkpoint_steps=6, **options)

    clip = CLIPModel.from_pretrained(tiny_clip)
    with torch.no_grad():
        clip.logit_scale += 0.1
    other = shutil.copytree(tiny_clip, tmp_path / "elsewhere" / tiny_clip.name)
    clip.save_pretrained(other)
    refused("another model content_sha256", model=other)

    records = training_rows.to_list()
    records[7]["image"], records[30]["image"] = records[30]["image"], records[7]["image"]
    pictures = tmp_path / training_folder.name
    pictures.mkdir()
    Dataset.from_list(records, features=training_rows.features).to_parquet(
        pictures / "train.parquet"
    )
    refused("another data content_sha256", data=pictures)
    refused("another held_out", held_out=held_out)

    moved = [
        shutil.copytree(source, tmp_path / "moved" / name)
        for name, source in {"model": tiny_clip, "data": training_folder}.items()
    ]
    finetune(*moved, begun, recipe=LONG, checkpoint_steps=6)
    assert (begun / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_nothing_says_where_model_and_data_lay(tuned, tiny_clip, training_folder):
    private = {str(tiny_clip.parent), str(training_folder.parent), str(tuned.parent)}
    for path in tuned.iterdir():
        content = path.read_bytes()
        assert not [folder for folder in private if folder.encode() in content], path.name


def test_two_runs_cannot_write_one_folder(begun, tiny_clip, training_folder):
    with lock_for(begun), pytest.raises(FileExistsError, match="another process that is writing"):
        finetune(tiny_clip, training_folder, begun, recipe=LONG, checkpoint_steps=6)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_worker_ends_the_run_with_a_sentence_and_the_same_run_resumes(
    begun, whole, tiny_clip, training_folder
):
    def kill():
        while not multiprocessing.active_children():
            os.sched_yield()
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ChildProcessError, match=r"that decode images to live, got: DataLoader w"):
        finetune(tiny_clip, training_folder, begun, recipe=LONG, checkpoint_steps=6, num_workers=1)
    killer.join()
    finetune(tiny_clip, training_folder, begun, recipe=LONG, checkpoint_steps=6, num_workers=1)
    assert_ends_like(whole, begun)


def test_an_image_that_cannot_be_read_is_named_also_where_workers_decode(
    tiny_clip, training_rows, tmp_path
):
    rows = training_rows.cast_column("image", Image(decode=False)).to_list()
    rows[11]["image"]["bytes"] = rows[11]["image"]["bytes"][:60]
    rows = Dataset.from_list(rows).cast_column("image", Image())
    for num_workers in (0, 2):
        with pytest.raises(ValueError, match=r"^Expected row 11 .*image[^\n]*$"):
            finetune(
                tiny_clip,
                rows,
                tmp_path / f"out-{num_workers}",
                recipe=SMALL,
                num_workers=num_workers,
            )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_resumes_when_there_is_room(
    whole, tiny_clip, training_folder, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        told, kept = [], []
        for kilobytes in range(64, 20_000, 450):
            remount = f"remount,size={kilobytes}k"
            subprocess.run(["mount", "-o", remount, str(disk)], check=True)
            try:
                finetune(tiny_clip, training_folder, disk / "m", recipe=LONG, checkpoint_steps=6)
                break
            except OSError as error:
                told.append(str(error))
            assert not (disk / "m" / "README.md").exists()
            checkpoints = in_order(disk / "m" / "checkpoints")
            kept.append(sum(is_whole(checkpoint) for checkpoint in checkpoints))
        assert all(re.match("Expected room on the disk for .* run the same", t) for t in told)
        assert {0, 1, 2} == set(kept)  # it was full at the record, at checkpoints, at the model
        assert_ends_like(whole, disk / "m")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def children_of(process: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= set(map(int, task.read_text().split()))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux's /proc")
def test_the_processes_that_decode_die_with_a_killed_run(tiny_clip, training_folder, tmp_path):
    arguments = command(tiny_clip, training_folder, tmp_path / "out", "--workers", "2")
    arguments[arguments.index("--epochs") + 1] = "4000"
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(children_of(process.pid)) < 2:
        os.sched_yield()
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    while any(Path(f"/proc/{child}/exe").exists() for child in children):  # no zombie counts
        os.sched_yield()


# --- several processes ----------------------------------------------------------------------------

TORCHRUN = [
    *("-m", "torch.distributed.run", "--nproc_per_node", "2"),
    *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
]

# Writes the loss and the gradients of one step in float64, and which rows are in which batch.
ONE_STEP = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from torch.utils.data import Subset
from transformers import AutoProcessor, CLIPModel, TrainingArguments
from hard_positives import Recipe
from hard_positives.suite.sources import load_splits
from hard_positives.finetuning.trainer import ContrastiveTrainer
from hard_positives.finetuning.rows import (
    Collator, TrainingRows, check_training_rows, choose_texts, identify_content
)
model_dir, data, output = sys.argv[1:]
rows = check_training_rows(load_splits(data))
ids = identify_content(rows)[0]
processor = AutoProcessor.from_pretrained(model_dir, backend="pil")
data = TrainingRows(rows, ids, *choose_texts(rows, Recipe(), 0))
world_size = int(__import__("os").environ.get("WORLD_SIZE", 1))
args = TrainingArguments(
    output, use_cpu=True, report_to="none", remove_unused_columns=False, data_seed=3,
    per_device_train_batch_size=8 // world_size, dataloader_drop_last=True,
)
trainer = ContrastiveTrainer(
    recipe=Recipe(), processor=processor, args=args,
    train_dataset=Subset(data, range(37)),  # no multiple of the batch
    model=CLIPModel.from_pretrained(model_dir, dtype=torch.float64),
)
model = trainer.accelerator.prepare(trainer.model)
size = 8 // args.world_size
mine = range(size * args.process_index, size * (args.process_index + 1))
batch = Collator(processor)([data[place] for place in mine])
batch["pixel_values"] = batch["pixel_values"].double()
found = {}
for hard_negatives in ("batch", "own"):
    trainer.recipe = Recipe(hard_negatives=hard_negatives, alignment=0.5)
    model.zero_grad()
    loss = trainer.compute_loss(model, batch)
    trainer.accelerator.backward(loss)
    found[f"{hard_negatives} loss"] = loss.detach()
    for name, values in trainer.accelerator.unwrap_model(model).named_parameters():
        found[f"{hard_negatives} {name}"] = values.grad.clone()
if trainer.is_world_process_zero():
    save_file(found, f"{output}.safetensors")
captions = [ids[row, 1] for row in range(40)]
batches = [
    [captions.index(caption) for caption in batch["content_ids"][:, 1].tolist()]
    for batch in trainer.get_train_dataloader()
]
Path(f"{output}-{args.process_index}.json").write_text(json.dumps(batches))
"""


@pytest.mark.slow
def test_two_processes_share_the_rows_and_have_the_loss_and_the_gradients_of_one(
    tiny_clip, training_folder, tmp_path
):
    script = tmp_path / "step.py"
    script.write_text(ONE_STEP)
    for name, how in (("one", []), ("two", TORCHRUN)):
        done = subprocess.run(
            [sys.executable, *how, script, tiny_clip, training_folder, tmp_path / name],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max(values.abs().max() for values in one.values()) > 1e-3
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-8, atol=1e-12, msg=name)

    [alone] = [json.loads(path.read_text()) for path in tmp_path.glob("one-*.json")]
    shares = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("two-*.json"))]
    assert len(shares) == 2
    assert [{*first, *second} for first, second in zip(*shares, strict=True)] == [*map(set, alone)]
    assert len({row for batch in alone for row in batch}) == 32 == sum(map(len, shares[0])) * 2


@pytest.mark.slow
def test_a_run_of_two_processes_ends_where_one_of_one_ends(tiny_clip, training_folder, tmp_path):
    for name, how in (("two", TORCHRUN), ("one", [])):
        arguments = command(tiny_clip, training_folder, tmp_path / name, "--checkpoint-steps", "6")
        done = subprocess.run(
            [sys.executable, *how, *arguments], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
    records = [
        json.loads((tmp_path / name / "finetuning.json").read_text()) for name in ("one", "two")
    ]
    assert [record["num_processes"] for record in records] == [[1], [2]]
    assert records[0]["settings"] == records[1]["settings"]
    losses = [[e["loss"] for e in record["history"] if "loss" in e] for record in records]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    # Not the weights: what moves a bias of the keys is rounding alone, which Adam makes large.
    rows = load_dataset(str(training_folder), split="train").filter(lambda row: all(row.values()))
    one, two = (score(tmp_path / name, rows, cache=False) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-3)
    assert np.abs(one - score(tiny_clip, rows, cache=False)).max() > 0.1


def test_the_command_says_what_is_wrong_in_a_sentence(training_folder, tmp_path):
    arguments = ["finetune", "shapes_clip", "--data", str(training_folder)]
    arguments += ["--output", str(tmp_path / "out")]
    wrong = CliRunner().invoke(app, [*arguments, "--hard-negative-share", "2"])
    assert wrong.exit_code == 1
    assert "Expected hard_negative_share to be between 0 and 1, got 2.0." in wrong.stderr
    unknown = CliRunner().invoke(app, [*arguments, "--recipe", "none"])
    assert unknown.exit_code == 1
    assert "Expected recipe to be one of ['both', 'negclip'" in unknown.stderr


def test_rows_from_the_rendered_world_can_be_trained_on(tmp_path):
    records = list(generate_rows("train", 12))
    rows = Dataset.from_list(records).cast_column("image", Image())
    rows = check_training_rows({"train": rows})
    positives, negatives = choose_texts(rows, SMALL, seed=0)
    assert positives.all()
    assert negatives.all()
    Dataset.from_list(records).to_parquet(tmp_path / "train.parquet")
    assert len(load_dataset(str(tmp_path), split="train")) == 12
