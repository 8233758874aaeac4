import json

import pytest
from conftest import ROOT
from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset
from typer.testing import CliRunner

from hard_positives import Columns, Rules, augment, evaluate
from hard_positives.cli import app
from hard_positives.generation.augment import Wanted, hard_positives_of, on_same_words, refusal
from hard_positives.generation.run import TASKS, Edit, words_of

REPLACE, SWAP = TASKS[0], TASKS[2]
PAIR = Columns(positives=["caption"], negatives=["negative"])


def words(*captions: str) -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(words_of(caption)) for caption in captions)


def shapes(split: str = "replace", number: int = 40) -> Dataset:
    rows = load_dataset(str(ROOT / "hard_positives_dataset"), split=split)
    return rows.select(range(number)).cast_column("image", Image(decode=False))


def without_positives(rows: Dataset) -> Dataset:
    return rows.remove_columns(["hard_positive", "substitution", "flaws"])


def test_an_edit_that_equals_a_negative_of_any_caption_of_the_image_is_refused():
    caption, edited = "a small dog", "a little dog"
    assert refusal(Wanted(caption, ["a big dog"]), edited, REPLACE) == ""
    assert refusal(Wanted(caption, ["A little dog."]), edited, REPLACE) == "equals_negative"
    other = Wanted(caption, ["a big dog"], false=words("A little, dog"))
    assert refusal(other, edited, REPLACE) == "equals_negative"


def test_an_edit_that_equals_another_true_caption_of_the_image_is_refused():
    wanted = Wanted("a small dog", ["a big dog"], true=words("a small dog", "a little dog"))
    assert refusal(wanted, "a little dog", REPLACE) == "equals_true_caption"


def test_an_edit_that_contradicts_the_caption_is_refused():
    wanted = Wanted("a red car on a road", ["a red car on a beach"])
    assert refusal(wanted, "a blue car on a road", REPLACE) == "contradicts_caption"


def test_an_edit_that_means_what_the_negative_says_is_refused():
    wanted = Wanted("a worn dog", ["a small dog"])
    assert refusal(wanted, "a little dog", REPLACE) == "means_negative"
    assert refusal(wanted, "a shabby dog", REPLACE) == ""


def test_an_edit_that_brings_in_the_words_of_the_negative_is_refused():
    wanted = Wanted("a man riding a horse", ["a man feeding a horse"])
    assert refusal(wanted, "a man feeding the horse", REPLACE) == "words_of_negative"


def test_the_words_that_the_negative_changed_are_changed_first():
    caption = "a small dog on a sofa by the street"
    for negative, word in (
        ("a big dog on a sofa by the street", "small"),
        ("a small dog on a bed by the street", "sofa"),
        ("a small dog on a sofa by the beach", "street"),
    ):
        for seed in range(5):
            wanted = Wanted(caption, [negative])
            [(edit, task)] = hard_positives_of([wanted], Rules(seed))
            assert task == REPLACE and word not in words_of(edit.caption)
            assert on_same_words(wanted, edit.caption)


def test_a_caption_whose_words_cannot_be_replaced_there_is_changed_elsewhere():
    wanted = Wanted("a xylograph on a sofa", ["a qwerty on a sofa"])
    [(edit, _)] = hard_positives_of([wanted], Rules())
    assert edit.caption == "a xylograph on a couch"
    assert not on_same_words(wanted, edit.caption)


def test_a_swapped_negative_gets_a_reordered_positive():
    wanted = Wanted("the paved road and the white house", ["the white road and the paved house"])
    [(edit, task)] = hard_positives_of([wanted], Rules())
    assert (edit.caption, task) == ("the white house and the paved road", SWAP)
    cannot = Wanted("a small dog on a sofa", ["a small sofa on a dog"])
    [(edit, task)] = hard_positives_of([cannot], Rules())
    assert task == REPLACE and edit.caption


def test_what_has_no_rule_says_so():
    [(edit, _)] = hard_positives_of([Wanted("qwerty", ["asdf"])], Rules())
    assert edit == Edit(reason="no_rule_applies")


def test_no_hard_positive_equals_what_the_dataset_says_of_its_image(tmp_path):
    rows = Dataset.from_dict(
        {
            "image_id": ["1", "1", "2"],
            "caption": ["a small dog", "a little dog", "a small dog"],
            "negative": ["a big dog", "a tiny dog", "a big dog"],
        }
    )
    folder = augment(rows, tmp_path / "out", columns=PAIR, progress=False)
    made = load_dataset(str(folder), split="rows")
    said = {"1": words(*rows["caption"][:2], *rows["negative"][:2])}
    for row in made:
        assert tuple(words_of(row["hard_positive"])) not in said.get(row["image_id"], ())
    assert made[-1]["image_id"] == "2"


def test_the_logits_of_captions_and_negatives_stay_as_they_were(tmp_path):
    rows = without_positives(shapes())
    folder = augment(DatasetDict(replace=rows), tmp_path / "out", progress=False)
    before = evaluate(
        "shapes_clip",
        DatasetDict(replace=rows),
        columns=Columns(positives=["caption"], negatives=["hard_negative"]),
        progress=False,
    ).scores
    after = evaluate("shapes_clip", folder, progress=False).scores
    of = dict(zip(before["id"].to_pylist(), before["logits"].to_pylist(), strict=True))
    assert len(after) > 15
    for name, logits in zip(after["id"].to_pylist(), after["logits"].to_pylist(), strict=True):
        assert [logits[0], logits[-1]] == pytest.approx(of[name], abs=1e-4)


