"""What the commands print: in a terminal, in a pipe, for machines; and how they end."""

import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from datasets import Features, Image, Value
from rich.console import Console
from rich.text import Text
from test_report import KINDS, make_result, world  # noqa: F401
from typer.testing import CliRunner

import hard_positives
from hard_positives import (
    EvaluationResult,
    cli,
    compare,
    render_comparison,
    render_summary,
    render_table,
    write_comparison,
    write_figures,
)
from hard_positives.cli import app
from hard_positives.results.exports import FORMATS, plain
from hard_positives.results.figures import labels_of
from hard_positives.suite.columns import CAPTION_COLUMNS

COMMAND = [sys.executable, "-m", "hard_positives"]


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory) -> list[str]:  # noqa: F811
    folder, rows = world
    results = [
        make_result(rows, name, ahead=ahead, edit_cost=cost, dataset_id=str(folder), seed=seed)
        for seed, (name, (ahead, cost)) in enumerate(KINDS.items())
    ]
    root = tmp_path_factory.mktemp("results")
    return [str(result.save(root / result.signature["model"]["id"])) for result in results]


def run(*arguments: str) -> "CliRunner.Result":
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


def run_in_terminal(*arguments: str, **environment: str | None) -> tuple[str, int]:
    """Run the command with a real terminal for its input and outputs; None unsets a variable."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    asked = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    env = {name: value for name, value in asked.items() if value is not None}
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    printed = b""
    try:
        while part := os.read(ours, 65536):
            printed += part
    except OSError:  # how Linux tells that the other side has closed
        pass
    os.close(ours)
    return printed.decode(), process.wait()


def test_report_writes_a_page_and_says_where(folders, tmp_path):
    result = run("report", *folders, "--output", str(tmp_path / "new" / "page"))
    assert result.exit_code == 0, result.output
    others = "report.md, figures.csv and figures.tex"
    assert result.stdout == f"Wrote {tmp_path}/new/page/index.html, and {others} beside it.\n"
    assert {path.name for path in (tmp_path / "new" / "page").iterdir()} == {
        "figures.csv",
        "figures.tex",
        "index.html",
        "report.md",
    }


def test_report_is_silent_when_asked(folders, tmp_path):
    result = run("report", folders[0], "--output", str(tmp_path), "--quiet")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.slow
def test_evaluate_prints_its_table_and_nothing_else_when_asked(tiny_clip, world, tmp_path):  # noqa: F811
    arguments = [*COMMAND, "evaluate", str(tiny_clip), "--dataset", str(world[0]), "--quiet"]
    environment = {**os.environ, "HARD_POSITIVES_CACHE": str(tmp_path), "HF_HOME": str(tmp_path)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "REPLACE macro" in done.stdout


def test_report_warns_in_one_sentence_where_it_finds_no_pictures(folders, tmp_path):
    result = EvaluationResult.load(folders[0])
    result.signature["dataset"]["id"] = None
    shown = run("report", str(result.save(tmp_path / "result")), "--output", str(tmp_path / "page"))
    assert shown.exit_code == 0
    assert shown.stderr.startswith("Warning: The report lacks pictures: the results do not name")
    assert shown.stderr.count("\n") == 1


def test_compare_prints_a_table_that_lines_up(folders):
    result = run("compare", *folders[:2])
    assert result.exit_code == 0, result.output
    *lines, first, second = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert first.startswith("model:base|") and second.startswith("model:hard negatives|")
    rows = [line for line in lines if re.match(r"   ?original ", line)]
    assert len(rows) == 10  # two views of attribute, relation, two means, swap
    assert len({line.index(" to ") for line in rows}) == 1
    row = compare(*map(EvaluationResult.load, folders[:2]))[0]
    assert f"{100 * row.first:.1f}" in rows[0] and f"{100 * row.difference:+.1f}" in rows[0]


def test_compare_gives_machines_unrounded_fractions(folders):
    result = run("compare", *folders[:2], "--json")
    rows = compare(*map(EvaluationResult.load, folders[:2]))
    assert [row["difference"] for row in json.loads(result.stdout)] == [r.difference for r in rows]


def test_evaluate_gives_machines_all_of_the_result(tiny_clip, world, tmp_path):  # noqa: F811
    arguments = ("evaluate", str(tiny_clip), "--dataset", str(world[0]), "--split", "swap")
    result = run(*arguments, "--json", "--output", str(tmp_path))
    saved = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    printed = json.loads(result.stdout)
    assert printed == {"signature": saved["signature"], "metrics": saved["metrics"]}


@pytest.mark.slow
def test_a_pipe_gets_plain_text(folders):
    done = subprocess.run([*COMMAND, "compare", *folders[:2]], capture_output=True, check=True)
    assert b"\x1b" not in done.stdout + done.stderr
    assert "REPLACE macro" in done.stdout.decode()


@pytest.mark.slow
def test_a_terminal_gets_styles_and_colours(folders):
    printed, code = run_in_terminal("compare", *folders[:2], NO_COLOR="")
    assert code == 0
    assert "\x1b[1m" in printed
    error, code = run_in_terminal("compare", folders[0], "nowhere")
    assert code == 1
    assert "\x1b[31m" in error


COLOURS = re.compile(r"\x1b\[[0-9;]*?\b(3[0-8]|4[0-8]|9\d|10\d)(;[0-9;]*)?m")


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        pytest.param("compare {0} {1}", marks=pytest.mark.slow),
        pytest.param("compare {0} nowhere", marks=pytest.mark.slow),
    ],
)
def test_no_color_leaves_colours_out(folders, arguments):
    printed, _ = run_in_terminal(*arguments.format(*folders).split(), NO_COLOR="1")
    assert len(printed) > 80
    assert not COLOURS.search(printed)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("compare", "nowhere", "nowhere"), 1),
        (("report", "nowhere", "--output", "page"), 1),
        (("report", "nowhere"), 2),
        (("compare", "nowhere"), 2),
        (("evaluate", "--no-such-option"), 2),
        (("no-such-command",), 2),
        (("--help",), 0),
    ],
)
def test_exit_codes_are_those_that_the_help_documents(arguments, code):
    result = run(*arguments)
    assert result.exit_code == code
    assert "Traceback" not in result.output
    assert re.search(r"0 done; 1 .*; 2 .*; 130 interrupted", " ".join(run("--help").stdout.split()))


RESUMES = "Interrupted. The same command resumes where it stopped.\n"
AGAIN = "Interrupted. The same command starts it again.\n"
# Runs in every Python that the command starts: signals at a moment that can be named.
AT_A_MOMENT = """
import os, signal, sys
moment, who, target = os.environ["AT_A_MOMENT"].split(" ")
main = os.getpid()
def hook(event, arguments):
    if event in ("import", "open") and str(arguments[0]).endswith(moment):
        if (os.getpid() == main) == (who == "main") and not os.path.exists(os.environ["DONE"]):
            os.close(os.open(os.environ["DONE"], os.O_CREAT))
            if target == "group":
                os.killpg(0, signal.SIGINT)
            else:
                os.kill(os.getppid(), getattr(signal, target))
