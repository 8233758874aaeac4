"""The metric's page on the Hub: paste or upload logits, read the table.

Runs in an environment of its own (`requirements.txt`) with nothing beside it but
`hard_positive_metric.py`, which holds every formula; here figures are only shown, in percent.
"""

import json
import re

import gradio as gr

from hard_positive_metric import FIGURES, OUTCOMES, compute_metrics, row_outcomes

INTRODUCTION = """\
# Hard Positive Metric

A **hard negative** is a caption with a small edit that makes it false; a model that ranks it below
the original may understand, or may only dislike edits. A **hard positive**, a small edit that
leaves the caption true, tells which: it must stay above the hard negative, too.
"""
TRIPLE = """\
| caption | *a walking elephant* |
|---|---|
| hard positive, still true | *a **strolling** elephant* |
| hard negative, false | *a **jumping** elephant* |
"""
EXAMPLE = """\
caption, hard_positive, hard_negative
3.0, 2.0, 1.0
3.0, 1.0, 2.0
1.0, 2.0, 3.0
2.0, 2.0, 2.0
"""
NAMES = {
    "original_accuracy": "Original accuracy",
    "augmented_accuracy": "Augmented accuracy",
    "brittleness": "Brittleness",
    "drop": "Drop: original - augmented",
    "tie_rate": "Ties",
}
COLUMNS = ["Figure", "%", "95 % interval", "Ties as half", "Better", "Chance"]
MEANINGS = {
    "all_above": "every true caption is above the negative: right",
    "only_caption_above": "the negative falls between: the caption wins, a hard positive loses",
    "only_hard_positive_above": "the negative falls between: hard positives win, the caption loses",
    "none_above": "the negative is above the caption and a hard positive: wrong",
    "tied": "the negative ties with a true caption, which is never right",
}


def judge(caption: float, hard_positive: float, hard_negative: float) -> str:
    """Say what the metric makes of one triple."""
    if None in (caption, hard_positive, hard_negative):
        return "Three numbers, please."
    row = row_outcomes([[caption, hard_positive, hard_negative]])
    verdicts = [
        f"original {'right' if row.original_correct[0] else 'wrong'}",
        f"augmented {'right' if row.augmented_correct[0] else 'wrong'}",
        "brittle" if row.brittle[0] else "not brittle",
    ]
    meaning = MEANINGS[row.outcome[0]]
    return f"{meaning[0].upper()}{meaning[1:]}. **{', '.join(verdicts).capitalize()}.**"


