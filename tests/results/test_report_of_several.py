"""One page for several datasets: models by datasets on top, then what each has on a page alone."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image as PILImage
from test_report import (  # noqa: F401
    FEATURES,
    KINDS,
    SIZES,
    axe_script,
    browser,
    choose,
    find,
    lines_of_table,
    make_result,
    open_page,
    poisoned,
    with_dataset,
)

from attacks.pages import problems_of_page
from hard_positives import Columns, EvaluationResult, evaluate, write_report
from hard_positives.results.gallery import GALLERY_ROWS
from hard_positives_dataset import build_parquet
from hard_positives_dataset.shapes import generate_rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, DatasetDict]:
    """Two datasets in folders, of other rows and sizes."""
    root, made = tmp_path_factory.mktemp("datasets"), {}
    for name, sizes in {
        "first": {"replace": 90, "swap": 60},
        "second": {"replace": 60, "swap": 80},
    }.items():
        splits = {
            split: Dataset.from_list(list(generate_rows(split, number)), features=FEATURES)
            for split, number in sizes.items()
        }
        folder = build_parquet(splits, root / name, progress=False)
        made[str(folder)] = DatasetDict(splits)
    return made


@pytest.fixture(scope="module")
def several(folders) -> list[EvaluationResult]:
    """Three models on the first dataset, the first and the last of them on the second."""
    return [
        with_dataset(
            make_result(rows, model, ahead=ahead, edit_cost=cost, seed=len(model)),
            id=folder,
            content_sha256=folder,
        )
        for model, (ahead, cost) in KINDS.items()
        for place, (folder, rows) in enumerate(folders.items())
        if (model, place) != ("hard negatives", 1)
    ]


@pytest.fixture(scope="module")
def page(several, tmp_path_factory):
    return write_report(several, tmp_path_factory.mktemp("page"))


SIZES |= {"1280": (1280, 900), "400": (400, 800)}


@pytest.mark.parametrize("look", ["1280", "dark", "400"])
def test_axe_finds_no_barrier_on_a_page_of_several(browser, page, look):  # noqa: F811
    script = axe_script()
    open_page(browser, page, look)
    browser.execute_script("for (const part of document.querySelectorAll('details')) part.open = 1")
    browser.execute_script(script)
    report = browser.execute_async_script("axe.run().then(arguments[0])")
    found = {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in report["violations"]}
    assert found == {}
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", ["400", "1280"])
def test_no_table_sticks_out_at_the_side(browser, page, width):  # noqa: F811
    open_page(browser, page, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") == int(width)
    outside = browser.execute_script(
        "return [...document.querySelectorAll('table')].filter((table) => !table.closest('.scroll')"
        " && table.getBoundingClientRect().right > innerWidth).length"
    )
    assert outside == 0


def test_every_link_leads_to_a_place_that_is_there_once(browser, page):  # noqa: F811
    open_page(browser, page)
    ids = [element.get_attribute("id") for element in find(browser, "[id]")]
    assert len(ids) == len(set(ids))
    links = {link.get_attribute("href").split("#")[1] for link in find(browser, "a")}
    assert links <= set(ids)
    assert {"overview", "dataset-1", "dataset-2", "dataset-1-figures", "dataset-2-runs"} <= links
    assert [heading.text for heading in find(browser, "h2")] == [
        "Models by datasets",
        "first",
        "second",
    ]


def test_a_filter_acts_on_its_own_dataset(browser, page):  # noqa: F811
    open_page(browser, page)
    outputs = find(browser, "form output")
    before = [output.text for output in outputs]
    choose(browser, "#dataset-1-filters [data-filter='category']", "swap")
    assert outputs[0].text != before[0] and outputs[1].text == before[1]
    for place, output in enumerate(outputs, start=1):
        assert output.text.endswith(f" of {len(find(browser, f'#dataset-{place} article'))} fit")
    shown = find(browser, "#dataset-1 article:not([hidden])")
    assert {card.get_attribute("data-category") for card in shown} == {"swap"}


def test_a_table_is_sorted_and_shows_another_figure_in_its_own_dataset(browser, page):  # noqa: F811
    open_page(browser, page)
    choose(browser, "#dataset-2-figure", "brittleness")
    titles = [find(browser, f"#dataset-{n}-figure-title")[0].text for n in (1, 2)]
    assert titles == ["Augmented", "Brittleness"]
    for header in find(browser, "#dataset-2-by-substitution thead button")[2:4]:
        header.click()
    ordered = [len(find(browser, f"#dataset-{n} [aria-sort]")) for n in (1, 2)]
    assert ordered == [0, 1]
    shown = find(browser, "#dataset-2-by-substitution tbody tr > :nth-child(4)")
    values = [float(cell.text.split(" ")[0]) for cell in shown]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1


def test_the_overview_holds_the_means_and_marks_the_best_of_a_column(several, page):
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    overview = markdown.split("## Models by datasets")[1].split("\n## ")[0]
    shown = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page.read_text(encoding="utf-8")))
    better = {"original_accuracy": max, "augmented_accuracy": max, "brittleness": min, "drop": min}
    tables = {table.split(",")[0]: table for table in overview.split("\n\n| ")[1:]}
    for figure, best in better.items():
        table = tables[figure.split("_")[0].capitalize()].splitlines()
        assert table[0].endswith(
            " is better | first replace | first swap | second replace | second swap |"
        )
        cells = {line[2]: line.split(" |")[1:] for line in table[2:5]}
        columns = [(place, split) for place in (0, 1) for split in ("replace", "swap")]
        for at, (place, split) in enumerate(columns):
            values = {}
            for result in several:
                dataset = result.signature["dataset"]["id"]
                if dataset.endswith(("first", "second")[place]):
                    letter = "ABC"[list(KINDS).index(result.signature["model"]["id"])]
                    values[letter] = result.metrics["as_published"][split]["macro"][figure]
            for letter in "ABC":
                if letter not in values:
                    assert cells[letter][at].strip() == ""
                    continue
                number = f"{100 * values[letter]:.1f}"
                is_best = number == f"{100 * best(values.values()):.1f}"
                assert cells[letter][at].startswith(
                    f" **{number}** (" if is_best else f" {number} ("
                )
                assert (f"★ {number}" if is_best else number) in shown


def test_one_figure_a_dataset_leads_to_its_rows_and_sorts(several, browser, page):  # noqa: F811
    open_page(browser, page)
    table = find(browser, "table.sortable")[0]
    cells = [
        row.find_elements("css selector", "td")
        for row in table.find_elements("css selector", "tbody tr")
    ]
    shown = [[cell.text.split("\n")[0] for cell in row] for row in cells]
    first = several[0].metrics["as_published"]
    mean = np.mean([figures["macro"]["augmented_accuracy"] for figures in first.values()])
    assert shown[0][0] == f"{100 * mean:.1f}"
    links = table.find_elements("css selector", "td a")
    assert {link.get_attribute("href").split("#")[1] for link in links} == {
        "dataset-1-gallery",
        "dataset-2-gallery",
    }
    table.find_elements("css selector", "thead button")[1].click()
    values = [
        float(row.find_elements("css selector", "td")[0].get_attribute("data-sort"))
        for row in table.find_elements("css selector", "tbody tr")
    ]
    assert values == sorted(values, reverse=True) and len(set(values)) == 3


def test_every_model_and_dataset_is_a_mark_in_the_plane(several, page):
    text = page.read_text()
    overview = text[text.index('id="overview"') : text.index("All figures")]
    assert overview.count('<g class="point">') == len(several)
    for result in several:
        macros = [figures["macro"] for figures in result.metrics["as_published"].values()]
        x, y = (
            np.mean([macro[name] for macro in macros])
            for name in ("original_accuracy", "brittleness")
        )
        assert f'cx="{round(45 + 300 * x, 1)}" cy="{round(280 - 270 * y, 1)}"' in overview


def test_figures_are_written_as_csv_and_latex(several, page):
    folder = page.parent
    frame = pd.read_csv(folder / "figures.csv")
    for result in several:
        of_result = frame[frame["signature"] == result.signature_line]
        macro = result.metrics["as_published"]["replace"]["macro"]
        found = of_result[
            (of_result["rows"] == "REPLACE macro") & (of_result["view"] == "as_published")
        ]
        values = dict(zip(found["figure"], found["value"], strict=True))
        assert values == pytest.approx({name: macro[name] for name in values}, rel=1e-12)
        assert set(values) >= {"original_accuracy", "augmented_accuracy", "brittleness"}
    text = (folder / "figures.tex").read_text()
    assert text.startswith(f"% {several[0].signature_line}\n")
    swap = several[0].metrics["as_published"]["swap"]["macro"]
    assert f"& {100 * swap['brittleness']:.1f} &" in text
    assert text.count(r"\multicolumn") == 2 and r"\bottomrule" in text


def test_signature_lines_of_all_results_stand_below_the_overview(several, page):
    text = page.read_text(encoding="utf-8")
    overview = text.split('<section id="overview">')[1].split("</section>")[0]
    assert re.findall("<code>(model:.*?)</code>", overview) == [
        result.signature_line
        for place in ("first", "second")
        for result in several
        if result.signature["dataset"]["id"].endswith(place)
    ]


def test_a_model_has_one_letter_on_all_datasets(several, page):
    markdown = page.with_name("report.md").read_text(encoding="utf-8")
    second = markdown.split("\n## second\n")[1].replace("\n###", "\n##")
    models = {
        row[1] for row in lines_of_table(second, "Figures") if row[0] == "swap" and len(row) == 7
    }
    assert models == {"A base", "C both"}


def test_each_dataset_has_what_it_has_on_a_page_alone(several, page, tmp_path):
    of_first = [r for r in several if r.signature["dataset"]["id"].endswith("first")]
    alone = write_report(of_first, tmp_path).with_name("report.md").read_text(encoding="utf-8")
    together = page.with_name("report.md").read_text(encoding="utf-8")
    part = together.split("\n## first\n")[1].split("\n## second\n")[0].replace("\n###", "\n##")
    for title in ("Figures", "What happened in each row", "By substitution"):
        assert lines_of_table(part, title) == lines_of_table(alone, title) != []
    commands = [re.findall("^hard-positives .*", text, re.M) for text in (part, alone)]
    assert commands[0] == commands[1] and len(commands[0]) == 3


def test_the_datasets_share_the_room_for_rows(several, tmp_path):
    of_one_model = write_report(several[:2], tmp_path)  # of 150 and 140 rows
    text = of_one_model.read_text(encoding="utf-8")
    counts = [part.count("<article ") for part in text.split('class="dataset"')[1:]]
    assert counts == [GALLERY_ROWS // 2] * 2
    assert text.count("<img ") == GALLERY_ROWS + 1  # the opening's


def test_datasets_are_given_for_their_pictures_by_their_names(several, folders, tmp_path):
    elsewhere = [
        with_dataset(result, id=result.signature["dataset"]["id"].rsplit("/")[-1])
        for result in several
    ]
    first, second = folders
    whole = write_report(elsewhere, tmp_path, dataset=[second, first]).read_text(encoding="utf-8")
    assert "Pictures are missing" not in whole
    with pytest.warns(UserWarning, match=r"lacks pictures: second: second is not here"):
        page = write_report(elsewhere, tmp_path, dataset=first)
    assert 0 < page.read_text(encoding="utf-8").count("<img ") < whole.count("<img ")
    with pytest.raises(ValueError, match="dataset to be folders or Hub ids of first, second, got"):
        write_report(elsewhere, tmp_path, dataset=["third"])


def test_two_benchmarks_of_the_same_rows_are_two_datasets(several, tmp_path):
    first, second = several[0], with_dataset(several[0], benchmark="flickr", id="flickr")
    page = write_report([with_dataset(first, benchmark="coco", id="coco"), second], tmp_path)
    text = page.read_text(encoding="utf-8")
    assert re.findall('<section id="dataset-[0-9]+" class="dataset">\n<h2>(.*?)</h2>', text) == [
        *("coco", "flickr"),
    ]
    title = re.search("<title>Hard positives: (.*?)</title>", text)[1]
    assert title == "base"


def test_other_rows_under_the_name_of_a_dataset_are_refused(several, tmp_path):
    same_name = [with_dataset(result, id="mine") for result in several]
    with pytest.raises(ValueError, match="same rows, got split 'replace' with 90 rows"):
        write_report(same_name, tmp_path)


@pytest.mark.filterwarnings("ignore:The report lacks pictures")
def test_no_field_of_foreign_results_on_several_datasets_gets_out(poisoned, several, tmp_path):  # noqa: F811
    named = poisoned[0].signature["dataset"]["id"]
    others = [with_dataset(r, id=f"{named} 2", content_sha256="d") for r in poisoned[:1]]
    write_report([*poisoned, *others], tmp_path)
    assert problems_of_page(tmp_path) == []


def test_the_figures_offered_by_substitution_are_those_that_it_has(tmp_path):
    rows = Dataset.from_list(
        [
            {
                "first": PILImage.new("RGB", (9, 9), (row, 0, 0)),
                "second": PILImage.new("RGB", (9, 9), (0, row, 9)),
                "a": f"a {row}",
                "b": f"b {row}",
            }
            for row in range(20)
        ]
    )
    chance = np.random.default_rng(0)
    pairs = Columns(pairs=[("first", "a"), ("second", "b")])
    scored = evaluate(
        lambda images, captions: chance.random((len(images), len(captions))), rows, columns=pairs
    )
    scores = scored.scores
    place = scores.column_names.index("substitution")
    words = pa.array([f"a > {row % 3}" for row in range(len(scores))])
    scores = scores.set_column(place, scores.schema.field("substitution"), words)
    page = write_report([EvaluationResult(scores, scored.signature)], tmp_path).read_text()
    assert "<b>Sets</b>" in page
    offered = re.findall(r'<option value="(\w+)"', page)
    assert "original_accuracy" in offered
    assert "set_accuracy" not in offered


def test_pictures_of_rows_in_sets_and_of_boxes_as_structs_are_their_own(tiny_clip, tmp_path):
    rows = Dataset.from_list(list(generate_rows("swap", 24)), features=FEATURES)
    rows = rows.select_columns(["image", "caption", "hard_negative"])
    rows = rows.add_column("scene", [place // 3 for place in range(24)])
    rows = rows.add_column("box", [{"x": 1.0, "y": 2.0, "w": 40.0, "h": 30.0}] * 24)
    columns = Columns(positives=["caption"], negatives=["hard_negative"], set="scene", crop="box")
    result = evaluate(tiny_clip, rows, columns=columns, cache=False)
    assert result.metrics["as_published"]["rows"]["num_sets"] == 8
    text = write_report([result], tmp_path, dataset=rows).read_text()
    assert text.count("<article") == 24
    assert len(re.findall(r'<img [^>]*width="40" height="30"', text)) == 25  # with the opening's
