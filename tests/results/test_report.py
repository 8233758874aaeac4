"""The page is opened in a real browser; where there is none, those tests are skipped and say so."""

import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT, as_scores
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from attacks.pages import hostile_strings, problems_of_page, problems_of_terminal
from hard_positive_metric import row_outcomes
from hard_positives import (
    EvaluationResult,
    compare,
    evaluate,
    render_comparison,
    render_table,
    write_report,
)
from hard_positives.names import printable
from hard_positives.results.edits import mark_edits
from hard_positives.results.evaluation import SCORES_SCHEMA
from hard_positives.results.gallery import GALLERY_BYTES, GALLERY_ROWS, choose_examples
from hard_positives.results.opening import opening_of
from hard_positives.results.parts import name_models
from hard_positives.results.plane import marks_of
from hard_positives.results.runs import command_of
from hard_positives.suite import published
from hard_positives.suite.columns import CAPTION_COLUMNS
from hard_positives_dataset import build_parquet
from hard_positives_dataset.annotations import read_annotation_dir, read_triples
from hard_positives_dataset.shapes import IMAGE_SIZE, generate_rows

TEXT_COLUMNS = ("id", "caption", "hard_positive", "hard_negative", "category", "substitution")
FEATURES = Features(
    {
        **{name: Value("string") for name in (*TEXT_COLUMNS, "image_id")},
        "image": Image(),
        "bbox": List(Value("int32")),
        "flaws": List(Value("string")),
    }
)
# Base, tuned on hard negatives (right by disliking every edit), tuned with hard positives too.
KINDS = {"base": (1.0, 0.3), "hard negatives": (3.5, 3.2), "both": (3.2, 0.4)}


def make_result(rows_by_split, name: str, *, ahead=1.0, edit_cost=0.3, dataset_id=None, seed=0):
    """A result that knows the right answers ``ahead`` of chance and charges for an edit."""
    random = np.random.default_rng(seed)
    splits = [split for split, rows in rows_by_split.items() for _ in range(len(rows))]
    names = ("id", "category", "substitution", "image_id", "flaws", *CAPTION_COLUMNS)
    columns = {
        name: [value for rows in rows_by_split.values() for value in rows[name]] for name in names
    }
    logits = random.normal([20 + ahead, 20 + ahead - edit_cost, 20], 1.5, (len(splits), 3))
    columns["image_sha256"] = [
        hashlib.sha256(cell["bytes"] or Path(cell["path"]).read_bytes()).hexdigest()
        for rows in rows_by_split.values()
        for cell in rows.cast_column("image", Image(decode=False))["image"]
    ]
    columns |= {"split": splits, "logits": list(logits.astype(np.float32))}
    scores = pa.table(as_scores(columns), schema=SCORES_SCHEMA)
    signature = {
        "model": {"id": name, "revision": None, "weights_sha256": f"{seed:08d}" * 8},
        "dtype": "float32",
        "device": "cpu",
        "dataset": {
            "id": dataset_id,
            "revision": None,
            "content_sha256": "abc",
            "splits": {split: {"num_rows": len(rows)} for split, rows in rows_by_split.items()},
        },
        "views": ["as_published", "clean"],
        "tie_rule": "strict comparisons: a tie is wrong",
    }
    return EvaluationResult(scores, signature)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, DatasetDict]:
    """A folder of the rendered world with two splits, and its rows; every tenth row has a flaw."""
    splits = {}
    for split, num_rows in {"replace": 160, "swap": 80}.items():
        records = list(generate_rows(split, num_rows))
        for record in records[::10]:
            record["flaws"] = ["duplicate"]
        splits[split] = Dataset.from_list(records, features=FEATURES)
    folder = build_parquet(splits, tmp_path_factory.mktemp("world") / "data", progress=False)
    return folder, DatasetDict(splits)


@pytest.fixture(scope="module")
def results(world) -> list[EvaluationResult]:
    folder, rows = world
    return [
        make_result(rows, name, ahead=ahead, edit_cost=cost, dataset_id=str(folder), seed=len(name))
        for name, (ahead, cost) in KINDS.items()
    ]


@pytest.fixture(scope="module")
def page(results, tmp_path_factory) -> Path:
    return write_report(results, tmp_path_factory.mktemp("page"))


# --- in a browser ---------------------------------------------------------------------------------

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
SIZES = {"light": (1200, 900), "dark": (1200, 900), "phone": (390, 844)}


def axe_script() -> str:
    """Where axe-core is: HARD_POSITIVES_AXE, or what `npm install axe-core` puts here."""
    default = ROOT / "node_modules" / "axe-core" / "axe.min.js"
    path = Path(os.environ.get("HARD_POSITIVES_AXE", default))
    if not path.is_file():
        pytest.skip("needs axe-core: npm install --no-save axe-core, or HARD_POSITIVES_AXE")
    return path.read_text(encoding="utf-8")


@contextmanager
def started_browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as opened:
        opened.set_script_timeout(110)  # axe reads hundreds of cards; selenium itself waits for 120
        yield opened


@pytest.fixture(scope="module")
def browser():
    with started_browser() as opened:
        yield opened


