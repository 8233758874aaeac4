"""The metric's Space, in its own environment, seen through a real browser.

Runs where HARD_POSITIVES_SPACE_PYTHON names the Python of an environment with
`hard_positive_metric/requirements.txt`, and Chromium with its driver is installed.
"""

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from huggingface_hub import SpaceCard
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from hard_positive_metric import compute_metrics
from hard_positives.hub.metric import METRIC_FILES

METRIC = ROOT / "hard_positive_metric"
SPACE_PYTHON = os.environ.get("HARD_POSITIVES_SPACE_PYTHON")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
in_a_browser = pytest.mark.skipif(
    not (SPACE_PYTHON and CHROMIUM and DRIVER),
    reason="needs chromium, chromedriver, and HARD_POSITIVES_SPACE_PYTHON",
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1200,1700",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page, run from a folder that holds what is published and nothing else."""
    folder = tmp_path_factory.mktemp("space")
    for name in METRIC_FILES:
        shutil.copy(METRIC / name, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"GRADIO_SERVER_PORT": port, "GRADIO_ANALYTICS_ENABLED": "False"}
    server = subprocess.Popen(
        [SPACE_PYTHON, "-u", "app.py"],
        cwd=folder,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = ""
    for line in server.stdout:
        output += line
        if "Running on local URL" in line:
            break
    else:
        pytest.fail(output)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    wait_for(browser, lambda: element(browser, "#compute").is_displayed())
    return browser


def wait_for(page, condition) -> None:
    WebDriverWait(page, 60, ignored_exceptions=[Exception]).until(lambda _: condition())


def element(page, selector: str):
    return page.find_element(By.CSS_SELECTOR, selector)


def write(page, selector: str, text: str) -> None:
    field = element(page, selector)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)


def compute(page) -> None:
    element(page, "#compute").click()


def message(page) -> str | None:
    fields = page.find_elements(By.CSS_SELECTOR, "#message textarea")
    return fields[0].get_attribute("value") if fields and fields[0].is_displayed() else None


def shown_figures(page) -> dict[str, str]:
    """Figure -> percent, as a person reads them in the table."""
    names, percents = (
        page.find_elements(By.CSS_SELECTOR, f"#table [role=gridcell][data-col='{column}']")
        for column in (0, 1)
    )
    return {name.text: percent.text for name, percent in zip(names, percents, strict=True)}


def expected_figures(logits, references=None) -> dict[str, str]:
    metrics = compute_metrics(logits, references)
    names = {
        "Original accuracy": "original_accuracy",
        "Augmented accuracy": "augmented_accuracy",
        "Brittleness": "brittleness",
        "Drop: original - augmented": "drop",
        "Ties": "tie_rate",
    }
    return {title: f"{100 * metrics[name]:.1f}" for title, name in names.items() if name in metrics}


@in_a_browser
def test_a_person_pastes_logits_and_gets_the_table_and_its_reading(page):
    write(page, "#logits textarea", "3, 2, 1\n3, 1, 2\n1, 3, 2\n")
    compute(page)
    wait_for(page, lambda: "3 rows" in element(page, "#reading").text)
    expected = expected_figures([[3, 2, 1], [3, 1, 2], [1, 3, 2]])
    wait_for(page, lambda: shown_figures(page) == expected)
    reading = element(page, "#reading").text
    assert "In 66.7 % the original caption beats the negative" in reading
    assert "In 66.7 % the negative falls between" in reading
    assert message(page) is None


@in_a_browser
def test_json_with_other_labels_works(page):
    write(page, "#logits textarea", "[[2.0, 1.0], [1.0, 2.0]]")
    write(page, "#labels input, #labels textarea", "1 0")
    compute(page)
    wait_for(page, lambda: "2 rows" in element(page, "#reading").text)
    expected = expected_figures([[2, 1], [1, 2]], [[1, 0], [1, 0]])
    wait_for(page, lambda: shown_figures(page) == expected)


@in_a_browser
def test_a_file_can_be_uploaded(page, tmp_path):
    file = tmp_path / "logits.csv"
    file.write_text("\ufeffcaption;hard_positive;hard_negative\n" + "5.5;4.5;0.5\n" * 7)
    element(page, "input[type=file]").send_keys(str(file))
    wait_for(page, lambda: page.find_elements(By.CSS_SELECTOR, ".file-preview"))
    compute(page)
    wait_for(page, lambda: "7 rows" in element(page, "#reading").text)
    wait_for(page, lambda: shown_figures(page)["Augmented accuracy"] == "100.0")


@in_a_browser
@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        (
            "1, 2, 3\n1, nan, 2",
            "1 1 0",
            "Expected every logit of predictions to be finite, got nan",
        ),
        ("1, 2, 3\n1, x, 2", "1 1 0", "Expected line 2 to be numbers, got 'x'."),
        ("1, 2, 3\n1, 2", "1 1 0", "got 3 labels for 2 logits in row 1 (1 of 2)"),
        ("[[1, 2, 3]", "1 1 0", "Expected JSON, got an error"),
        (" ", "1 1 0", "Expected logits, got nothing. Paste one row an image"),
        (
            "caption, hard_positive",
            "1 1 0",
            "Expected predictions to be at least one row, got none",
        ),
        ("1, 2, 3", "1 1 1", "labels with at least one negative (0)"),
        ("1, 2, 3", "yes", "Expected the labels to be numbers, got 'yes'."),
        ("1, 2", "", "Expected every row of predictions to be 3 long"),
    ],
)
def test_bad_input_is_shown_as_a_message_in_place_of_a_table(page, text, labels, expected):
    compute(page)
    wait_for(page, lambda: "4 rows" in element(page, "#reading").text)
    wait_for(page, lambda: len(shown_figures(page)) == 5)
    write(page, "#logits textarea", text)
    write(page, "#labels input, #labels textarea", labels or Keys.BACKSPACE)
    compute(page)
    wait_for(page, lambda: message(page))
    assert expected in message(page)
    wait_for(page, lambda: shown_figures(page) == {})
    assert element(page, "#reading").text == ""

    write(page, "#logits textarea", "3, 2, 1")
    write(page, "#labels input, #labels textarea", "1 1 0")
    compute(page)
    wait_for(page, lambda: "1 row." in element(page, "#reading").text)
    assert message(page) is None


