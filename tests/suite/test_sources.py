"""What datasets of somebody else can and cannot do when they are loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from datasets import Dataset, DatasetDict, Image, load_dataset
from PIL import Image as PILImage

from attacks.cells import files_opened, malicious, malicious_cells, outcome_of, write_rows
from attacks.trials import run_attack
from hard_positives import evaluate
from hard_positives.suite.sources import load_source, load_splits
from hard_positives_dataset import build_parquet


def save_picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path)
    return path


def file_cell(path) -> dict:
    return {"bytes": None, "path": str(path)}


# --- images that are files ---


@pytest.mark.slow
def test_no_malicious_cell_has_a_file_outside_the_folder_opened(tmp_path):
    tally = run_attack(malicious(110, 110), range(110), jobs=0, scratch=tmp_path)
    assert (tally.verdicts, tally.wrong) == ({"refused": 110}, [])


def test_the_traps_would_be_seen(tmp_path):
    next(malicious_cells(tmp_path / "dataset"))
    with files_opened() as opened:
        (tmp_path / "dataset" / "link.png").read_bytes()
    assert str(tmp_path / "outside" / "secret.png") in opened


def test_files_inside_the_folder_are_read_wherever_the_command_runs(tmp_path, monkeypatch):
    folder = tmp_path / "dataset"
    save_picture(folder / "images" / "a.png")
    save_picture(folder / "b.png", seed=1)
    (folder / "images" / "link.png").symlink_to("../b.png")
    within = [Path("images/a.png"), Path("images/link.png"), folder / "b.png", Path("./b.png")]
    write_rows(folder, [file_cell(path) for path in within])
    monkeypatch.chdir(tmp_path)
    rows = load_splits("dataset")["train"]
    paths = [cell["path"] for cell in rows.cast_column("image", Image(decode=False))["image"]]
    a, b = (str((folder / name).resolve()) for name in ("images/a.png", "b.png"))
    assert paths == [a, b, b, b]
    assert outcome_of(folder) == "wrong"  # that is, decoded


def test_a_relative_path_is_never_one_of_the_working_directory(tmp_path, monkeypatch):
    write_rows(tmp_path / "dataset", [file_cell("private.png")])
    save_picture(tmp_path / "private.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"got 'private\.png' in row 0: no such file"):
        load_splits("dataset")


def test_the_first_row_that_leads_out_is_named_and_all_are_counted(tmp_path, tiny_clip):
    folder = tmp_path / "dataset"
    good = save_picture(folder / "good.png")
    outside = save_picture(tmp_path / "outside.png")
    write_rows(folder, [file_cell(good), file_cell(outside), file_cell("../outside.png")])
    expected = r"'image' to name regular files inside .* in row 1: it leads out .* \(2 such rows\)"
    with pytest.raises(ValueError, match=expected):
        evaluate("no/such-model", folder)  # noticed before a model is loaded


def test_rows_with_bytes_and_rows_with_files_may_stand_together(tmp_path):
    folder = tmp_path / "dataset"
    file = save_picture(folder / "a.png")
    cells = [{"bytes": file.read_bytes(), "path": "/dev/zero"}, file_cell("a.png")]
    write_rows(folder, cells)
    rows = load_splits(folder)["train"].cast_column("image", Image(decode=False))
    assert rows[0]["image"]["bytes"] == file.read_bytes()
    assert rows[1]["image"] == {"bytes": None, "path": str(file.resolve())}


def test_a_folder_of_the_hubs_cache_may_link_to_its_blobs_and_nowhere_else(tmp_path):
    repository = tmp_path / "datasets--org--name"
    folder = repository / "snapshots" / ("0" * 40)
    save_picture(repository / "blobs" / "abc.png").rename(repository / "blobs" / "abc")
    save_picture(tmp_path / "outside.png")
    folder.mkdir(parents=True)
    (folder / "a.png").symlink_to("../../blobs/abc")
    write_rows(folder, [file_cell("a.png")])
    assert len(load_splits(folder)["train"]) == 1
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to("../../../outside.png")
    with pytest.raises(ValueError, match="it leads out of the folder"):
        load_splits(folder)


def test_a_dataset_that_the_caller_made_may_name_any_regular_file(tmp_path, tiny_clip):
    columns = {name: ["x"] for name in ("caption", "hard_positive", "hard_negative")}
    file = save_picture(tmp_path / "mine.png")
    rows = Dataset.from_dict({"image": [str(file)], **columns}).cast_column("image", Image())
    assert len(evaluate(tiny_clip, rows).scores) == 1
    rows = Dataset.from_dict({"image": ["/dev/zero"], **columns}).cast_column("image", Image())
    with pytest.raises(ValueError, match=r"image of row 0 .* got '/dev/zero': no regular file"):
        evaluate("no/such-model", rows)


def test_a_data_file_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "train.parquet")
    with pytest.raises(OSError, match="to hold data files, such as Parquet, got none"):
        load_splits(tmp_path)


# --- what the card states ---


@pytest.fixture
def built(triples, tmp_path) -> Path:
    return build_parquet({"replace": triples}, tmp_path / "built", progress=False)


def test_a_built_folder_is_what_its_card_states(built, tiny_clip, triples):
    assert set(load_source(built).content_sha256) == {"replace"}
    result = evaluate(tiny_clip, built)
    assert len(result.scores) == len(triples)


@pytest.mark.parametrize("column", ["caption", "hard_negative", "image_id", "image"])
def test_rows_other_than_the_card_states_are_refused_before_a_model_is_loaded(built, column):
    (file,) = built.rglob("*.parquet")
    rows = load_dataset(str(built), split="replace").cast_column("image", Image(decode=False))
    changed = list(rows[column])
    changed[3], changed[17] = changed[17], changed[3]
    altered = rows.remove_columns(column).add_column(column, changed, feature=rows.features[column])
    altered.select_columns(rows.column_names).cast(load_dataset_features(built)).to_parquet(file)
    with pytest.raises(ValueError, match=r"rows of split 'replace' to be those .* card states"):
        evaluate("no/such-model", built)


def load_dataset_features(folder):
    return load_dataset(str(folder), split="replace").features


def test_rows_that_have_changed_since_they_were_read_are_read_anew(built, triples):
    (file,) = built.rglob("*.parquet")
    before = file.stat()
    captions = load_splits(built)["replace"]["caption"][:]
    other = [text.replace("cat", "cow") for text in captions]  # of the same length
    table = pq.read_table(file)
    place = table.column_names.index("caption")
    pq.write_table(table.set_column(place, "caption", [other]), file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert captions != other == load_splits(built)["replace"]["caption"][:]


def test_a_card_with_another_shape_states_nothing(built):
    card = built / "README.md"
    text = card.read_text()
    assert "hard_positives:\n" in text
    for other in ("hard_positives: 3\nx_y:\n", "hard_positives: [1]\nx_y:\n"):
        card.write_text(text.replace("hard_positives:\n", other))
        assert load_source(built).content_sha256 == {}
    card.unlink()
    assert load_source(built).content_sha256 == {}


# --- damage ---


def test_a_cut_parquet_file_is_named_with_its_folder(tmp_path, triples):
    (tmp_path / "dataset").mkdir()
    for name in ("train-0.parquet", "train-1.parquet"):
        triples.to_parquet(tmp_path / "dataset" / name)
    file = tmp_path / "dataset" / "train-1.parquet"
    content = file.read_bytes()
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"{tmp_path}/dataset to be a whole .*{file} cannot"):
            load_splits(tmp_path / "dataset")


def test_any_damage_to_parquet_is_an_error_in_a_sentence_or_leaves_all_rows_as_they_were(built):
    (file,) = built.rglob("*.parquet")
    content = file.read_bytes()
    random, outcomes = np.random.default_rng(0), []
    for place in random.integers(0, len(content), 25):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        file.write_bytes(damaged)
        with pytest.raises((ValueError, OSError)) as caught:
            evaluate("no/such-model", built)  # found missing only where the rows are whole
        outcomes.append(str(caught.value).split(" ")[0])
    assert outcomes.count("Expected") > 15
    assert set(outcomes) <= {"Expected", "We"}


def test_a_damaged_card_is_an_error_in_a_sentence(built):
    (built / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(ValueError, match=rf"Expected {built} to be a whole dataset"):
        load_splits(built)


@pytest.mark.slow
def test_a_cache_of_datasets_that_cannot_be_written_is_named(tmp_path, triples):
    folder = tmp_path / "dataset"
    folder.mkdir()
    triples.to_parquet(folder / "train.parquet")
    (tmp_path / "home").write_text("a file in its place")
    code = (
        "import resource, sys\n"
        "from hard_positives.suite.sources import load_splits\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "load_splits(sys.argv[1])\n"
    )
    without_limit = code.replace("resource.setrlimit", "str.join if 0 else print")
    homes = {tmp_path / "home": without_limit, tmp_path / "fresh": code}
    for home, program in homes.items():
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(home)},
            capture_output=True,
            text=True,
        )
        last = done.stderr.strip().splitlines()[-1]
        assert re.search(rf"Error: Expected .*{home}/datasets.*HF_DATASETS_CACHE", last), last


@pytest.mark.parametrize("name", ["br[ack]*ets", "what?", "a*b"])
def test_a_folder_whose_name_is_a_pattern_is_refused(tmp_path, triples, name):
    (tmp_path / name).mkdir()
    triples.to_parquet(tmp_path / name / "train.parquet")
    with pytest.raises(ValueError, match=r"to have no \*, \? or \[ in its path.*Rename or move"):
        load_splits(tmp_path / name)


def test_an_unknown_folder_stays_the_error_that_it_was():
    with pytest.raises(FileNotFoundError):
        load_splits("./no/such/folder/at/all")


def test_what_is_loaded_already_is_taken_as_it_is(triples):
    assert load_splits(DatasetDict({"a": triples, "b": triples}), ["b"]) == {"b": triples}
    assert list(load_splits(triples)) == ["rows"]