def read_file(path: str) -> str:
    """Read an uploaded file as text."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            "Expected the file to be text in UTF-8, got other bytes. Save it as CSV or JSON."
        ) from error


def read_rows(text: str) -> list[list[float]]:
    """Read JSON, or lines of numbers between commas, semicolons, tabs or blanks."""
    if not text.strip():
        raise ValueError("Expected logits, got nothing. Paste one row an image, or upload a file.")
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"Expected JSON, got an error: {error}. Close every bracket."
            ) from error
    lines = [(place, line) for place, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not any(map(_is_number, _cells(lines[0][1]))):
        lines = lines[1:]  # the names of the columns
    return [read_numbers(line, f"line {place}") for place, line in lines]


def read_numbers(line: str, name: str) -> list[float]:
    """Read one line."""
    cells = _cells(line)
    wrong = [cell for cell in cells if not _is_number(cell)]
    if wrong:
        raise ValueError(
            f"Expected {name} to be numbers, got {wrong[0]!r}. Write one number a caption, with a "
            "decimal point, between commas, semicolons, tabs or blanks."
        )
    return [float(cell) for cell in cells]


def _cells(line: str) -> list[str]:
    return [cell.strip("\"'") for cell in re.split(r"\s*[,;\t]\s*|\s+", line.strip())]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def compute(text: str, file: str | None, labels: str) -> tuple:
    """Show the table and its reading, or what is wrong with the input."""
    try:
        rows = read_rows(text if file is None else read_file(file))
        label_row = read_numbers(labels, "the labels") if labels.strip() else None
        references = [label_row] * len(rows) if label_row else None
        metrics = compute_metrics(rows, references)
    except (TypeError, ValueError) as error:
        return gr.update(value=str(error), visible=True), None, ""
    return (
        gr.update(visible=False),
        tabulate(metrics, label_row or [1, 1, 0]),
        read(metrics),
    )


def tabulate(metrics: dict, labels: list[float]) -> list[list[str]]:
    """Lay the figures out as rows of `COLUMNS`."""
    rows = []
    for figure, name in NAMES.items():
        if figure not in metrics:
            continue  # a single true caption is neither brittle nor lost
        low, high = (_percent(metrics[f"{figure}_ci_{end}"]) for end in ("low", "high"))
        half = metrics.get(f"{figure}_half_credit")
        chance = FIGURES[figure].chance(labels.count(1), labels.count(0))
        row = [name, _percent(metrics[figure]), f"{low} to {high}"]
        row += ["" if half is None else _percent(half), FIGURES[figure].better, _percent(chance)]
        rows.append(row)
    return rows


def read(metrics: dict) -> str:
    """Put the figures into words."""
    rows = metrics["num_examples"]
    counts = "\n".join(f"| {metrics[f'num_{name}']} | {MEANINGS[name]} |" for name in OUTCOMES)
    words = f"""\
**{rows} row{"s" if rows > 1 else ""}.** In {_percent(metrics["original_accuracy"])} % the original
caption beats the negative."""
    if "brittleness" in metrics:
        words += f""" In {_percent(metrics["augmented_accuracy"])} % every true caption does; the
rows in between are lost to an edit that keeps the meaning. In {_percent(metrics["brittleness"])} %
the negative falls between two true captions. No figure stands alone."""
    return f"""\
{words}

| rows | what happened |
|---|---|
{counts}
"""


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


with gr.Blocks(title="Hard Positive Metric") as demo:
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        with gr.Column():
            gr.Markdown(
                "## One triple\nMove the scores of the three captions of one image.\n\n" + TRIPLE
            )
        with gr.Column():
            scores = [
                gr.Slider(15, 35, value, step=0.1, label=label)
                for label, value in (
                    ("Caption", 28.3),
                    ("Hard positive", 24.1),
                    ("Hard negative", 26.0),
                )
            ]
            verdict = gr.Markdown(judge(28.3, 24.1, 26.0), elem_id="verdict")
    for score in scores:
        score.change(judge, scores, verdict, show_progress="hidden")

    gr.Markdown(
        "## Your logits\nOne row an image, one column a caption; the first true caption is the "
        "original. Pass what the model gave in float32 or float64: half precision makes ties."
    )
    with gr.Row():
        text = gr.Textbox(
            EXAMPLE, label="Logits: CSV or JSON", lines=8, max_lines=16, elem_id="logits"
        )
        with gr.Column():
            file = gr.File(
                label="or a file, which goes first",
                file_types=[".csv", ".tsv", ".txt", ".json"],
                height=140,
            )
            labels = gr.Textbox(
                "1 1 0",
                label="Labels of the columns",
                info="1 where a caption is true of the image, 0 where it is false",
                elem_id="labels",
            )
    button = gr.Button("Compute", variant="primary", elem_id="compute")
    message = gr.Textbox(label="This cannot be computed", visible=False, lines=2, elem_id="message")
    table = gr.Dataframe(headers=COLUMNS, interactive=False, elem_id="table")
    reading = gr.Markdown(elem_id="reading")
    button.click(compute, [text, file, labels], [message, table, reading])

if __name__ == "__main__":
    # The system's fonts: no request to a third party from a visitor's browser.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    demo.launch(theme=theme, max_file_size="10mb")
