"""A result on the disk is whole and of one run, whatever happens while it is saved."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from hard_positives import EvaluationResult, render_table
from hard_positives.results.files import SCORES_SCHEMA, check_folder, prepare_folder, write_result

NAMES = {"results.json", "scores.parquet", ".results.json.lock"}
SIGNATURE = {
    "dataset": {"id": None, "content_sha256": "abc", "splits": {}},
    "views": ["as_published", "clean"],
    "tie_rule": "strict",
}
# Saves what it is given the folders of, each in turn, over and over; killed at the n-th event.
SAVER = """
import os, signal, sys
from pathlib import Path
from hard_positives.results.result import EvaluationResult

target, rounds, *sources = sys.argv[1:]
results = [EvaluationResult.load(source) for source in sources]
for result in results:
    result.metrics
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(rounds)):
    for result in results:
        result.save(target)
"""
KILLED = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from hard_positives.results.result import EvaluationResult

work, *sources = map(Path, sys.argv[1:])
old, new = (EvaluationResult.load(source) for source in sources)
old.metrics, new.metrics
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}

def kill_at(moment):
    seen = itertools.count(1)
    def hook(event, arguments):
        if event in EVENTS and str(work) in str(arguments[0]) and next(seen) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for moment in itertools.count(1):
    target = work / str(moment)
    old.save(target)
    child = os.fork()
    if child == 0:
        kill_at(moment)
        new.save(target)
        os._exit(0)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    print(killed, EvaluationResult.load(target).signature["model"]["id"], flush=True)
    if not killed:
        break
"""


def make_result(name: str, num_rows: int = 60) -> EvaluationResult:
    logits = np.random.default_rng(len(name)).normal(size=(num_rows, 3)).astype(np.float32)
    texts = [f"{name} {row} {random.Random(row).random()}" for row in range(num_rows)]
    columns = {
        **{field.name: texts for field in SCORES_SCHEMA},
        "direction": ["image_to_text"] * num_rows,
        "images": [[text] for text in texts],
        "captions": [[text] * 3 for text in texts],
        "labels": [[True, True, False]] * num_rows,
        "split": ["swap"] * num_rows,
        "category": ["swap"] * num_rows,
        "flaws": [[]] * num_rows,
        "logits": list(logits),
    }
    return EvaluationResult(
        pa.table(columns, schema=SCORES_SCHEMA), {"model": {"id": name}, **SIGNATURE}
    )


def loads_as(folder, *expected: EvaluationResult) -> str:
    """Load, make sure that scores and signature are of one run, and say of which."""
    loaded = EvaluationResult.load(folder)
    (whole,) = [result for result in expected if result.signature == loaded.signature]
    assert loaded.scores.equals(whole.scores)
    return whole.signature["model"]["id"]


def start(program: str, *arguments) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, **pipes)


@pytest.fixture
def saved(tmp_path):
    """Two results and the folders in which they are."""
    results = [make_result("old"), make_result("newer")]
    return results, [result.save(tmp_path / result.signature["model"]["id"]) for result in results]


@pytest.mark.slow
def test_a_save_killed_at_any_moment_leaves_the_older_result_or_the_new_one(saved, tmp_path):
    results, folders = saved
    done = start(KILLED, tmp_path / "work", *folders)
    printed, _ = done.communicate("")
    moments = [line.split() for line in printed.splitlines()]
    assert done.returncode == 0
    kept = [name for _, name in moments]
    assert kept == sorted(kept, reverse=True)  # "old" until the one step, "newer" from there on
    assert kept.count("old") > 5 and kept.count("newer") > 3
    assert moments[-1][0] == "False" and {killed for killed, _ in moments[:-1]} == {"True"}
    for moment in range(1, len(moments) + 1):  # the next save clears up, wherever that was
        folder = tmp_path / "work" / str(moment)
        loads_as(folder, *results)
        results[0].save(folder)
        assert loads_as(folder, *results) == "old"
        assert {path.name for path in folder.iterdir()} == NAMES
        digest = json.loads((folder / "results.json").read_text())["scores_sha256"]
        assert digest == hashlib.sha256((folder / "scores.parquet").read_bytes()).hexdigest()


@pytest.mark.slow
def test_two_savers_at_once_never_leave_or_show_a_mixture(saved, tmp_path):
    results, folders = saved
    target = results[0].save(tmp_path / "target")
    savers = [start(SAVER, target, 6, *order) for order in (folders, folders[::-1])]
    for saver in savers:
        assert saver.stdout.readline() == "ready\n"
    for saver in savers:
        saver.stdin.write("go\n")
        saver.stdin.flush()
    while any(saver.poll() is None for saver in savers):
        loads_as(target, *results)
    assert [saver.wait() for saver in savers] == [0, 0]
    for saver in savers:
        saver.communicate()
    loads_as(target, *results)
    assert {path.name for path in target.iterdir()} == NAMES


