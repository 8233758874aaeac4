"""People judge rows in real browsers; where there is none, those tests are skipped and say so."""

import http.client
import io
import itertools
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rich.console
import test_report
from datasets import Dataset, load_dataset
from PIL import Image as PILImage
from test_report import (
    FEATURES,
    HOSTILE,
    SIZES,
    axe_script,
    find,
    make_result,
    open_page,
    started_browser,
)

from hard_positives import render_table, write_accepted, write_report
from hard_positives.names import printable
from hard_positives.review.accepted import REVIEW, summarise
from hard_positives.review.agreement import agreement_of, krippendorff_alpha
from hard_positives.review.humans import human_figures, is_whole, refusal
from hard_positives.review.judgments import JUDGMENTS, JUDGMENTS_FILE, Judgments, read_judgments
from hard_positives.review.loading import open_folder
from hard_positives.review.rows import Row
from hard_positives.review.server import ReviewServer, check_annotator
from hard_positives_dataset import build_parquet
from hard_positives_dataset.shapes import generate_rows

TRIPLE = (True, True, False)
browser = test_report.browser  # the fixture


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A dataset of eight rows of two categories, with a licence, that nobody has judged."""
    records = list(generate_rows("replace", 8))
    rows = Dataset.from_list(records, features=FEATURES)
    rows.info.license = "Pictures under CC BY 4.0."
    return build_parquet({"replace": rows}, tmp_path_factory.mktemp("built") / "data")


@pytest.fixture
def folder(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "data"))


def judge(folder: Path, people: dict[str, dict[int, tuple[str, ...]]]) -> None:
    """Have people judge the captions of rows, these by their place in the dataset."""
    rows = open_folder(folder).rows
    with closing(Judgments(folder)) as judgments:
        for annotator, by_row in people.items():
            for place, said in by_row.items():
                for caption, judgment in zip(rows[place].captions, said, strict=True):
                    judgments.add(annotator, rows[place].key, caption, judgment)


RIGHT = ("true", "true", "false")


# --- agreement ------------------------------------------------------------------------------------


def counted(observers) -> np.ndarray:
    """What each observer says of each unit, "." for nothing, as counts of categories by unit."""
    categories = sorted(set("".join(observers)) - {"."})
    units = zip(*observers, strict=True)
    return np.array([[unit.count(category) for category in categories] for unit in units])


@pytest.mark.parametrize(
    ("observers", "published"),
    [
        # Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), A, B and C.
        (["0100000010", "1110010000"], 0.095),
        (["aabbdcccedda", "babbbcccaddd".replace("cccad", "ccced")], 0.692),
        (["123321412...", "1233224125.3", ".3332342251.", "12332441251."], 0.743),
        # The example in Wikipedia's article on his alpha.
        ([".....3412113" + "3.3", "1.213343" + ".......", "..21344.21133.4"], 0.691),
    ],
)
def test_alpha_is_that_of_published_examples(observers, published):
    assert round(krippendorff_alpha(counted(observers)), 3) == published


def test_alpha_is_not_defined_where_nothing_tells_agreement_from_chance():
    assert krippendorff_alpha(np.array([[2, 0, 0], [3, 0, 0]])) is None
    assert krippendorff_alpha(np.array([[1, 0, 0], [0, 1, 0]])) is None
    assert krippendorff_alpha(np.array([[2, 0, 0], [0, 2, 0]])) == 1.0


def random_rows(number: int, captions: int = 3) -> list[Row]:
    texts, labels = tuple("abcdef"[:captions]), (True, True, *[False] * (captions - 2))
    return [
        Row("test", f"kind {i % 3}", f"photo {i // 2}", f"{i:04x}", texts, labels)
        for i in range(number)
    ]


def random_judgments(rows, people, seed=0, wrong=0.25):
    random = np.random.default_rng(seed)
    return {
        row.key: {
            name: {
                caption: str(random.choice(JUDGMENTS))
                if random.random() < wrong
                else ("true" if label else "false")
                for caption, label in zip(row.captions, row.labels, strict=True)
            }
            for name in people
            if random.random() < 0.8
        }
        for row in rows
    }


def test_the_interval_holds_alpha_and_takes_rows_as_they_come():
    rows = random_rows(40)
    judged = random_judgments(rows, ["ann", "ben", "eve"])
    found = agreement_of(rows, judged)
    assert -1 < found.ci_low < found.alpha < found.ci_high < 1
    # The same judgments of twice as many captions a row: no more rows, no narrower interval.
    twice = [
        replace(row, captions=(*row.captions, *"xyz"), labels=(*TRIPLE, *TRIPLE)) for row in rows
    ]
    copied = {
        new.key: {
            name: said | dict(zip("xyz", said.values(), strict=True))
            for name, said in judged[old.key].items()
        }
        for old, new in zip(rows, twice, strict=True)
    }
    wider = agreement_of(twice, copied)
    assert wider.captions == 2 * found.captions and wider.rows == found.rows
    assert wider.ci_high - wider.ci_low == pytest.approx(found.ci_high - found.ci_low, rel=0.1)


def test_repeated_rows_count_once_in_agreement():
    rows = random_rows(10)
    judged = random_judgments(rows, ["ann", "ben"])
    assert agreement_of(rows * 3, judged) == agreement_of(rows, judged)


# --- figures and acceptance -----------------------------------------------------------------------


def restated(rows, judged) -> dict[str, float]:
    """The figures in plain words: means over categories, a row once for each person."""
    by_category: dict[str, list] = {}
    for row in rows:
        for said in judged.get(row.key, {}).values():
            if not all(caption in said for caption in row.captions):
                continue
            labelled = list(zip(row.captions, row.labels, strict=True))
            caption, *positives = [one for one, label in labelled if label]
            negatives = [one for one, label in labelled if not label]
            false = all(said[one] == "false" for one in negatives)
            judged_true = [said[one] == "true" for one in (caption, *positives)]
            some_false = any(said[one] == "false" for one in negatives)
            outcome = (
                judged_true[0] and false,
                all(judged_true) and false,
                some_false and any(judged_true) and not all(judged_true),
            )
            by_category.setdefault(row.category, []).append(outcome)
    means = np.mean([np.mean(outcomes, axis=0) for outcomes in by_category.values()], axis=0)
    names = ("original_accuracy", "augmented_accuracy", "brittleness")
    return dict(zip(names, means, strict=True))


@pytest.mark.parametrize("captions", [3, 5])
def test_human_figures_are_what_plain_words_say(captions):
    rows = random_rows(60, captions)
    judged = random_judgments(rows, ["ann", "ben", "eve"], wrong=0.5)
    for row in rows[:5]:
        judged[row.key]["half"] = {"a": "true"}  # not judged whole
    figures = human_figures(rows, judged)["test"]
    for name, value in restated(rows, judged).items():
        assert 0 < figures[name] < 1
        assert figures[name] == pytest.approx(value)
        assert figures[f"{name}_ci_low"] < value < figures[f"{name}_ci_high"]
    assert figures["num_examples"] == sum(len(of) for of in judged.values()) - 5


@pytest.mark.parametrize("said", list(itertools.product(JUDGMENTS, repeat=3)))
def test_a_row_is_accepted_if_more_than_half_say_what_the_dataset_says(said):
    [row] = random_rows(1)
    ours = dict(zip(row.captions, said, strict=True))
    wrong = [place for place, want in enumerate(RIGHT) if said[place] != want]
    expected = ["caption not true", "hard positive not true", "hard negative not false"]
    alone = refusal(row, {row.key: {"ann": ours}})
    assert alone == (expected[wrong[0]] if wrong else "")
    right = dict(zip(row.captions, RIGHT, strict=True))
    assert refusal(row, {row.key: {"ann": ours, "ben": right}}) == alone  # half is not more
    assert refusal(row, {row.key: {"ann": ours, "ben": right, "eve": right}}) == ""
    assert refusal(row, {row.key: {"ann": {"a": "true"}}}) is None


def test_accepted_rows_are_a_dataset_with_checked_set(folder, tmp_path):
    judge(
        folder,
        {
            "ann": {0: RIGHT, 1: RIGHT, 2: ("true", "false", "false"), 3: RIGHT},
            "ben": {0: RIGHT, 1: ("true", "cannot tell", "false"), 4: RIGHT},
            "eve": {1: RIGHT},
        },
    )
    output = write_accepted(folder, tmp_path / "accepted", progress=False)
    rows, before = (load_dataset(str(one), split="replace") for one in (output, folder))
    assert rows["id"] == [before["id"][place] for place in (0, 1, 3, 4)]
    assert rows["checked"] == [True] * 4
    for name in before.column_names:
        if name != "image":
            assert rows[name] == [before[name][place] for place in (0, 1, 3, 4)]
    [first, again] = (open_folder(one).rows[0].image for one in (output, folder))
    assert first == again  # the picture's bytes
    record = json.loads((output / REVIEW).read_text())
    assert record["splits"]["replace"] == {
        "rows": 8,
        "judged": 5,
        "accepted": 4,
        "refused": {
            "caption not true": 0,
            "hard positive not true": 1,
            "hard negative not false": 0,
        },
    }
    assert record["annotators"] == 3 and "ann" not in json.dumps(record).split('"')
    card = (output / "README.md").read_text()
    assert "4 of 5 judged" in card and "Pictures under CC BY 4.0." in card
    assert open_folder(output).rows  # its card states what it holds


def test_nothing_is_written_where_nothing_is_judged_or_accepted(folder, tmp_path):
    with pytest.raises(ValueError, match="got none that anybody judged whole"):
        write_accepted(folder, tmp_path / "out")
    judge(folder, {"ann": {0: ("false", "true", "false")}})
    with pytest.raises(ValueError, match="caption not true 1 times"):
        write_accepted(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="got no such folder"):
        open_folder(tmp_path / "nowhere")


def test_captions_without_pictures_are_judged_by_the_caption(tmp_path):
    rows = Dataset.from_dict(
        {
            "caption": ["a small dog"],
            "hard_positive": ["a little dog"],
            "hard_negative": ["a big dog"],
        }
    )
    folder = build_parquet({"train": rows}, tmp_path / "texts", progress=False)
    [row] = open_folder(folder).rows
    assert (row.given, row.asked) == ("a small dog", ["a little dog", "a big dog"])
    with closing(Judgments(folder)) as judgments:
        judgments.add("ann", row.key, "a little dog", "true")
        judgments.add("ann", row.key, "a big dog", "false")
    assert refusal(row, read_judgments(folder)) == ""
    assert human_figures([row], read_judgments(folder))["train"]["augmented_accuracy"] == 1


# --- in tables and on pages -----------------------------------------------------------------------


def in_terminal(table) -> str:
    with io.StringIO() as text:
        rich.console.Console(file=text, width=100).print(table)
        return text.getvalue()


def test_reviewers_stand_in_the_tables_of_the_rows_that_they_judged(folder, tmp_path):
    rows = load_dataset(str(folder))
    result = make_result(rows, "clip", dataset_id=str(folder))
    assert "reviewers" not in in_terminal(render_table(result))
    judge(folder, {"ann": {0: RIGHT, 1: RIGHT, 2: ("true", "false", "false"), 3: RIGHT}})
    macro = human_figures(open_folder(folder).rows, read_judgments(folder))["replace"]
    shown = [f"{100 * macro[name]:.1f}" for name in ("original_accuracy", "brittleness")]
    for dataset in (folder, None):  # the signature names it, too
        [line] = [
            line
            for line in in_terminal(render_table(result, dataset=dataset)).splitlines()
            if "REPLACE reviewers" in line
        ]
        assert " 4 " in line and all(f" {value} " in line for value in shown)
    page = write_report([result], tmp_path / "page", dataset=folder)
    for text in (page.read_text("utf-8"), page.with_name("report.md").read_text("utf-8")):
        [line] = [one for one in text.splitlines() if "REPLACE reviewers" in one]
        assert "4" in line
        assert shown[0] in text and shown[1] in text and "Reviewers: people who judged" in text
    assert "humans (second-hand)" not in page.read_text("utf-8")


def test_judgments_of_rows_that_were_changed_do_not_count(folder, tmp_path):
    judge(folder, {"ann": {0: RIGHT}})
    rows = load_dataset(str(folder))
    other = rows.map(lambda row: {"hard_negative": row["hard_negative"] + "!"})
    result = make_result(other, "clip", dataset_id=str(folder))
    assert "reviewers" not in in_terminal(render_table(result))


def test_a_damaged_file_of_judgments_costs_no_table(folder):
    (folder / JUDGMENTS_FILE).write_bytes(b"no database" * 100)
    rows = load_dataset(str(folder))
    result = make_result(rows, "clip", dataset_id=str(folder))
    with pytest.warns(UserWarning, match="lacks humans: Expected .* to hold judgments"):
        render_table(result)
    with pytest.raises(ValueError, match="move it away"):
        Judgments(folder)


# --- the store ------------------------------------------------------------------------------------


def test_judgments_are_added_and_never_changed(tmp_path):
    with closing(Judgments(tmp_path)) as judgments:
        judgments.add("ann", "r", "a", "true")
        judgments.add("ann", "r", "a", "cannot tell")
        assert judgments.of("ann") == {"r": {"a": "cannot tell"}}
    with closing(sqlite3.connect(tmp_path / JUDGMENTS_FILE)) as opened:
        assert opened.execute("SELECT count(*) FROM judgments").fetchone() == (2,)
        assert opened.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        for change in ("UPDATE judgments SET judgment = 'true'", "DELETE FROM judgments"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                opened.execute(change)
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            opened.execute(
                "INSERT INTO judgments (annotator, row, caption, judgment, at) "
                "VALUES ('a', 'r', 'c', 'maybe', '')"
            )


def test_another_programs_file_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / JUDGMENTS_FILE)) as opened:
        opened.execute("CREATE VIEW judgments AS SELECT 1 AS row")
    for read in (Judgments, read_judgments):
        with pytest.raises(ValueError, match="a file of another program"):
            read(tmp_path)


WRITER = """
import sys
from hard_positives.review.judgments import Judgments
judgments, who = Judgments(sys.argv[1]), sys.argv[2]
for number in range(100_000):
    judgments.add(who, f"row {number}", "a", "true")
    print(number, flush=True)