sys.addaudithook(hook)
"""


@pytest.fixture
def at_a_moment(tmp_path, triples, tiny_clip):
    """Runs `evaluate` on rows with image files, two of them decoded by processes of their own."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    card = "---\nconfigs:\n- config_name: default\n  data_files: data/swap.parquet\n---\n"
    (folder / "README.md").write_text(card)
    columns = {name: triples[name][:4] for name in CAPTION_COLUMNS}
    for place, picture in enumerate(triples["image"][:4]):
        picture.save(folder / f"picture-{place}.png")
    cells = [{"bytes": None, "path": f"picture-{place}.png"} for place in range(4)]
    schema = Features({"image": Image(), **{name: Value("string") for name in columns}})
    rows = pa.table({"image": cells, **columns}, schema=schema.arrow_schema)
    pq.write_table(rows, folder / "data" / "swap.parquet")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(AT_A_MOMENT)

    def run_it(moment: str, *more: str) -> tuple[int, str, bool]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)]),
            "HARD_POSITIVES_CACHE": str(tmp_path / "cache"),
            "AT_A_MOMENT": moment,
            "DONE": str(tmp_path / "done"),
        }
        command = [*COMMAND, "evaluate", str(tiny_clip), "--dataset", str(folder), "--quiet", *more]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, start_new_session=True
        )  # returns when all that hold its outputs have ended, workers too
        return done.returncode, done.stderr, (tmp_path / "done").exists()

    return run_it