def test_a_box_is_cut_out_so_that_the_logits_stay(tmp_path):
    rows = without_positives(shapes(number=20)).remove_columns("bbox")
    rows = rows.add_column("box", [[4, 6, 50, 44]] * len(rows))
    columns = Columns(positives=["caption"], negatives=["hard_negative"], crop="box")
    folder = augment(rows, tmp_path / "out", columns=columns, progress=False)
    before = evaluate("shapes_clip", rows, columns=columns, progress=False).scores
    after = evaluate("shapes_clip", folder, progress=False).scores
    of = dict(zip(before["id"].to_pylist(), before["logits"].to_pylist(), strict=True))
    for name, logits in zip(after["id"].to_pylist(), after["logits"].to_pylist(), strict=True):
        assert [logits[0], logits[-1]] == pytest.approx(of[name], abs=1e-4)
    assert load_dataset(str(folder), split="replace")[0]["bbox"] == [4, 6, 50, 44]


def test_several_negatives_are_a_list_that_evaluate_reads(tmp_path):
    rows = without_positives(shapes(number=12))
    lists = [[text, text.replace(" a ", " one ")] for text in rows["hard_negative"]]
    rows = rows.remove_columns("hard_negative").add_column("negative", lists)
    folder = augment(rows, tmp_path / "out", columns=PAIR, progress=False)
    made = load_dataset(str(folder), split="replace")
    assert made.features["hard_negative"] == List(Value("string"))
    scores = evaluate("shapes_clip", folder, progress=False).scores
    assert {len(logits) for logits in scores["logits"].to_pylist()} == {4}


def test_pairs_keep_their_set(tmp_path):
    rows = shapes(number=8)
    table = {
        "image_0": rows["image"][:1],
        "image_1": rows["image"][-1:],
        "caption_0": ["a small red circle"],
        "caption_1": ["a large blue square"],
    }
    kinds = Features({name: Image() if name[:5] == "image" else Value("string") for name in table})
    pairs = Columns(pairs=[("image_0", "caption_0"), ("image_1", "caption_1")])
    folder = augment(
        Dataset.from_dict(table, kinds), tmp_path / "out", columns=pairs, progress=False
    )
    made = load_dataset(str(folder), split="rows")
    assert made["set"][:] == ["rows-00000"] * 2 and len(set(made["id"])) == 2
    result = evaluate("shapes_clip", folder, columns=Columns(set="set"), progress=False)
    assert set(result.scores["set"].to_pylist()) == {"rows-00000"}


def test_hard_positives_that_are_there_are_kept(tmp_path):
    rows = shapes(number=10)
    folder = augment(DatasetDict(replace=rows), tmp_path / "out", progress=False)
    made = load_dataset(str(folder), split="replace")
    assert sorted(made["hard_positive"]) == sorted(rows["hard_positive"])
    assert set(made["hard_positive_source"]) == {"given"}
    assert made["checked"][:] == [None] * len(made)


def test_a_folder_that_holds_something_stays_as_it_is(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    rows = Dataset.from_dict({"caption": ["a small dog"], "negative": ["a big dog"]})
    with pytest.raises(FileExistsError, match="absent or an empty folder"):
        augment(rows, folder, columns=PAIR, progress=False)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_no_hard_positive_at_all_is_an_error_and_leaves_no_folder(tmp_path):
    rows = Dataset.from_dict({"caption": ["qwerty"], "negative": ["asdf"]})
    with pytest.raises(ValueError, match="no_rule_applies 1 times"):
        augment(rows, tmp_path / "out", columns=PAIR, progress=False)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_captions_with_images_are_refused(tmp_path):
    columns = Columns(caption="caption", positives=["image"], negatives=["other"])
    with pytest.raises(ValueError, match="Expected comparisons of an image with captions"):
        augment(shapes(number=2), tmp_path / "out", columns=columns, progress=False)


def test_the_command_tells_coverage_and_reasons(tmp_path):
    rows = Dataset.from_dict(
        {"caption": ["a small dog", "qwerty"], "negative": ["a big dog", "asdf"]}
    )
    (tmp_path / "in").mkdir()
    rows.to_parquet(str(tmp_path / "in" / "train.parquet"))
    out = tmp_path / "out"
    arguments = [str(tmp_path / "in"), "--output", str(out), "--positive", "caption"]
    done = CliRunner().invoke(app, ["augment", *arguments, "--negative", "negative"])
    assert done.exit_code == 0, done.output
    assert "50.0%" in done.output and "no_rule_applies 1" in done.output
    [coverage] = json.loads((out / "augmentation.json").read_text())["coverage"]
    assert coverage["counts"] == {"rule: same words": 1, "no_rule_applies": 1}
    assert "no_rule_applies 1" in (out / "README.md").read_text()