"""


@pytest.mark.slow
def test_two_writers_that_are_killed_lose_no_judgment(tmp_path):
    kept: dict[str, int] = {"ann": -1, "ben": -1}
    for kill_after in (1, 40, 150):
        writers = {
            who: subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), who],
                stdout=subprocess.PIPE,
                text=True,
            )
            for who in kept
        }
        for who, writer in writers.items():
            for _ in range(kill_after):
                kept[who] = max(kept[who], int(writer.stdout.readline()))
        for who, writer in writers.items():
            writer.kill()
            told = writer.stdout.read().splitlines(keepends=True)  # what it had told until then
            whole = [int(line) for line in told if line.endswith("\n")]
            kept[who] = max([kept[who], *whole])
            assert writer.wait() == -signal.SIGKILL
        judged = read_judgments(tmp_path)
        for who, last in kept.items():
            assert all(judged[f"row {number}"][who] == {"a": "true"} for number in range(last + 1))
    assert min(kept.values()) >= 149


# --- the server -----------------------------------------------------------------------------------


@contextmanager
def served(folder: Path, annotator: str | None = None):
    with closing(Judgments(folder)) as judgments:
        server = ReviewServer(open_folder(folder), judgments, annotator)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def ask(server, method="GET", path=None, *, body=None, **headers) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    with closing(connection):
        path = f"/{server.token}/" if path is None else path
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def judgment(**changed) -> str:
    return json.dumps({"annotator": "ann", "row": 1, "caption": 0, "judgment": "true", **changed})


def test_only_who_has_the_token_is_answered_and_only_under_this_hosts_names(folder):
    with served(folder) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert len(server.token) >= 32
        assert ask(server)[0] == 200
        picture = f"/{server.token}/picture/1"
        assert ask(server, path=picture)[0] == 200
        wrong = (server.token[:-1], f"{server.token}x", server.token.swapcase(), "", "%C3%A9")
        for path in ("/", "/picture/1", *(f"/{token}/" for token in wrong)):
            assert ask(server, path=path) == (404, b"Not Found"), path
        port = server.server_port
        assert ask(server, Host=f"localhost:{port}")[0] == 200
        for host in (f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", "", "[::1]"):
            for path in (f"/{server.token}/", picture, "/"):
                assert ask(server, path=path, Host=host) == (403, b"Forbidden"), host


def test_a_judgment_must_come_from_the_page_itself(folder):
    with served(folder) as server:
        path, own = f"/{server.token}/judgments", f"http://127.0.0.1:{server.server_port}"
        origins = ({}, {"Origin": "null"}, {"Origin": "http://evil.example"}, {"Origin": own + "0"})
        for headers in origins:
            assert ask(server, "POST", path, body=judgment(), **headers)[0] == 403
        assert ask(server, "POST", "/wrong/judgments", body=judgment(), Origin=own)[0] == 404
        assert ask(server, "POST", f"/{server.token}/", body=judgment(), Origin=own)[0] == 404
        assert read_judgments(folder) == {}
        assert ask(server, "POST", path, body=judgment(), Origin=own) == (200, b"kept")
        [by_annotator] = read_judgments(folder).values()
        assert list(by_annotator) == ["ann"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[" * 5000,
        "[]",
        "{}",
        judgment(judgment="maybe"),
        judgment(judgment=["true"]),
        judgment(row=0),
        judgment(row=9),
        judgment(row=True),
        judgment(row="1"),
        judgment(caption=3),
        judgment(caption=-1),
        judgment(annotator=""),
        judgment(annotator="a\x1b"),
        judgment(annotator="a" * 81),
        judgment(annotator=None),
        judgment(more="x" * 10_000),
    ],
)
def test_what_is_no_judgment_is_refused_and_not_kept(folder, body):
    with served(folder) as server:
        own = f"http://127.0.0.1:{server.server_port}"
        status, text = ask(server, "POST", f"/{server.token}/judgments", body=body, Origin=own)
        assert status == 400 and text.startswith(b"Expected")
        assert read_judgments(folder) == {}
        assert ask(server)[0] == 200  # still there


def test_a_server_for_one_annotator_takes_judgments_of_no_other(folder):
    with served(folder, "ann") as server:
        own = f"http://127.0.0.1:{server.server_port}"
        path = f"/{server.token}/judgments"
        assert ask(server, "POST", path, body=judgment(annotator="ben"), Origin=own)[0] == 400
        assert ask(server, "POST", path, body=judgment(), Origin=own)[0] == 200
        assert b"Row 1" in ask(server)[1] and b"Your name" not in ask(server)[1]


def test_a_picture_is_what_models_see(folder):
    with served(folder) as server:
        _, content = ask(server, path=f"/{server.token}/picture/3")
        place = server.folder.order[2]
        shown = PILImage.open(io.BytesIO(content)).convert("RGB")
        query = "?annotator=ann&row=99"
        scored = load_dataset(str(folder), split="replace")[place]["image"].convert("RGB")
        assert np.array_equal(shown, scored)
        for path in ("picture/0", "picture/99", "picture/x", "../data", "picture/1/2", query):
            assert ask(server, path=f"/{server.token}/{path}")[0] in (400, 404)


def test_rows_come_in_one_random_order_and_captions_in_another_for_each_annotator(folder):
    with served(folder) as server:
        rows = server.folder.rows
        assert sorted(server.folder.order) == list(range(8)) != server.folder.order

        def order(annotator: str) -> list[list[str]]:
            return [
                re.findall(
                    r'<p id="caption.*>(.*)</p>',
                    ask(server, path=f"/{server.token}/?annotator={annotator}&row={n}")[1].decode(),
                )
                for n in range(1, len(rows) + 1)
            ]

        ann, ben = order("ann"), order("ben")
        assert ann == order("ann") != ben
        assert list(map(sorted, ann)) == list(map(sorted, ben))
        triples = [server.folder.rows[place].captions for place in server.folder.order]
        ways = {
            tuple(map(triple.index, shown))
            for shown, triple in zip(ann + ben, triples * 2, strict=True)
        }
        assert len(ways) > 3
        text = ask(server, path=f"/{server.token}/?annotator=ann&row=1")[1].decode()
        shown = text[text.index('id="captions"') : text.index('id="status"')]
        assert not re.search("hard.positive|hard.negative|original", shown)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a" * 81, "\u202eann"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="annotator's name"):
        check_annotator(name)
    assert check_annotator(" Ann Ölçer ") == "Ann Ölçer"


# --- in a browser ---------------------------------------------------------------------------------


def show(browser, address: str, look: str = "light") -> None:
    open_page(browser, SimpleNamespace(as_uri=lambda: address), look)


def press(browser, key: str) -> None:
    browser.switch_to.active_element.send_keys(key)


def wait(browser, condition) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: condition())


def wait_for_status(browser, text: str) -> None:
    wait(browser, lambda: text in browser.find_element("id", "status").text)


def pressed_in(browser) -> list[str]:
    return [one.get_attribute("data-judgment") for one in find(browser, "[aria-pressed=true]")]


def judge_row(browser, rows: dict[tuple[str, ...], Row], answer, keys: bool = True) -> None:
    """Judge the row that is shown as `answer(row, caption)` says, and go on to the next."""
    from selenium.webdriver.common.keys import Keys

    captions = [one.text for one in find(browser, ".caption > p")]
    row = rows[tuple(sorted(captions))]
    address = browser.current_url
    for place, caption in enumerate(captions):
        said = answer(row, caption)
        if keys:
            press(browser, said[0])
        else:
            find(browser, f".caption:nth-child({place + 1}) [data-judgment='{said}']")[0].click()
    wait_for_status(browser, "This row is judged")
    assert pressed_in(browser) == [answer(row, caption) for caption in captions]
    if keys:
        press(browser, Keys.ENTER)  # the next row has the focus
    else:
        browser.find_element("id", "next").click()
    wait(browser, lambda: browser.current_url != address)


def by_captions(folder: Path) -> dict[tuple[str, ...], Row]:
    return {tuple(sorted(row.asked)): row for row in open_folder(folder).rows}


@contextmanager
def command(folder: Path, *options: str):
    """`hard-positives review` as users start it, and the address that it prints."""
    line = [sys.executable, "-m", "hard_positives", "review", str(folder), *options]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        yield process, re.search(r"http://\S+/", process.stdout.readline())[0]
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_two_people_judge_at_once_and_a_killed_server_loses_nothing(folder, tmp_path):
    rows = by_captions(folder)
    random = np.random.default_rng(3)
    answers = {
        (who, row.key, caption): str(
            random.choice(JUDGMENTS) if random.random() < 0.2 else ("true" if true else "false")
        )
        for who in ("ann", "ben")
        for row in rows.values()
        for caption, true in zip(row.captions, row.labels, strict=True)
    }

    def says(who):
        return lambda row, caption: answers[who, row.key, caption]

    with started_browser() as first, started_browser() as second:
        with command(folder) as (process, address):
            show(first, address)
            first.find_element("css selector", "input").send_keys("ann\n")
            wait(first, lambda: "annotator=ann" in first.current_url)
            show(second, address + "?annotator=ben")
            for _ in range(3):
                judge_row(first, rows, says("ann"))
                judge_row(second, rows, says("ben"), keys=False)
            press(first, "t")  # one of a row, then the kill
            wait_for_status(first, "2 to go")
            shown = first.find_element("css selector", "[aria-pressed=true]")
            kept = shown.find_element("xpath", "../../p").text
            process.send_signal(signal.SIGKILL)
            process.wait()
            press(first, "f")
            wait_for_status(first, "Not kept")
            assert len(find(first, "[aria-pressed=true]")) == 1
        judged = read_judgments(folder)
        for who, whole in {"ann": 3, "ben": 3}.items():
            of = {key: by[who] for key, by in judged.items() if who in by}
            row_of = {row.key: row for row in rows.values()}
            assert sum(is_whole(row_of[key], said) for key, said in of.items()) == whole
        with command(folder) as (process, address):
            for who, opened in {"ann": first, "ben": second}.items():
                show(opened, f"{address}?annotator={who}")
                assert opened.find_element("tag name", "h1").text == "Row 4 of 8"
            chosen = first.find_element("css selector", "[aria-pressed=true]")
            assert chosen.find_element("xpath", "../../p").text == kept
            assert chosen.get_attribute("data-judgment") == "true"
            press_up(first)
            for _ in range(5):
                judge_row(first, rows, says("ann"))
                judge_row(second, rows, says("ben"), keys=False)
            for opened in (first, second):
                assert opened.find_element("tag name", "h1").text == "All judged"
            process.send_signal(signal.SIGINT)
            text = process.stdout.read()
            assert process.wait() == 0
    judged = read_judgments(folder)
    assert {
        (who, key, caption): said
        for key, by in judged.items()
        for who, of in by.items()
        for caption, said in of.items()
    } == answers
    record = summarise(open_folder(folder), judged)
    expected = restated(rows.values(), judged)
    for name, value in expected.items():
        assert record["humans"]["replace"][name] == pytest.approx(value)
        assert f"{100 * value:.1f}" in text
    assert f"alpha {record['agreement']['alpha']:.2f}" in text
    done = subprocess.run(
        [sys.executable, "-m", "hard_positives", "review", folder, "--accepted", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept_ids = load_dataset(str(tmp_path / "out"), split="replace")["caption"]
    majority = [row.captions[0] for row in open_folder(folder).rows if refusal(row, judged) == ""]
    assert list(kept_ids) == majority and 0 < len(majority) < 8


def press_up(browser) -> None:
    """Go to the first caption, whichever has the focus."""
    from selenium.webdriver.common.keys import Keys

    for _ in range(3):
        press(browser, Keys.ARROW_UP)


def test_the_keyboard_alone_judges_changes_and_turns_pages(browser, folder):
    from selenium.webdriver.common.keys import Keys

    with served(folder) as server:
        show(browser, server.address + "?annotator=ann")
        for key in "tfc":  # faster than they are kept
            press(browser, key)
        wait_for_status(browser, "This row is judged")
        pressed = [
            one.get_attribute("data-judgment") for one in find(browser, "[aria-pressed=true]")
        ]
        assert pressed == ["true", "false", "cannot tell"]
        press_up(browser)
        press(browser, Keys.ARROW_DOWN)
        press(browser, "t")
        wait(browser, lambda: len(find(browser, "[aria-pressed=true][data-judgment=true]")) == 2)
        [said] = server.judgments.of("ann").values()
        assert sorted(said.values()) == ["cannot tell", "true", "true"]
        press(browser, Keys.ARROW_RIGHT)
        wait(browser, lambda: "row=2" in browser.current_url)
        press(browser, Keys.ARROW_LEFT)
        wait(browser, lambda: "row=1" in browser.current_url)
        assert len(find(browser, "[aria-pressed=true]")) == 3
        assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


def axe_of(browser) -> dict[str, list[str]]:
    browser.execute_script(axe_script())
    report = browser.execute_async_script("axe.run().then(arguments[0])")
    assert {rule["id"] for rule in report["passes"]} >= {"color-contrast", "document-title"}
    return {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in report["violations"]}


@pytest.mark.slow
@pytest.mark.parametrize("look", SIZES)
def test_axe_finds_no_barrier_and_nothing_sticks_out(browser, folder, look):
    browser.set_script_timeout(120)
    with served(folder) as server:
        judged = server.address + "?annotator=ann"
        for address in (server.address, judged, server.address + "?annotator=%0a"):
            show(browser, address, look)
            assert axe_of(browser) == {}
            assert browser.execute_script(
                "return document.documentElement.scrollWidth <= innerWidth"
            )
        show(browser, judged, look)
        for key in "tfc":
            press(browser, key)
        wait_for_status(browser, "This row is judged")
        assert axe_of(browser) == {}
        server.judgments.close()  # nothing can be kept any more
        press_up(browser)
        press(browser, "f")
        wait_for_status(browser, "Not kept")
        assert axe_of(browser) == {}


@pytest.mark.slow
def test_hostile_captions_are_shown_as_text_without_a_barrier(browser, tmp_path):
    records = list(generate_rows("replace", len(HOSTILE)))
    for record, text in zip(records, HOSTILE.values(), strict=True):
        record |= {"caption": text, "hard_positive": text + "!", "hard_negative": text + "?"}
    rows = Dataset.from_list(records, features=FEATURES)
    folder = build_parquet({"replace": rows}, tmp_path / "data", progress=False)
    with served(folder, "<script>ann</script>") as server:
        found = set()
        for number in range(1, len(records) + 1):
            show(browser, f"{server.address}?row={number}", "phone")
            found |= {one.get_attribute("textContent") for one in find(browser, ".caption > p")}
            assert browser.execute_script("return document.documentElement.scrollWidth") == 390
            assert browser.get_log("browser") == []
        assert found == {
            printable(text + end) for text in HOSTILE.values() for end in ("", "!", "?")
        }
        press(browser, "t")
        wait_for_status(browser, "to go")
        assert list(server.judgments.of("<script>ann</script>"))


def test_the_pages_script_runs_and_no_other(browser, folder):
    with served(folder) as server:
        show(browser, server.address + "?annotator=ann")
        browser.execute_script(
            "const script = document.createElement('script');"
            "script.textContent = 'window.ran = 1'; document.body.append(script);"
            "fetch('http://127.0.0.1:9/').catch(() => 0)"
        )
        assert browser.execute_script("return window.ran") is None
        logged: list[str] = []

        def both_refused() -> bool:
            logged.extend(entry["message"] for entry in browser.get_log("browser"))
            return sum("Content Security Policy" in message for message in logged) > 1

        wait(browser, both_refused)
