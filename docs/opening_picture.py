"""Draw the README's opening picture: an image, its three captions, and a model's three scores.

    python docs/opening_picture.py

It shows the first attribute row of the bundled world on which the bundled model is brittle: the
caption beats the hard negative, the hard positive does not. The drawing follows the reader's light
or dark scheme and needs no other file.
"""

import base64
import io
from html import escape
from pathlib import Path

from hard_positive_metric import row_outcomes
from hard_positives import evaluate
from hard_positives.suite.sources import load_splits

MODEL, DATASET, SPLIT = "shapes_clip", "shapes", "replace"
PICTURE = Path(__file__).with_name("opening_picture.svg")
ROWS = (
    ("caption", "caption", "true"),
    ("hard_positive", "hard positive: same meaning", "true"),
    ("hard_negative", "hard negative: other meaning", "false"),
)
LONGEST = 250  # of a bar
STYLE = """
  text { font: 15px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1b1f24 }
  .card { fill: #ffffff; stroke: #d4d9df } .small { font-size: 12.5px; fill: #57606a }
  .words { font-size: 17px; font-weight: 600 } .track { fill: #eef1f4 }
  .true { fill: #1fa37c } .false { fill: #e69f00 } .score { font-weight: 600; text-anchor: end }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9ed } .card { fill: #161b22; stroke: #38414b } .small { fill: #a3adb8 }
    .track { fill: #262d36 }
  }
"""


def find_row() -> tuple[dict, list[float]]:
    """Return the row to show and its three logits."""
    result = evaluate(MODEL, DATASET, splits=[SPLIT], progress=False)
    outcomes = row_outcomes(result.logits).outcome
    categories = result.scores["category"].to_pylist()
    place = next(
        place
        for place, outcome in enumerate(outcomes)
        if outcome == "only_caption_above" and categories[place] == "attribute"
    )
    return load_splits(DATASET, [SPLIT])[SPLIT][place], result.logits[place].tolist()


def draw(row: dict, logits: list[float]) -> str:
    """Return the picture as SVG."""
    buffer = io.BytesIO()
    row["image"].save(buffer, format="PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    # Bars begin a little below the lowest score: what counts is which is longer.
    low, high = min(logits), max(logits)
    lengths = [LONGEST * (0.25 + 0.75 * (logit - low) / (high - low)) for logit in logits]
    drawn = "".join(
        f'<text class="words" x="170" y="{y}">{escape(row[column])}</text>'
        f'<text class="score" x="420" y="{y}">{logit:.2f}</text>'
        f'<text class="small" x="170" y="{y + 18}">{title}</text>'
        f'<rect class="track" x="170" y="{y + 26}" width="{LONGEST}" height="14" rx="4"/>'
        f'<rect class="{kind}" x="170" y="{y + 26}" width="{length:.0f}" height="14" rx="4"/>'
        for y, (column, title, kind), length, logit in zip(
            (38, 112, 186), ROWS, lengths, logits, strict=True
        )
    )
    names = ", ".join(
        f"{title}, {row[column]}, scores {logit:.2f}"
        for (column, title, _), logit in zip(ROWS, logits, strict=True)
    )
    return (
        # Readable at the width of a phone, and no larger than that asks for elsewhere.
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 440 290" width="550" role="img" '
        f'aria-label="An image of shapes: {escape(names)}.">\n<style>{STYLE}</style>\n'
        '<rect class="card" x="0.5" y="0.5" width="439" height="289" rx="12"/>'
        f'<image href="data:image/png;base64,{image}" x="20" y="22" width="130" height="130"/>\n'
        '<text class="small" x="20" y="174">Scores are logits;</text>'
        '<text class="small" x="20" y="191">bars do not</text>'
        '<text class="small" x="20" y="208">begin at 0.</text>\n'
        f'{drawn}\n<text class="small" x="20" y="256">{MODEL} ranks the false caption between '
        'the true ones:</text>\n<text class="small" x="20" y="273">'
        "it sees the edit, not the meaning.</text>\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(*find_row()), encoding="utf-8")