def test_looking_whether_a_result_can_be_kept_leaves_nothing_behind(saved, tmp_path):
    (tmp_path / "mine").mkdir()
    check_folder(tmp_path / "mine" / "a" / "b")
    assert not any((tmp_path / "mine").iterdir())
    folder = saved[1][0]
    check_folder(folder)
    assert loads_as(folder, *saved[0]) == "old"
    (tmp_path / "mine" / "data.parquet").write_text("")
    with pytest.raises(FileExistsError, match=r"got data\.parquet there"):
        check_folder(tmp_path / "mine")
    assert (tmp_path / "mine" / "data.parquet").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_save_on_a_full_disk_leaves_the_older_result(tmp_path):
    disk, old, new = tmp_path / "disk", make_result("old"), make_result("newer", 500)
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        outcomes = []
        for free in range(0, 160, 4):  # kB
            folder = old.save(disk / "result")
            room = shutil.disk_usage(disk).free - free * 1024
            (disk / "filler").write_bytes(bytes(max(0, room)))
            try:
                new.save(folder)
            except OSError as error:
                assert re.search(r"Expected room on the disk .*result.*unchanged", str(error))
                assert loads_as(folder, old, new) == "old"
                outcomes.append("old")
            else:
                outcomes.append(loads_as(folder, old, new))
            assert {path.name for path in folder.iterdir()} == NAMES
            (disk / "filler").unlink()
        assert outcomes.count("old") > 10 and outcomes[-1] == "newer"
        assert outcomes == sorted(outcomes, reverse=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_save_of_what_cannot_be_written_leaves_the_older_result(saved, tmp_path):
    results, (folder, _) = saved
    broken = EvaluationResult(results[1].scores, {**results[1].signature, "odd": object()})
    with pytest.raises(TypeError):
        broken.save(folder)
    assert loads_as(folder, *results) == "old"


# --- files that are not as they were saved ---


def edit(folder, change) -> None:
    record = json.loads((folder / "results.json").read_text())
    change(record)
    (folder / "results.json").write_text(json.dumps(record, indent=2))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "a damaged or foreign file"),
        (b'{"signature": ', "a damaged or foreign file"),
        (b"\xff\xfe\x00", "a damaged or foreign file"),
        (b"[" * 200_000, "a damaged or foreign file"),
        (b"{}", "signature, scores_sha256, metrics"),
        (b"[1, 2]", "signature, scores_sha256, metrics"),
        (b"null", "signature, scores_sha256, metrics"),
        (b'{"signature": 1, "scores_sha256": 2, "metrics": 3}', "signature, scores_sha256"),
        (
            b'{"signature": {}, "scores_sha256": "a", "metrics": {}}',
            "an older version without",
        ),
        (
            b'{"signature": {}, "scores_sha256": "a", "metrics": {}, "results_sha256": "b"}',
            "edited or damaged",
        ),
    ],
    ids=range(10),
)
def test_a_results_json_that_is_none_is_named_with_what_to_do(saved, content, problem):
    folder = saved[1][0]
    (folder / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"Expected .*results\.json .*{problem}.*valuate again"):
        EvaluationResult.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["signature"]["model"].update(id="openai/another"),
        lambda record: record["signature"].update(tie_rule="a tie is right"),
        lambda record: record["metrics"]["clean"]["swap"].update(original_accuracy=1.0),
        lambda record: record.update(another="key"),
        lambda record: record["signature"]["views"].pop(),
    ],
)
def test_a_result_edited_by_hand_is_refused(saved, change):
    folder = saved[1][0]
    edit(folder, change)
    with pytest.raises(ValueError, match=r"results\.json to be as it was saved, got it edited"):
        EvaluationResult.load(folder)


def test_other_line_ends_are_no_edit(saved):
    folder = saved[1][0]
    text = (folder / "results.json").read_bytes()
    (folder / "results.json").write_bytes(text.replace(b"\n", b"\r\n"))
    assert loads_as(folder, *saved[0]) == "old"


def test_no_flipped_bit_is_taken_for_a_result(saved):
    (old, _), (folder, _) = saved
    for name in ("results.json", "scores.parquet"):
        whole = (folder / name).read_bytes()
        for bit in random.Random(0).sample(range(8 * len(whole)), 150):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{folder}.*valuate again"):
                EvaluationResult.load(folder)
        (folder / name).write_bytes(whole)
    assert loads_as(folder, old) == "old"


