"""Ctrl-C, SIGTERM and SIGKILL: one sentence, exit code 130, and no process left behind."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from hard_positives.cli import app

TRACEBACK = "HARD_POSITIVES_TRACEBACK"
# Says when a moment has come, so that no test waits for a time to pass.
PROGRAM = """
import sys
moment = sys.argv.pop(1)
if moment == "imports":
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "torch":
                print("now", flush=True)
                sys.stdin.read()
    sys.meta_path.insert(0, Finder())
else:
    from hard_positives.models import encoders
    embed_images, calls = encoders.DualEncoder.embed_images, []
    def embed(self, inputs):
        calls.append(1)
        if len(calls) == 2:
            print("now", flush=True)
            sys.stdin.read()
        return embed_images(self, inputs)
    encoders.DualEncoder.embed_images = embed
from hard_positives.cli import app
app()
"""


@pytest.fixture
def start(tmp_path):
    """Starts a command in a group of its own and waits until its moment has come."""
    started = []

    def start(moment: str, *arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, moment, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # read at import, before --quiet here
                "HARD_POSITIVES_CACHE": str(tmp_path / "cache"),
            },
        )
        started.append(process)
        assert process.stdout.readline() == "now\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def evaluate(*options: str) -> list[str]:
    return ["evaluate", "--batch-size", "4", "--quiet", *options]


@pytest.mark.parametrize("moment", ["imports", "work"])
@pytest.mark.parametrize("to_the_group", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.slow
def test_an_interrupt_is_one_sentence_and_exit_code_130(start, moment, to_the_group, tmp_path):
    options = ["--workers", "2"] if moment == "work" else []
    process = start(moment, *evaluate(*options, "--output", str(tmp_path / "result")))
    if to_the_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert errors == "Interrupted. The same command resumes where it stopped.\n"
    assert not (tmp_path / "result").exists()


@pytest.mark.slow
def test_an_interrupt_says_so_where_what_was_done_could_not_be_kept(start, tmp_path):
    (tmp_path / "cache").write_text("a file in the cache's place")
    process = start("work", *evaluate("--workers", "2"))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "cannot be used" in errors
    assert errors.endswith("\nInterrupted. The same command starts it again.\n")


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(start, number):
    process = start("work", *evaluate("--workers", "2"))
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(number)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert not alive
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("by", ["option", pytest.param("environment", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_traceback_is_shown_below_the_sentence_when_asked(tmp_path, by):
    command = ["compare", *2 * [str(tmp_path / "red\x1b[31m")]]
    plain = CliRunner().invoke(app, command)
    assert plain.exit_code == 1
    assert plain.stderr.startswith("Error: Expected")
    assert "Traceback" not in plain.stderr
    option, variables = (["--traceback"], {}) if by == "option" else ([], {TRACEBACK: "1"})
    full = subprocess.run(
        [sys.executable, "-m", "hard_positives", *option, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
    )
    assert full.returncode == 1
    assert full.stderr.startswith(plain.stderr + "Traceback (most recent call last):\n")
    assert "results/files.py" in full.stderr
    assert "\x1b" not in full.stderr


@pytest.mark.slow
def test_nothing_that_a_terminal_obeys_is_printed(tmp_path):
    folder = tmp_path / "red\x1b[31m\x9b2J"
    command = [sys.executable, "-m", "hard_positives", "compare", str(folder), str(folder)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT)
    assert done.returncode == 1
    assert not set(done.stderr.decode()) & set("\x1b\x9b")
    assert rb"red\x1b[31m\x9b2J" in done.stderr


def test_a_result_is_not_put_among_the_rows_of_a_dataset(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"data")
    done = CliRunner().invoke(app, ["evaluate", "--output", str(tmp_path), "--quiet"])
    assert done.exit_code == 1
    assert "rows.parquet there" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