@pytest.mark.parametrize(
    ("moment", "sentence"),
    [
        ("typer main group", AGAIN),
        ("datasets main group", RESUMES),
        pytest.param("picture-0.png worker group", RESUMES, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_ends_with_130_and_one_sentence_wherever_it_comes(
    at_a_moment, moment, sentence
):
    code, error, reached = at_a_moment(moment, "--workers", "2")
    assert (code, error, reached) == (130, sentence, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), RESUMES),
        (("--no-cache",), AGAIN),
        (("--no-cache", "--dataset", "shapes", "--dataset", "other"), RESUMES),
    ],
)
def test_an_interrupt_says_that_the_command_resumes_where_it_does(monkeypatch, options, told):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_check_names", interrupted)
    result = run("evaluate", *options)
    assert (result.exit_code, result.stderr) == (130, told)
    monkeypatch.setenv("RANK", "1")  # of several processes the first one speaks
    result = run("evaluate", *options)
    assert (result.exit_code, result.stderr) == (130, "")


@pytest.mark.parametrize("command", ["models", "models --json"])
def test_a_reader_that_has_gone_ends_a_command_without_a_word(command):
    ours, theirs = os.pipe()
    os.close(ours)  # as `| head` does when it has enough
    done = subprocess.run(
        [*COMMAND, *command.split()], stdout=theirs, stderr=subprocess.PIPE, text=True
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


def test_another_pipe_that_broke_is_told(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe of a worker")

    monkeypatch.setattr(cli, "_check_names", broken)
    assert run("evaluate").stderr == "Error: [Errno 32] Broken pipe of a worker\n"


@pytest.mark.slow
def test_a_terminal_shows_our_bars_and_none_of_the_libraries(tiny_clip, folders, tmp_path):
    own = {"HF_HOME": str(tmp_path), "HARD_POSITIVES_CACHE": str(tmp_path)}
    unchosen = {"HF_DATASETS_DISABLE_PROGRESS_BARS": None}
    dataset = EvaluationResult.load(folders[0]).signature["dataset"]["id"]
    arguments = ("evaluate", str(tiny_clip), "--dataset", dataset)
    printed, code = run_in_terminal(*arguments, **own, **unchosen)
    assert code == 0, printed
    assert "images: 100%" in printed and "captions: 100%" in printed
    assert set(re.findall(r"(\w[\w ]*):? +\d+%", printed)) == {"images", "captions"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's end")
def test_workers_end_in_silence_with_a_command_that_is_killed(at_a_moment):
    code, error, reached = at_a_moment("picture-0.png worker SIGKILL", "--workers", "2")
    assert (code, error, reached) == (-signal.SIGKILL, "", True)


@pytest.mark.slow
def test_control_characters_of_data_do_not_reach_the_terminal(tmp_path, tiny_clip, triples):
    (tmp_path / "data").mkdir()
    rows = triples.select(range(2)).remove_columns("id")
    title = "\x1b]0;owned\x07 \x9b31m \u202e"
    rows.add_column("id", [title, title]).to_parquet(tmp_path / "data" / "train.parquet")
    printed, code = run_in_terminal("evaluate", str(tiny_clip), "--dataset", str(tmp_path), "-q")
    assert code == 1
    assert "owned" in printed and "\x1b]" not in printed
    assert not set(printed) & set("\x07\x9b\u202e")


@pytest.mark.slow
def test_an_interrupt_ends_with_130_and_no_traceback(folders, tmp_path):
    folder = tmp_path / "result"
    shutil.copytree(folders[0], folder)
    (folder / "scores.parquet").unlink()
    os.mkfifo(folder / "scores.parquet")
    command = [*COMMAND, "compare", str(folder), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with open(folder / "scores.parquet", "wb"):  # opens when the command waits for its content
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=300)
    assert (process.returncode, error.decode()) == (130, AGAIN)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands_and_options(shell):
    script = run_in_shell(shell)
    assert "_HARD_POSITIVES_COMPLETE" in script


def run_in_shell(shell: str) -> str:
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        ["hard-positives", "--show-completion", shell], capture_output=True, text=True, env=env
    )
    return done.stdout


def test_completion_offers_the_commands():
    env = {
        **os.environ,
        "_HARD_POSITIVES_COMPLETE": "complete_bash",
        "COMP_WORDS": "hard-positives comp",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(["hard-positives"], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["compare"]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_tables_keep_the_names_of_their_rows_at_any_width(folders, width):
    results = list(map(EvaluationResult.load, folders[:2]))
    for table in (render_table(results[0]), render_summary(results), render_comparison(*results)):
        console = Console(width=width, file=io.StringIO())
        console.print(table)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert not any("\u2026" in line for line in lines)
        names = ("base", "hard negatives") if table.title == Text("models by datasets") else KEPT
        for name in names:
            assert any(line.startswith(f"  {name} ") for line in lines), name
        assert ("No room for: " in " ".join(lines)) == (width == 60)


KEPT = ("attribute", "relation", "REPLACE macro", "REPLACE micro", "swap")


def test_a_long_name_is_folded_under_itself(folders):
    result = EvaluationResult.load(folders[0])
    result.signature["model"]["id"] = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    console = Console(width=60, file=io.StringIO())
    console.print(render_summary([result, EvaluationResult.load(folders[1])]))
    lines = console.file.getvalue().splitlines()
    places = [place for place, line in enumerate(lines) if line.startswith("  laion/CLIP")]
    assert places
    for place in places:
        name = lines[place].split()[0] + lines[place + 1].strip()
        assert name == result.signature["model"]["id"]
        assert lines[place + 1].startswith("  ") and lines[place + 1][2] != " "


def test_a_wide_terminal_gets_both_ends_of_intervals(folders):
    console = Console(width=160, file=io.StringIO())
    result = EvaluationResult.load(folders[0])
    console.print(render_table(result))
    figures = result.metrics["as_published"]["swap"]["macro"]
    ends = [100 * figures[f"original_accuracy_{end}"] for end in ("ci_low", "ci_high")]
    assert f"{ends[0]:.1f}\u2013{ends[1]:.1f}" in console.file.getvalue()


def test_two_results_of_one_model_are_named_by_what_differs(folders):
    first, second = (EvaluationResult.load(folders[0]) for _ in range(2))
    first.signature["dtype"] = "float32"
    second.signature["dtype"] = "bfloat16"
    assert labels_of([first, second]) == ["base (float32)", "base (bfloat16)"]
    second.signature["dtype"] = "float32"
    second.signature["model"]["revision"] = "0123456789"
    assert labels_of([first, second]) == ["base (no revision)", "base (revision 01234567)"]
    second.signature["model"]["adapters"] = ["org/lora"]
    names = ["base (no adapter)", "base (adapter org/lora)"]
    assert labels_of([first, second]) == names
    of_both = [first, EvaluationResult.load(folders[0])]
    of_both[1].signature["device"] = "cuda:0"
    assert labels_of([*of_both, second, second]) == [
        "base (no adapter, on cpu)",
        "base (no adapter, on cuda:0)",
        *("base (adapter org/lora, run 1)", "base (adapter org/lora, run 2)"),
    ]


def test_a_model_on_several_datasets_has_one_name(folders):
    first, second = (EvaluationResult.load(folders[0]) for _ in range(2))
    first.signature["device"], second.signature["device"] = "cpu", "cuda:0"
    assert labels_of([first, second]) == ["base (on cpu)", "base (on cuda:0)"]
    second.signature["dataset"]["content_sha256"] = "other rows"
    assert labels_of([first, second]) == ["base", "base"]
    second.signature["dtype"] = "bfloat16"
    assert labels_of([first, second]) == ["base (float32)", "base (bfloat16)"]


def test_humans_stand_beside_the_rows_that_they_judged_alone(folders):
    console = Console(width=80, file=io.StringIO())
    console.print(render_table(EvaluationResult.load(folders[0])))
    assert "chance" in console.file.getvalue()
    assert "humans" not in console.file.getvalue()


def test_help_names_what_options_take_in_words():
    for command in (["--help"], ["evaluate", "--help"], ["publish", "dataset", "--help"]):
        shown = run(*command).stdout
        assert not re.search(r"<\w+(\[\w+\])?>", shown), shown
    assert re.search(r"--batch-size +NUMBER ", run("evaluate", "--help").stdout)


def test_the_version_is_printed():
    assert run("--version").stdout == f"hard-positives {hard_positives.__version__}\n"


def test_more_than_two_results_have_a_row_each_with_its_test(folders):
    shown = run("compare", *folders[:3])
    assert shown.exit_code == 0, shown.output
    base, *others = map(EvaluationResult.load, folders[:3])
    for other in others:
        name = other.signature["model"]["id"]
        [line, *_] = [row for row in shown.stdout.splitlines() if row.startswith(f"  {name} ")]
        for row in compare(base, other):
            if (row.view, row.group) != ("as_published", "macro") or row.figure == "drop":
                continue  # no room for drop
            star = "*" if row.p_value < 0.05 else " "
            assert f"{100 * row.second:.1f} {100 * row.difference:+5.1f}{star}" in f"{line} "
    found = json.loads(run("compare", *folders[:3], "--json").stdout)
    assert [of_model[0]["difference"] for of_model in found] == [
        compare(base, other)[0].difference for other in others
    ]


def test_every_table_is_written_as_csv_markdown_and_latex_with_its_signatures(folders, tmp_path):
    results = list(map(EvaluationResult.load, folders[:3]))
    lines = [result.signature_line for result in results]
    for write, given in (
        *((write_figures, results[:number]) for number in (1, 3)),
        *((write_comparison, results[:number]) for number in (2, 3)),
    ):
        paths = [write(given, tmp_path / "new" / f"table{ending}") for ending in FORMATS]
        texts = [path.read_text(encoding="utf-8") for path in paths]
        for result, line in zip(given, lines, strict=False):
            macro = result.metrics["as_published"]["replace"]["macro"]
            frame = pd.read_csv(paths[0])
            assert line in {*frame.filter(like="signature").stack()}
            assert np.isclose(frame.select_dtypes("number"), macro["brittleness"], rtol=1e-12).any()
            shown = f"{100 * macro['brittleness']:.1f}"
            assert plain(line) in texts[1] and re.search(rf"\| {shown}[ |]", texts[1])
            assert f"% {line}\n" in texts[2] and re.search(rf"& {shown}[ ]", texts[2])
        widths = {line.count(" | ") for line in texts[1].splitlines() if line.startswith("| ")}
        assert len(widths) == 1


def test_a_table_in_latex_compiles_to_the_cells_that_the_terminal_shows(folders, tmp_path):
    poisoned = EvaluationResult.load(folders[0])
    poisoned.signature["model"]["id"] = "a_b & 100 % $x$ #{1}"
    text = write_figures([poisoned, poisoned], tmp_path / "t.tex").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert any(row.startswith(r"a\_b \& 100 \% \$x\$ \#\{1\} (run 1) & ") for row in rows)
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1


def test_a_table_of_another_format_is_refused_before_anything_is_read():
    done = run("compare", "nowhere", "nothing", "--table", "table.xlsx")
    assert done.exit_code == 2
    assert "got table.xlsx. The ending says the format." in " ".join(done.stderr.split())
    with pytest.raises(ValueError, match="Expected results to be at least one result, got none"):
        write_figures([], "table.md")


def test_the_command_line_writes_tables_beside_what_it_prints(folders, tmp_path):
    tables = [tmp_path / "t.csv", tmp_path / "t.tex"]
    options = [option for table in tables for option in ("--table", table)]
    assert (
        run("compare", *folders[:2], *map(str, options)).stdout
        == run("compare", *folders[:2]).stdout
    )
    results = list(map(EvaluationResult.load, folders[:2]))
    for table in tables:
        expected = write_comparison(results, tmp_path / f"again{table.suffix}")
        assert table.read_bytes() == expected.read_bytes()
