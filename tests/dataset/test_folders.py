"""Files and folders that are whole or not there."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from hard_positives_dataset import folders
from hard_positives_dataset.folders import new_folder, write_whole

WRITER = """
import sys
from pathlib import Path
from hard_positives_dataset.folders import write_whole

with write_whole(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


def test_what_fails_while_it_is_written_leaves_what_was_there(tmp_path):
    (tmp_path / "record").write_text("old")
    with pytest.raises(KeyError), write_whole(tmp_path / "record") as partial:
        partial.write_text("ne")
        raise KeyError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_a_dead_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "record")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as living:
        assert killed.stdout.readline() == living.stdout.readline() == "written\n"
        assert len(list(tmp_path.glob(".*.partial"))) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with write_whole(tmp_path / "other") as partial:
            partial.write_text("other")
        (left,) = tmp_path.glob(".*.partial")
        assert f".{living.pid}." in left.name
        living.communicate()
    assert (tmp_path / "record").read_text() == "half"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "record"]


def test_what_another_machine_writes_counts_as_left_behind_after_a_day(tmp_path):
    name = f".record.elsewhere.{os.getpid()}.{'0' * 32}.partial"
    (tmp_path / name).write_text("half")
    folders.remove_partials(tmp_path)
    assert (tmp_path / name).exists()
    os.utime(tmp_path / name, (1e9, 1e9))
    folders.remove_partials(tmp_path)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("letter", ["n", "é"])
def test_a_name_is_as_long_as_the_hidden_names_beside_it_allow(tmp_path, letter):
    longest = letter * (243 // len(letter.encode()))
    with new_folder(tmp_path / longest):
        pass
    deep, match = tmp_path / "deep", r"to take at most 243 bytes, got 24[45]: .*Choose a shorter"
    with pytest.raises(ValueError, match=match), new_folder(deep / (longest + letter)):
        pass
    assert not (tmp_path / "deep").exists()


@pytest.fixture
def disk(monkeypatch) -> list[tuple[str, str]]:
    """Notes what is flushed and what is renamed, in order."""
    events, fsync, replace = [], os.fsync, os.replace

    def noting_fsync(handle):
        events.append(("flush", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def noting_replace(source, target):
        events.append(("rename", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    return events


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_everything_is_on_the_disk_before_it_is_renamed_and_the_new_name_after(tmp_path, disk):
    with write_whole(tmp_path / "record") as partial:
        partial.write_text("new")
    whole = str(tmp_path / "record")
    assert disk == [("flush", str(partial)), ("rename", whole), ("flush", str(tmp_path))]
    disk.clear()
    with new_folder(tmp_path / "out") as folder:
        (folder / "data").mkdir()
        (folder / "data" / "rows").write_text("rows")
    renamed = disk.index(("rename", str(tmp_path / "out")))
    flushed = {path for event, path in disk[:renamed] if event == "flush"}
    assert flushed == {str(folder), str(folder / "data"), str(folder / "data" / "rows")}
    assert disk[renamed + 1 :] == [("flush", str(tmp_path))]