@pytest.mark.parametrize("size", [0, 4, 1000, -1])
def test_cut_scores_are_refused(saved, size):
    folder = saved[1][0]
    content = (folder / "scores.parquet").read_bytes()
    (folder / "scores.parquet").write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"scores\.parquet to have SHA-256 .* It is damaged"):
        EvaluationResult.load(folder)


def with_scores(folder, content: bytes) -> None:
    """What somebody else makes who knows the format."""
    from hard_positives.results.files import _sealed

    (folder / "scores.parquet").write_bytes(content)
    record = json.loads((folder / "results.json").read_text())
    record["scores_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "results.json").write_text(_sealed(record))


def test_scores_that_are_no_table_of_a_result_are_refused(saved):
    folder = saved[1][0]
    with_scores(folder, b"no Parquet at all")
    with pytest.raises(ValueError, match=r"scores\.parquet to be Parquet, got a file that cannot"):
        EvaluationResult.load(folder)
    other = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [1, 2]}), other)
    with_scores(folder, other.getvalue().to_pybytes())
    with pytest.raises(ValueError, match=r"to have the columns .* got \['id \(int64\)'\]"):
        EvaluationResult.load(folder)


def test_scores_that_are_missing_are_named(saved):
    folder = saved[1][0]
    (folder / "scores.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"to hold scores\.parquet, got no such file"):
        EvaluationResult.load(folder)


# --- the folder ---


@pytest.mark.parametrize("name", ["train.parquet", "data/train.parquet", "README.md", "a.png"])
def test_a_folder_that_holds_something_else_is_refused(saved, tmp_path, name):
    path = tmp_path / "other" / name
    path.parent.mkdir(parents=True)
    path.write_text("something else")
    with pytest.raises(FileExistsError, match=r"absent, empty or an earlier result, got .* there"):
        saved[0][0].save(tmp_path / "other")
    assert [found for found in (tmp_path / "other").rglob("*") if found.is_file()] == [path]


def test_a_folder_of_a_result_may_hold_its_report_and_notes(saved):
    (old, new), (folder, _) = saved
    for name in ("index.html", "report.md", "notes.txt"):
        (folder / name).write_text("mine")
    assert loads_as(new.save(folder), old, new) == "newer"


def test_the_datasets_own_folder_is_refused(saved):
    folder = saved[1][0]
    with pytest.raises(FileExistsError, match="got the dataset's own"):
        prepare_folder(folder, f"{folder}/../{folder.name}")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "result"):
        with pytest.raises(OSError, match=r"to be a folder that can be written to, got: .*hoose"):
            prepare_folder(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_folder_that_can_only_be_read_is_refused(saved):
    folder = saved[1][0]
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        with pytest.raises(OSError, match=r"can be written to, got: Read-only file system"):
            prepare_folder(folder)
    finally:
        subprocess.run(["umount", folder], check=True)
    assert loads_as(folder, *saved[0]) == "old"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("direction", "sideways"),
        ("captions", ["one"]),
        ("images", ["a", "b"]),
        ("labels", [True, False]),
        ("logits", [0.5]),
    ],
)
def test_rows_that_are_no_comparisons_are_refused(tmp_path, column, value):
    result = make_result("name")
    values = result.scores[column].to_pylist()
    values[7] = value
    place = result.scores.column_names.index(column)
    field = SCORES_SCHEMA.field(column)
    odd = result.scores.set_column(place, field, pa.array(values, field.type))
    write_result(tmp_path, result.signature, odd, {"metrics": {}})
    with pytest.raises(ValueError, match=r"labels and logits as candidates in every row, .* row 7"):
        EvaluationResult.load(tmp_path)


@pytest.mark.parametrize("figures", [[{"title": "a"}], [{"figure": []}], "all", [3]])
def test_rules_of_authors_that_are_none_are_refused(tmp_path, figures):
    result = make_result("name")
    signature = {**result.signature, "dataset": {**result.signature["dataset"], "figures": figures}}
    write_result(tmp_path, signature, result.scores, {"metrics": {}})
    with pytest.raises(
        ValueError, match="Expected the figures in the signature to be ones of this"
    ):
        EvaluationResult.load(tmp_path)


def test_a_benchmark_of_an_odd_name_is_none(tmp_path):
    result = make_result("name")
    signature = {**result.signature, "dataset": {**result.signature["dataset"], "benchmark": [1]}}
    odd = EvaluationResult(result.scores, signature)
    assert len(render_table(odd).rows) > 2
    assert not odd.authors