def open_page(browser, page: Path, look: str = "light") -> None:
    width, height = SIZES[look]
    scheme = {"name": "prefers-color-scheme", "value": "dark" if look == "dark" else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": look == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # reading empties it
    browser.get(page.as_uri())


def requests_of(browser) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [request["params"]["request"]["url"] for request in requests]


def find(browser, selector: str):
    return browser.find_elements("css selector", selector)


def choose(browser, selector: str, value: str) -> None:
    options = browser.find_element("css selector", selector).find_elements("tag name", "option")
    [option] = [option for option in options if option.get_attribute("value") == value]
    option.click()


def shown_cards(browser) -> list:
    return find(browser, "article:not([hidden])")


def test_nothing_is_asked_of_the_network_and_no_error_is_logged(browser, page):
    open_page(browser, page)
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    requests = requests_of(browser)
    assert requests[0] == page.as_uri()
    assert all(url.startswith("data:image/webp;base64,") for url in requests[1:])
    assert browser.get_log("browser") == []


def test_the_page_cannot_ask_the_network_for_anything(browser, page):
    open_page(browser, page)
    browser.execute_script("document.body.append(new Image()); fetch('http://localhost:9/x')")
    logged = browser.get_log("browser")
    assert any("Content Security Policy" in entry["message"] for entry in logged)


def test_every_picture_is_decoded(browser, page):
    open_page(browser, page)
    widths = browser.execute_async_script(
        "const [done] = arguments, images = [...document.images];"
        "Promise.all(images.map((image) => image.decode()))"
        ".then(() => done(images.map((image) => image.naturalWidth)))"
    )
    assert 48 < len(widths) <= GALLERY_ROWS + 1  # the opening's
    assert set(widths) == {IMAGE_SIZE}


@pytest.mark.parametrize("look", SIZES)
def test_axe_finds_no_barrier(browser, page, look):
    script = axe_script()
    open_page(browser, page, look)
    browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = 1")
    browser.execute_script(script)
    report = browser.execute_async_script("axe.run().then(arguments[0])")
    found = {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in report["violations"]}
    assert found == {}
    passed = {rule["id"] for rule in report["passes"]}
    assert passed >= {"color-contrast", "image-alt", "select-name", "button-name", "svg-img-alt"}


def test_axe_would_find_a_barrier(browser, page):
    script = axe_script()
    open_page(browser, page)
    browser.execute_script("document.images[0].removeAttribute('alt')")
    browser.execute_script(script)
    report = browser.execute_async_script("axe.run().then(arguments[0])")
    assert [rule["id"] for rule in report["violations"]] == ["image-alt"]


def test_on_a_phone_nothing_sticks_out_at_the_side(browser, page):
    open_page(browser, page, "phone")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390


def test_dark_is_dark_and_light_is_light(browser, page):
    colours = {}
    for look in ("light", "dark"):
        open_page(browser, page, look)
        body = browser.find_element("css selector", "body")
        rgb = re.findall(r"\d+", body.value_of_css_property("background-color"))
        colours[look] = sum(map(int, rgb[:3]))
    assert colours["light"] > 700 > 100 > colours["dark"]


def test_a_filter_shows_the_rows_with_the_value_and_reset_shows_all(browser, page):
    from selenium.webdriver.support.ui import WebDriverWait

    open_page(browser, page)
    all_cards = len(find(browser, "article"))
    output = browser.find_element("css selector", "#filters output")
    assert output.text == f"{all_cards} of {all_cards} fit"

    choose(browser, "[data-filter='outcome-a']", "all_above")
    choose(browser, "[data-filter='outcome-b']", "only_caption_above")
    wanted = "[data-outcome-a='all_above'][data-outcome-b='only_caption_above']"
    fitting = len(find(browser, f"article{wanted}"))
    assert 0 < fitting < all_cards
    assert output.text == f"{fitting} of {all_cards} fit"
    assert len(find(browser, f"article{wanted}:not([hidden])")) == len(shown_cards(browser))

    choose(browser, "[data-filter='category']", "swap")
    assert {card.get_attribute("data-category") for card in shown_cards(browser)} == {"swap"}

    browser.find_element("css selector", "#filters button[type='reset']").click()
    # The script acts after the browser has emptied the choices.
    WebDriverWait(browser, 10).until(lambda _: output.text == f"{all_cards} of {all_cards} fit")


def test_a_substitution_can_be_chosen(browser, page):
    open_page(browser, page)
    option = find(browser, "[data-filter='substitution'] option")[1].get_attribute("value")
    assert " > " in option
    choose(browser, "[data-filter='substitution']", option)
    chosen = {card.get_attribute("data-substitution") for card in shown_cards(browser)}
    assert chosen == {option}


def test_more_rows_come_at_the_press_of_a_button(browser, page):
    open_page(browser, page)
    before = len(shown_cards(browser))
    assert before == 48
    browser.find_element("css selector", "#more").click()
    assert len(shown_cards(browser)) == min(96, len(find(browser, "article")))


def column(browser, place: int) -> list[str]:
    cells = find(browser, f"#by-substitution tbody tr > :nth-child({place})")
    return [cell.text.split(" ±")[0] for cell in cells]


def test_the_substitutions_can_be_sorted_by_any_column(browser, page):
    open_page(browser, page)
    headers = find(browser, "#by-substitution thead button")
    for place, as_key in {1: str, 3: int, 4: float, 6: float}.items():
        headers[place - 1].click()
        once = [as_key(text) for text in column(browser, place)]
        headers[place - 1].click()
        twice = [as_key(text) for text in column(browser, place)]
        assert once == sorted(once, reverse=place > 1)
        assert twice == sorted(once, reverse=place == 1)
        assert len(set(once)) > 1


def test_another_figure_by_substitution_keeps_the_order_true(browser, page, results):
    open_page(browser, page)
    find(browser, "#by-substitution thead button")[3].click()
    augmented = column(browser, 4)
    choose(browser, "#figure", "brittleness")
    brittleness = column(browser, 4)
    assert brittleness != augmented
    assert list(map(float, brittleness)) == sorted(map(float, brittleness), reverse=True)
    assert browser.find_element("css selector", "#figure-title").text == "Brittleness"


def test_the_keyboard_alone_sorts_and_filters(browser, page):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    button = find(browser, "#by-substitution thead button")[2]
    button.send_keys(Keys.ENTER)
    header = find(browser, "#by-substitution thead th")[2]
    assert header.get_attribute("aria-sort") == "descending"
    select = browser.find_element("css selector", "[data-filter='category']")
    select.send_keys("swap", Keys.ENTER)
    assert {card.get_attribute("data-category") for card in shown_cards(browser)} == {"swap"}


HOSTILE = {
    "html": "<script>document.title = 'run'</script><img src=http://localhost:9/x onerror=run()>",
    "quotes": "\"double\" 'single' `tick` \\ & &amp; &lt; {{ 7 * 7 }} {% x %} </td></table>",
    "attribute": '" onmouseover="document.title=1" data-outcome-a="all_above',
    "emoji": "👩‍👩‍👧 a family 🏳️‍🌈 and a flag, é as e\u0301",
    "right to left": "שלום \u202e reversed \u202c مرحبا",
    "markdown": "| a | b |\n|---|---|\n# title [link](http://localhost:9) ![x](http://localhost:9)",
    "control": "a\x07b\u2028c\ttab",
    "long": "a very long caption indeed " * 370,
    "no spaces": "w" * 10_000,
}


@pytest.fixture(scope="module")
def hostile() -> tuple[list[EvaluationResult], DatasetDict]:
    records = list(generate_rows("replace", len(HOSTILE)))
    for record, text in zip(records, HOSTILE.values(), strict=True):
        record |= {"caption": text, "hard_positive": text + "!", "hard_negative": text + "?"}
        record |= {"substitution": text[:200], "category": text[:60], "id": text[:60]}
    rows = DatasetDict({"replace": Dataset.from_list(records, features=FEATURES)})
    return [make_result(rows, f"{HOSTILE['html']} {seed}", seed=seed) for seed in (0, 1)], rows


def test_hostile_texts_are_shown_as_text_and_break_nothing(browser, hostile, tmp_path):
    results, rows = hostile
    page = write_report(results[:1], tmp_path, dataset=rows)
    open_page(browser, page, "phone")
    texts = [text.get_attribute("textContent") for text in find(browser, "article .triple .text")]
    assert texts[::3] == [printable(text) for text in HOSTILE.values()]
    assert browser.title.startswith("Hard positives: <script>")
    assert len(find(browser, "script")) == 1
    assert all(url.startswith(("file:", "data:")) for url in requests_of(browser))
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    # A filter by a hostile value finds its row: it came through the attribute whole.
    for record in rows["replace"]:
        choose(browser, "[data-filter='category']", printable(record["category"]))
        assert len(shown_cards(browser)) == 1


def test_axe_finds_no_barrier_among_hostile_texts(browser, hostile, tmp_path):
    script = axe_script()
    results, rows = hostile
    open_page(browser, write_report(results, tmp_path, dataset=rows))
    browser.execute_script(script)
    report = browser.execute_async_script("axe.run().then(arguments[0])")
    assert [rule["id"] for rule in report["violations"]] == []


def test_hostile_texts_stay_in_their_cells_in_markdown(hostile, tmp_path):
    results, rows = hostile
    write_report(results, tmp_path, dataset=rows)
    assert problems_of_page(tmp_path) == []
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "document.title = 'run'" in text


def with_strings(value, strings):
    """The value with every text in it replaced by the next of `strings`."""
    if isinstance(value, dict):
        return {key: with_strings(part, strings) for key, part in value.items()}
    return next(strings) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def poisoned() -> list[EvaluationResult]:
    """Results of somebody else whose every text is hostile, twice over the same rows."""
    pool = iter(hostile_strings(500))
    names = ("split", *TEXT_COLUMNS, "image_id", "image_sha256")
    rows = [{name: next(pool) for name in names} for _ in range(12)]
    for place, row in enumerate(rows):  # two splits of three categories
        row |= {"split": rows[place // 6 * 6]["split"], "category": rows[place // 2]["category"]}
        row |= {"flaws": [next(pool)] * (place % 3 == 0)}
    logits = np.random.default_rng(0).normal(20, 2, (2, len(rows), 3)).astype(np.float32)
    made = []
    for of_model in logits:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        scores = pa.table(as_scores({**columns, "logits": list(of_model)}), schema=SCORES_SCHEMA)
        signature = {
            "model": {"id": "a\n`````\n<script>\ud800", "revision": "x", "weights_sha256": "y"},
            "processor": {"sha256": "z", "preprocessing": "\x1b[31m"},
            "dtype": "float32",
            "device": "cpu",
            "versions": {"torch": "1"},
            "extra": {"list": ["a"]},
            "dataset": {"id": "d", "revision": None, "content_sha256": "c"},
        }
        texts = iter([*hostile_strings(40, seed=1)[-12:], *hostile_strings(40)])
        signature = with_strings(signature, texts)
        signature["model"]["id"] += "\n`````\n<script>x</script>\n\ud800"
        signature["extra"][next(pool)] = ["\x1b]0;owned\x07", "`````"]
        signature["dataset"]["content_sha256"] = "c"
        splits = dict.fromkeys(row["split"] for row in rows)
        signature["dataset"]["splits"] = {split: {"num_rows": 6} for split in splits}
        signature |= {"views": ["as_published", "clean"], "tie_rule": "strict"}
        made.append(EvaluationResult(scores, signature))
    return made


@pytest.mark.filterwarnings("ignore:The report lacks pictures")
def test_no_field_of_a_foreign_result_gets_out_of_its_place(browser, poisoned, tmp_path):
    page = write_report(poisoned, tmp_path)
    assert problems_of_page(tmp_path) == []
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    blocks = re.findall("^(`+)sh\n(.*)\n(`+)$", markdown, re.M)
    assert len(blocks) == len(poisoned)
    for fence, command, end in blocks:
        assert fence == end and fence not in command
    open_page(browser, page)
    assert browser.get_log("browser") == []
    assert len(find(browser, "script")) == 1
    assert browser.title.startswith("Hard positives: ")
    assert all(url.startswith("file:") for url in requests_of(browser))


def test_no_field_of_a_foreign_result_moves_the_terminal(poisoned, tmp_path, capsys, recwarn):
    import rich

    for result in poisoned:
        rich.print(render_table(result))
    rich.print(render_comparison(*poisoned))
    write_report(poisoned, tmp_path)
    printed = capsys.readouterr().out
    assert "<script>" in printed
    assert problems_of_terminal(printed) == []
    assert problems_of_terminal(str(recwarn[0].message)) == []


def test_what_looks_for_hostile_texts_finds_them(tmp_path, results):
    page = write_report(results[:1], tmp_path)
    whole = {path: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    markdown = page.with_name("report.md")
    for path, text, hostile_text in (
        (page, "<footer>", "<script>run()</script>"),
        (page, "<footer>", "<a href=http://x>"),
        (page, "<footer>", "<b onclick=run()>"),
        (page, "<footer>", "</section>"),
        (page, "<footer>", "\x1b"),
        (markdown, "hard-positives evaluate", "````\n# free\n````sh\nhard-positives evaluate"),
        (markdown, "| chance |", "| a | chance |"),
        (markdown, "| chance |", "<script> |"),
    ):
        path.write_text(whole[path].replace(text, hostile_text, 1), encoding="utf-8")
        assert problems_of_page(tmp_path) != [], hostile_text
        path.write_text(whole[path], encoding="utf-8")
    assert problems_of_page(tmp_path) == []


# --- how it looks ---------------------------------------------------------------------------------

OVERLAPS = """
const boxes = [...document.querySelectorAll(arguments[0])].map((e) => e.getBoundingClientRect());
return boxes.filter((a, i) => boxes.some((b, j) => i < j && a.left < b.right - 1 &&
  b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length;
"""


@pytest.mark.parametrize("look", SIZES)
def test_the_opening_shows_a_row_and_where_its_captions_land(browser, page, look):
    open_page(browser, page, look)
    image, table, *lines = find(browser, ".finding > img, .finding .triple, .finding .line")
    assert len(lines) == len(KINDS) and len(find(browser, ".line .key")) == 3 * len(KINDS)
    assert image.rect["width"] > 100
    for line in lines:
        left, right = line.rect["x"], line.rect["x"] + line.rect["width"]
        keys = line.find_elements("css selector", ".key")
        middles = [key.rect["x"] + key.rect["width"] / 2 for key in keys]
        assert abs(min(middles) - left) < 2 and abs(max(middles) - right) < 2
        assert line.rect["y"] >= table.rect["y"] + table.rect["height"]
        for key in keys:
            middle = key.rect["y"] + key.rect["height"] / 2
            assert abs(middle - line.rect["y"] - line.rect["height"] / 2) < 2


def test_no_label_of_the_drawings_lies_over_another(browser, results, tmp_path):
    again = EvaluationResult(results[0].scores, {**results[0].signature})
    again.signature["model"] = {**again.signature["model"], "id": "the same"}
    open_page(browser, write_report([*results, again], tmp_path))
    assert len(find(browser, "#sensitivity .lead-line")) == 2  # of each of two splits
    for drawing in find(browser, "#sensitivity svg, #margins svg"):
        browser.execute_script("arguments[0].id = 'looked-at'", drawing)
        inside = ", ".join(f"#looked-at {part}" for part in ("text:not(.point *)", ".point rect"))
        assert browser.execute_script(OVERLAPS, inside) == 0
        browser.execute_script("arguments[0].id = ''", drawing)


def test_on_a_phone_all_figures_of_the_tables_are_in_view(browser, page):
    open_page(browser, page, "phone")
    for cell in find(browser, ".headline td, #figures .scroll:first-of-type td"):
        assert cell.rect["x"] >= 0 and cell.rect["x"] + cell.rect["width"] <= 390


def test_the_edited_words_of_every_row_are_marked(browser, page):
    open_page(browser, page)
    for row in find(browser, "article:not([hidden]) .triple tr.false"):
        assert row.find_elements("css selector", "mark")
        colour = row.find_element("css selector", "mark").value_of_css_property(
            "border-bottom-width"
        )
        assert colour == "2px"


def test_marked_pieces_join_to_the_text():
    texts = [*HOSTILE.values(), "", " ", "a", "a  b c ", "b a", "a b c d"]
    for text in texts:
        for other in texts:
            assert "".join(piece for piece, _ in mark_edits(text, [other, text])) == text
        assert not any(edited for _, edited in mark_edits(text, [text]))


def test_many_models_in_one_place_are_told_apart():
    figures = {"original_accuracy": 1.0, "brittleness": 0.0}
    marks = marks_of([(f"M{place}", "m", figures) for place in range(40)], free=[(345.0, 280.0)])
    boxes = [mark.badge for mark in marks]
    for place, (x, y, width, height) in enumerate(boxes):
        assert x - width / 2 >= 45 - 10 and x + width / 2 <= 345 + 10
        for other in boxes[:place]:
            apart = abs(x - other[0]) >= (width + other[2]) / 2
            assert apart or abs(y - other[1]) >= (height + other[3]) / 2
    alone = marks_of([("A", "m", figures)])[0]
    assert not alone.is_moved and all(mark.is_moved for mark in marks)


def test_the_opening_is_a_row_that_a_model_gets_wrong_and_counts_such_rows(results, world):
    models = name_models([results])[0]
    opening = opening_of(models, choose_examples(results, world[1]))
    outcome = opening.example.outcomes[opening.model.place]
    assert outcome == "only_caption_above" and "all_above" in opening.example.outcomes
    outcomes = row_outcomes(opening.model.result.logits).outcome.tolist()
    assert (opening.count, opening.total) == (outcomes.count(outcome), 240)
    for model, places in opening.lines:
        logits = [of.logits[model.place] for of in opening.example.candidates]
        assert np.argsort(places).tolist() == np.argsort(logits).tolist()
        assert (min(places), max(places)) == (0, 1)


# --- what it says ---------------------------------------------------------------------------------


def lines_of_table(markdown: str, title: str) -> list[list[str]]:
    section = markdown.split(f"## {title}")[1].split("\n## ")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_figures_are_those_of_the_metric_in_percent(results, page):
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    table = lines_of_table(markdown, "Figures")
    labels = ["attribute", "relation", "REPLACE macro", "REPLACE micro", "swap"]
    of_models = [row for row in table if row[0] in labels and len(row) == 7]
    assert [row[0] for row in of_models] == [label for label in labels * 2 for _ in results]
    for row, result in zip(of_models[:3], results, strict=True):
        figures = result.metrics["as_published"]["replace"]["groups"]["attribute"]
        names = ("original_accuracy", "augmented_accuracy", "drop", "brittleness")
        expected = [
            f"{100 * figures[name]:.1f} ({100 * figures[f'{name}_ci_low']:.1f}\u2013"
            f"{100 * figures[f'{name}_ci_high']:.1f})"
            for name in names
        ]
        assert row[2:] == [f"{figures['num_examples']:,}", *expected]


def test_the_page_holds_every_figure_of_the_markdown(page):
    text = page.read_text(encoding="utf-8")
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    of_models = [row for row in lines_of_table(markdown, "Figures") if row[1][:2] in ("A ", "B ")]
    assert len(of_models) > 10
    for row in of_models:
        for cell in row[3:]:
            value, low_high = cell.split(" ")
            assert f"{value} {low_high.strip('()')}" in shown


def test_the_differences_from_the_first_model_are_those_of_compare(results, page):
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    as_published = markdown.split("### Differences, clean")[0]
    shown = {
        (row[0], row[1].split(" ", 1)[1]): row[3:]
        for row in lines_of_table(as_published, "Differences, as published")
        if row[0] in ("replace", "swap")
    }
    first, *others = results
    for other in others:
        for row in compare(first, other):
            if row.view != "as_published" or row.group not in ("macro", "swap"):
                continue
            place = ("original_accuracy", "augmented_accuracy", "drop", "brittleness").index(
                row.figure
            )
            star = r"\*" if row.p_value < 0.05 else ""
            half = f"{50 * (row.ci_high - row.ci_low):.1f}"
            cell = shown[row.split, other.signature["model"]["id"]][place]
            assert cell == f"{100 * row.difference:+.1f}{star} ±{half}"
            assert f"{100 * row.difference:+.1f}{star[1:]}" in page.read_text(encoding="utf-8")
    assert len(shown) == 2 * len(others)


def test_a_page_of_one_model_has_no_differences(results, tmp_path):
    page = write_report(results[:1], tmp_path)
    assert "Differences" not in page.read_text(encoding="utf-8")
    assert "Differences" not in page.with_name("report.md").read_text(encoding="utf-8")


def test_second_hand_figures_are_called_so(page):
    for name in ("index.html", "report.md"):
        text = page.with_name(name).read_text(encoding="utf-8")
        assert re.search(r"humans on the published REPLACE, second-hand", text)
        assert re.search(r"Published figures, second-hand", text)
        assert re.search("rows of attribute and relation and swap scored here are other", text)


def test_outcomes_are_counted_and_add_up(results, page):
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    table = lines_of_table(markdown, "What happened in each row")[1:]
    assert len(table) == 9
    for row in table:
        counts = [int(cell.split(" ")[0].replace(",", "")) for cell in row[2:]]
        assert sum(counts) == 80


def test_splits_with_a_category_of_one_name_keep_their_own_counts(world, tmp_path):
    both = {split: rows for split, rows in world[1].items()}
    both["replace"] = both["replace"].map(lambda row: {"category": "swap"})
    page = write_report([make_result(both, "base")], tmp_path, dataset=world[1])
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    table = lines_of_table(markdown, "What happened in each row")[1:]
    counts = [[int(cell.split(" ")[0]) for cell in row[2:]] for row in table]
    assert list(map(sum, counts)) == [160, 80]


def test_each_run_has_a_command_that_repeats_it(results, page):
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    commands = re.findall(r"^hard-positives evaluate .*$", markdown, flags=re.M)
    assert [shlex.split(command)[2] for command in commands] == list(KINDS)
    options = shlex.split(commands[0])[3:]
    dataset = Path(results[0].signature["dataset"]["id"]).name
    assert options[:6] == ["--dataset", dataset, "--split", "replace", "--split", "swap"]


def test_examples_are_the_rows_on_which_models_disagree_with_their_own_logits(results, world):
    gallery = choose_examples(results, world[1])
    outcomes = np.stack([row_outcomes(result.logits).outcome for result in results])
    differing = (outcomes != outcomes[0]).any(axis=0)
    assert gallery.is_disagreement and gallery.num_candidates == differing.sum()
    places = {name: row for row, name in enumerate(results[0].scores["id"].to_pylist())}
    captions = {record["id"]: record["caption"] for rows in world[1].values() for record in rows}
    for example in gallery.examples:
        row = places[example.id]
        assert differing[row] and example.picture is not None
        assert example.outcomes == outcomes[:, row].tolist()
        logits = np.array([candidate.logits for candidate in example.candidates])
        np.testing.assert_allclose(logits.T, [result.logits[row] for result in results])
        assert example.candidates[0].text == captions[example.id]


def test_examples_of_one_model_are_of_every_category_and_outcome(results, world):
    gallery = choose_examples(results[:1], world[1])
    assert not gallery.is_disagreement
    assert gallery.num_candidates == 240
    found = {(example.category, example.outcomes[0]) for example in gallery.examples}
    outcomes = row_outcomes(results[0].logits).outcome.tolist()
    assert found == set(zip(results[0].scores["category"].to_pylist(), outcomes, strict=True))


def test_the_picture_of_an_example_is_the_row_s_own(results, world):
    import base64

    by_id = {record["id"]: record for rows in world[1].values() for record in rows}
    for example in choose_examples(results, world[1]).examples[::20]:
        file = base64.b64decode(example.picture.address.split(",")[1])
        small = np.asarray(PILImage.open(io.BytesIO(file)).convert("RGB"), dtype=float)
        original = np.asarray(by_id[example.id]["image"].convert("RGB"), dtype=float)
        assert np.abs(small - original).mean() < 8
        others = [np.asarray(by_id[i]["image"], dtype=float) for i in list(by_id)[::40]]
        assert np.median([np.abs(small - other).mean() for other in others]) > 20


def shown_captions(page: Path) -> set[str]:
    text = re.sub("</?mark>", "", page.read_text(encoding="utf-8"))
    return set(re.findall('<span class="text" dir="auto">(.*?)</span>', text))


def test_a_corrected_dataset_does_not_change_the_captions_that_were_scored(
    results, world, page, tmp_path
):
    def corrected(row: dict) -> dict:
        return {name: f"corrected {row[name]}" for name in CAPTION_COLUMNS}

    later = world[1].map(corrected)
    now = write_report(results, tmp_path, dataset=later)
    assert now.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    scored = set(results[0].scores["captions"].combine_chunks().flatten().to_pylist())
    assert shown_captions(now) <= scored
    markdown = now.with_name("report.md").read_text(encoding="utf-8")
    assert "corrected" not in markdown and next(iter(shown_captions(now))) in markdown


def test_a_picture_that_was_not_scored_is_not_shown_and_counted(results, world, tmp_path):
    other = PILImage.new("RGB", (40, 30), "red")
    later = world[1].map(
        lambda row, place: {"image": other if place % 2 else row["image"]}, with_indices=True
    )
    with pytest.warns(UserWarning, match="does not hold what was scored in") as caught:
        page = write_report(results, tmp_path, dataset=later)
    gallery = choose_examples(results, later)
    missing = gallery.num_without_picture
    for example in gallery.examples:
        assert (example.picture is None) == (int(example.id[-5:]) % 2 == 1)
    sentence = f"the dataset does not hold what was scored in {missing} of these "
    assert 0 < missing < len(gallery.examples) and sentence in str(caught[0].message)
    text = page.read_text(encoding="utf-8")
    assert sentence in text and sentence in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.count("<img ") == len(gallery.examples) - missing + 1  # the opening's


def test_pictures_are_found_by_the_ids_of_their_rows(results, world):
    turned = DatasetDict(
        {split: rows.select(range(len(rows))[::-1]) for split, rows in world[1].items()}
    )
    assert choose_examples(results, turned) == choose_examples(results, world[1])
    nameless = world[1].remove_columns("id")
    assert choose_examples(results, nameless) == choose_examples(results, world[1])
    fewer = DatasetDict({**nameless, "swap": nameless["swap"].select(range(40))})
    lacking = {e.id for e in choose_examples(results, fewer).examples if e.picture is None}
    assert lacking and all(name >= "swap-00040" for name in lacking)


def test_a_damaged_or_missing_picture_costs_that_picture_only(results, world):
    cells = world[1]["swap"].cast_column("image", Image(decode=False))
    broken = cells.map(lambda row: {"image": {"bytes": None, "path": "/nowhere/1.png"}})
    gallery = choose_examples(results, {"replace": world[1]["replace"], "swap": broken})
    assert {example.id.split("-")[0] for example in gallery.examples if not example.picture} == {
        "swap"
    }


def with_dataset(result: EvaluationResult, **changes) -> EvaluationResult:
    dataset = {**result.signature["dataset"], **changes}
    return EvaluationResult(result.scores, {**result.signature, "dataset": dataset})


def test_a_page_without_a_dataset_says_so_and_holds_the_rest(results, tmp_path):
    result = with_dataset(results[0], id=None)
    with pytest.warns(UserWarning, match="lacks pictures: the results do not name their dataset"):
        page = write_report([result], tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "<b>Pictures are missing</b>: the results do not name" in text and "<img" not in text
    assert 'id="by-substitution"' in text
    assert len(shown_captions(page)) > 100


def test_a_dataset_that_is_gone_costs_only_the_pictures(results, tmp_path):
    result = with_dataset(results[0], id=str(tmp_path / "gone"))
    with pytest.warns(UserWarning, match=r"lacks pictures: gone is not here\. Give the dataset"):
        page = write_report([result], tmp_path / "page")
    assert str(tmp_path) not in re.sub(r"(?s)<table class=.signature.*", "", page.read_text())


def test_a_dataset_that_cannot_be_opened_is_named_without_its_folder(results, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "notes.xyz").write_text("no data")
    result = with_dataset(results[0], id=str(tmp_path / "odd"))
    with pytest.warns(UserWarning, match=r"lacks pictures: odd could not be opened \(\w+\)\. Give"):
        page = write_report([result], tmp_path / "page")
    assert "odd could not be opened" in page.read_text(encoding="utf-8")


def test_another_dataset_than_the_scored_one_is_refused(results, tmp_path):
    others = [{**row, "image": PILImage.new("RGB", (40, 30))} for row in generate_rows("swap", 4)]
    other = Dataset.from_list(others, features=FEATURES)
    with pytest.raises(ValueError, match=r"hold the pictures that were scored, got none of the"):
        write_report(results, tmp_path / "page", dataset=DatasetDict(replace=other, swap=other))
    with pytest.raises(ValueError, match=r"Expected splits among \['swap'\]"):
        write_report(results, tmp_path / "page", dataset=DatasetDict(swap=other))
    assert not (tmp_path / "page").exists()


def test_a_page_names_no_folder_of_the_machine_that_made_it(tiny_clip, world, tmp_path):
    result = evaluate(tiny_clip, world[0], cache=False, progress=False)
    page = write_report([result], tmp_path, dataset=world[0])
    for path in (page, page.with_name("report.md")):
        text = path.read_text(encoding="utf-8")
        assert str(tiny_clip.parent) not in text and str(world[0].parent) not in text
        command = re.search("hard-positives evaluate (.*)", text)[1]
        assert command.startswith(f"{tiny_clip.name} --dataset {world[0].name} --split replace")


def test_results_over_different_rows_are_refused(results, world, tmp_path):
    replace_only = make_result({"replace": world[1]["replace"]}, "other")
    with pytest.raises(ValueError, match=r"same rows, got split 'swap' with 80 rows in the first"):
        write_report([results[0], replace_only], tmp_path)
    with pytest.raises(ValueError, match="at least one result"):
        write_report([], tmp_path)


def test_ties_at_half_credit_stand_beside_the_strict_figures(world, tmp_path):
    folder, rows = world
    result = make_result(rows, "tied", dataset_id=str(folder))
    logits = pa.array([[1.0, 1.0, 1.0]] * 240, pa.list_(pa.float32()))
    place = result.scores.column_names.index("logits")
    tied = EvaluationResult(result.scores.set_column(place, "logits", logits), result.signature)
    page = write_report([tied], tmp_path)
    assert "ties as ½: 50.0" in page.read_text(encoding="utf-8")
    assert "ties as ½: 50.0" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_models_of_one_name_are_told_apart(results, tmp_path):
    again = EvaluationResult(results[1].scores, {**results[1].signature})
    again.signature["model"] = {
        **again.signature["model"],
        "id": "base",
    }
    text = write_report([results[0], again], tmp_path).read_text(encoding="utf-8")
    title = re.search("<title>Hard positives: (.*?)</title>", text)[1].split(", ")
    assert len(set(title)) == 2


@pytest.fixture(scope="module")
def published_rows() -> pa.Table:
    folder = Path(os.environ.get("HARD_POSITIVES_DATA", "nowhere")) / "replace"
    if not folder.is_dir():
        pytest.skip("needs the published annotations: HARD_POSITIVES_DATA")
    triples = read_triples(read_annotation_dir(folder, ("replace",)), "replace")
    captions = [[getattr(triple, name) for name in CAPTION_COLUMNS] for triple in triples]
    labels = [[True, True, False]] * len(triples)
    about = {name: [getattr(triple, name) for triple in triples] for name in ("id", "category")}
    return pa.table({**about, "captions": captions, "labels": labels})


def test_the_published_rows_are_known_by_their_captions(published_rows):
    assert published.caption_hashes(published_rows) == published.CAPTION_HASHES
    known = "The captions of attribute and relation scored here are the published ones."
    assert published.describe_rows(published_rows) == known
    assert published.describe_rows(published_rows[::-1]) == known
    captions = published_rows["captions"].to_pylist()
    captions[20_000][1] += "s"
    place = published_rows.column_names.index("captions")
    one_letter = published_rows.set_column(place, "captions", pa.array(captions))
    assert published.describe_rows(one_letter) == (
        "The captions of attribute scored here are the published ones. The rows of relation scored "
        "here are other rows: compare the pattern, not the values."
    )


def test_the_images_preparation_is_told_where_it_is_known(results, tmp_path):
    def prepared(result: EvaluationResult, choice: str) -> EvaluationResult:
        signature = {**result.signature, "processor": {"preprocessing": choice}}
        return EvaluationResult(result.scores, signature)

    ours, theirs = prepared(results[0], "transformers"), prepared(results[1], "openai")
    assert "Images prepared as transformers does." in render_table(ours).caption
    assert "(OpenAI's transform)" in render_table(theirs).caption
    assert "prepared" not in render_table(results[0]).caption
    for made, sentence in (
        ([ours], "Images prepared as transformers does."),
        ([ours, theirs], "A: Images prepared as transformers does. B: Images prepared as the "),
        ([ours, results[1]], "A: Images prepared as transformers does. B: Not known."),
    ):
        page = write_report(made, tmp_path)
        assert sentence in page.read_text(encoding="utf-8")
        assert sentence in page.with_name("report.md").read_text(encoding="utf-8")
    assert "prepared" not in write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "--preprocessing" not in command_of(ours)
    assert "--preprocessing openai" in command_of(theirs)


def without_intervals(value):
    """Metrics as they are where too few images are left, but for relations."""
    if not isinstance(value, dict):
        return value
    return {
        key: part if key == "relation" else None if "_ci_" in key else without_intervals(part)
        for key, part in value.items()
    }


def test_a_dash_stands_where_no_interval_can_be_had(browser, results, tmp_path, capsys):
    import rich

    made = [EvaluationResult(result.scores, result.signature) for result in results[:2]]
    for result in made:
        result.__dict__["metrics"] = without_intervals(result.metrics)
    page = write_report(made, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    rich.print(render_table(made[0]))
    printed = capsys.readouterr().out
    for shown in (markdown, page.read_text(encoding="utf-8"), printed):
        assert "None" not in shown and "nan" not in shown
        assert "\u2013: too few images for an interval." in " ".join(shown.split())
    swap = next(line for line in printed.splitlines() if line.startswith("  swap  "))
    assert swap.count("±\u2013") == 5
    assert re.search(r"\| swap \| A base \| 80 \| [\d.]+ \(\u2013\) \|", markdown)
    assert re.search(r"\| relation \| A base \| 80 \| [\d.]+ \([\d.]+\u2013[\d.]+\) \|", markdown)
    assert "too few" not in render_table(results[0]).caption
    open_page(browser, page)
    assert browser.get_log("browser") == []  # a wrong path in a drawing is logged
    assert len(find(browser, "#sensitivity circle.place")) == 4
    assert find(browser, "#sensitivity .reach") == []


# --- faults ---------------------------------------------------------------------------------------

REPORT = """
import sys
from pathlib import Path
from hard_positives import EvaluationResult
from hard_positives.results import pages
write_text = Path.write_text
def stopping(path, text, **options):
    write_text(path, text, **options)
    if "report.md" in path.name:
        print("written", flush=True)
        sys.stdin.read()
Path.write_text = stopping
pages.write_report([EvaluationResult.load(sys.argv[1])], sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_report_leaves_the_earlier_page_and_the_next_removes_what_is_left(
    results, tmp_path
):
    saved, folder = results[0].save(tmp_path / "result"), tmp_path / "page"
    page = write_report([results[1]], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REPORT, str(saved), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    with subprocess.Popen(command, **pipes) as killed:
        assert killed.stdout.readline() == b"written\n"
        killed.send_signal(signal.SIGKILL)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert len(list(folder.glob(".*"))) == 2
    write_report([results[0]], folder)
    assert {path.name for path in folder.iterdir()} == set(before)
    assert page.read_bytes() != before["index.html"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("room", [0, 64_000, 400_000])
def test_a_full_disk_leaves_the_earlier_page_whole(results, tmp_path, room):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        write_report([results[1]], disk)
        before = {path.name: path.read_bytes() for path in disk.iterdir()}
        size = sum((len(content) + 4095) // 4096 * 4096 for content in before.values()) + room
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        with pytest.raises(
            OSError, match=r"Expected room on the disk for .*unchanged\. Free space"
        ):
            write_report([results[0]], disk)
        assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- at full size ---------------------------------------------------------------------------------


def save_noise(random, path: Path) -> dict:
    """A picture that no codec makes small."""
    pixels = random.integers(0, 256, (400, 500, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path, quality=90)
    return {"bytes": None, "path": str(path)}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory) -> tuple[list[EvaluationResult], DatasetDict]:
    """As many rows as the benchmark has, of its categories and substitutions, over noise."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("noise")
    pictures = [save_noise(random, folder / f"{place}.jpg") for place in range(100)]

    def rows(sizes: dict[str, int], words: list[str]) -> Dataset:
        categories = [name for name, size in sizes.items() for _ in range(size)]
        places = np.sort(random.integers(0, 100, len(categories)))
        table = {
            "id": [f"{name}-{row:05d}" for row, name in enumerate(categories)],
            "image": [pictures[place] for place in places],
            "category": categories,
            "substitution": [words[place] for place in random.integers(0, len(words), len(places))],
            "image_id": [str(place * 100 + row % 80) for row, place in enumerate(places)],
            "flaws": [["duplicate"] if row % 18 == 0 else [] for row in range(len(places))],
        }
        for name in ("caption", "hard_positive", "hard_negative"):
            table[name] = [f"{name} {row} & <more>" for row in range(len(categories))]
        features = Features({name: FEATURES[name] for name in table})
        return Dataset.from_dict(table, features=features)

    substitutions = [f"word {place} > synonym {place}" for place in range(300)]
    dataset = DatasetDict(
        {
            "replace": rows({"attribute": 10_575, "relation": 16_868}, substitutions),
            "swap": rows({"swap": 28_748}, [""]),
        }
    )
    made = [
        make_result(dataset, name, ahead=ahead, edit_cost=cost, seed=len(name))
        for name, (ahead, cost) in KINDS.items()
    ]
    return made, dataset


@pytest.mark.slow
def test_56191_rows_and_noisy_pictures_make_a_page_under_10_mb(full_size, tmp_path):
    results, dataset = full_size
    assert len(results[0].scores) == 56_191
    page = write_report(results, tmp_path, dataset=dataset)
    assert GALLERY_BYTES / 2 < page.stat().st_size < 10_000_000
    text = page.read_text(encoding="utf-8")
    assert "The rows of attribute and relation scored here are other rows" in text
    assert "Of swap as many rows were scored as published; their captions were not" in text
    assert "The 200 most frequent of 600" in text