@in_a_browser
def test_one_triple_is_worked_through_and_can_be_moved(page):
    assert "strolling elephant" in page.find_element(By.TAG_NAME, "body").text
    verdict = element(page, "#verdict")
    assert "Original right, augmented wrong, brittle." in verdict.text
    negative = page.find_elements(By.CSS_SELECTOR, "input[type=number]")[2]
    negative.send_keys(Keys.CONTROL, "a")
    negative.send_keys("20", Keys.TAB)
    wait_for(page, lambda: "Original right, augmented right, not brittle." in verdict.text)


@in_a_browser
def test_a_visit_sends_no_request_to_anybody_else(page, address):
    code = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    others = [url for url in page.execute_script(code) if not url.startswith((address, "data:"))]
    assert others == []


def test_the_card_names_the_gradio_that_the_requirements_pin():
    requirements = (METRIC / "requirements.txt").read_text()
    card = SpaceCard((METRIC / "README.md").read_text())
    assert card.data.sdk_version == re.search(r"^gradio==(.+)$", requirements, re.M)[1]


def test_the_page_needs_nothing_but_what_is_published():
    imported = re.findall(r"^(?:import|from) (\w+)", (METRIC / "app.py").read_text(), re.M)
    beside = {Path(name).stem for name in METRIC_FILES if name.endswith(".py")}
    assert set(imported) - {"json", "re", "gradio"} <= beside
