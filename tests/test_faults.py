"""The attacks of `benchmarks/faults.py`: what counts them, and that they find what is broken."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from conftest import ROOT
from rich.console import Console

from attacks import trials
from attacks.showing import say
from attacks.trials import Attack, judge, refused, right, run_attack, wrong

PROGRAM = ROOT / "benchmarks" / "faults.py"


def tally_of(try_once, tmp_path, numbers=range(6), seed=0):
    @contextmanager
    def prepare(scratch):
        yield try_once

    attack = Attack("tests: an attack", prepare, small=6, full=6)
    return run_attack(attack, numbers, seed=seed, jobs=2, scratch=tmp_path)


def test_each_verdict_is_counted_and_each_wrong_trial_named_with_what_repeats_it(tmp_path, capsys):
    verdicts = [right(), refused("so"), wrong("accepted"), right(times=3), right(), refused()]
    tally = tally_of(lambda trial: verdicts[trial.number], tmp_path)
    assert tally.verdicts == {"right": 5, "refused": 2, "wrong": 1}
    assert say(Console(width=100), [tally]) == 1
    printed = capsys.readouterr().out
    assert "--only 'tests: an attack' --seed 0 --trial 2: accepted" in printed
    assert "8      5        2      1" in printed


def test_nothing_wrong_is_exit_code_0(tmp_path):
    assert say(Console(quiet=True), [tally_of(lambda trial: refused(), tmp_path)]) == 0


def test_a_trial_alone_sees_the_random_numbers_that_it_saw_among_others(tmp_path):
    def draw(trial):
        return wrong(str(trial.random.random()))

    among = tally_of(draw, tmp_path).wrong
    assert tally_of(draw, tmp_path, numbers=[4]).wrong == [w for w in among if "--trial 4" in w]
    assert len(set(among)) == 6
    assert not set(among) & set(tally_of(draw, tmp_path, seed=1).wrong)


def test_a_trial_that_kills_its_process_is_wrong_and_the_others_go_on(tmp_path):
    def die(trial):
        if trial.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return right()

    tally = tally_of(die, tmp_path)
    assert tally.verdicts == {"right": 5, "wrong": 1}
    assert "--trial 2: the process that tried it died" in tally.wrong[0]


def test_a_trial_that_hangs_or_raises_is_wrong_and_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "SLOWEST", 1)

    def misbehave(trial):
        if trial.number == 0:
            time.sleep(60)
        raise KeyError("nobody expects this")

    tally = tally_of(misbehave, tmp_path, numbers=range(2))
    said = "".join(sorted(tally.wrong))
    assert "no end within 1 s" in said and "KeyError: 'nobody expects this'" in said
    assert list(tmp_path.iterdir()) == []


def raised(error):
    raise error


@pytest.mark.parametrize(
    ("call", "verdict"),
    [
        (lambda: 7, "right"),
        (lambda: 8, "wrong"),
        (lambda: raised(ValueError("Expected a whole file, got half of one.")), "refused"),
        (lambda: raised(ValueError("line 44 column 19")), "wrong"),
    ],
)
def test_a_call_is_right_with_the_expected_value_and_refused_with_a_whole_sentence(call, verdict):
    assert judge(call, expected=7).verdict == verdict


def run_faults(*options: str, sabotage: str = "") -> subprocess.CompletedProcess:
    """Run the program, with the product broken after it is imported."""
    code = (
        f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); import faults\n"
        "whole = faults.set_environment\n"
        f"def broken(*given):\n    whole(*given)\n    {sabotage or 'pass'}\n"
        "faults.set_environment = broken\n"
        "sys.exit(faults.main())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_attacks_of_every_kind_find_nothing_wrong():
    chosen = ("kills: report", "disks: build", "flips: results", "paths and zips", "servers")
    done = run_faults("--trials", "2", "--only", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in chosen:
        assert name in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "attack", "problem"),
    [
        (
            "from hard_positives_dataset import folders; folders.put_in_place = lambda a, b: "
            "a.rename(b) if a.is_dir() else (b.unlink(missing_ok=True), a.rename(b))",
            "kills: report",
            "older result is lost",
        ),
        (
            "from hard_positives_dataset import folders; folders.remove_partials = lambda a: None",
            "kills: report",
            "left behind",
        ),
        (
            "from hard_positives.scoring import cache; "
            "cache._names_content = lambda path, content: True",
            "flips: cache",
            "accepted without a word",
        ),
    ],
)
def test_what_is_broken_is_found(sabotage, attack, problem):
    done = run_faults("--trials", "12", "--only", attack, sabotage=sabotage)
    assert done.returncode == 1, done.stdout + done.stderr
    assert problem in done.stdout
