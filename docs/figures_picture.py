"""Draw what the figures mean: where a model may put the hard negative, and what each place counts.

    python docs/figures_picture.py

What stands under each case is what the metric says of its three logits. The drawing follows the
reader's light or dark scheme and needs no other file.
"""

from pathlib import Path

from hard_positive_metric import row_outcomes

PICTURE = Path(__file__).with_name("figures_picture.svg")
NAMES = ("caption", "hard positive", "hard negative")
CASES = {  # logits of the caption, the hard positive and the hard negative
    "understood": (3.0, 2.0, 1.0),
    "afraid of the edit": (3.0, 1.0, 2.0),
    "fond of the edit": (1.0, 3.0, 2.0),
    "misled": (2.0, 1.0, 3.0),
}
FIGURES = {"original": "original_correct", "augmented": "augmented_correct", "brittle": "brittle"}
WIDTH, HEIGHT, STEP = 220, 284, 46
STYLE = """
  text { font: 15px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1b1f24 }
  .card { fill: #ffffff; stroke: #d4d9df } .small { font-size: 12.5px; fill: #57606a }
  .title { font-weight: 600; text-anchor: middle } .line { stroke: #8c959f; stroke-width: 2 }
  .true { fill: #1fa37c } .false { fill: #e69f00 } .yes { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9ed } .card { fill: #161b22; stroke: #38414b } .small { fill: #a3adb8 }
  }
"""


def draw_case(left: int, top: int, title: str, logits: tuple[float, ...]) -> str:
    """Return one case: three captions on a scale of logits, and what the row counts as."""
    outcomes = row_outcomes([logits])
    x, start, end = left + 45, top + 62, top + 62 + 3 * STEP
    drawn = (
        f'<text class="title" x="{left + WIDTH / 2:.0f}" y="{top + 36}">{title}</text>'
        f'<line class="line" x1="{x}" y1="{start}" x2="{x}" y2="{end}"/>'
    )
    for name, logit in zip(NAMES, logits, strict=True):
        y = top + 85 + round((3 - logit) * STEP)
        # Shapes tell true from false where colours do not.
        mark = (
            f'<rect class="false" x="{left + 37}" y="{y - 8}" width="16" height="16"/>'
            if name == NAMES[-1]
            else f'<circle class="true" cx="{x}" cy="{y}" r="9"/>'
        )
        drawn += f'{mark}<text x="{left + 66}" y="{y + 5}">{name}</text>'
    for place, (name, field) in enumerate(FIGURES.items()):
        y, yes = top + 232 + 22 * place, getattr(outcomes, field)[0]
        kind, sign = ("yes", "yes") if yes else ("small", "no")
        drawn += f'<text class="small" x="{left + 36}" y="{y}">{name}</text>'
        drawn += f'<text class="{kind}" x="{left + 126}" y="{y}">{sign}</text>'
    return drawn


def draw() -> str:
    """Return the picture as SVG."""
    width, height = 2 * WIDTH, HEIGHT * len(CASES) // 2 + 16
    cases = "\n".join(
        draw_case(WIDTH * (place % 2), HEIGHT * (place // 2), title, logits)
        for place, (title, logits) in enumerate(CASES.items())
    )
    return (
        # Readable at the width of a phone, and no larger than that asks for elsewhere.
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="550" '
        'role="img" '
        'aria-label="Four orders of caption, hard positive and hard negative, and which of '
        f'original, augmented and brittle each counts as.">\n<style>{STYLE}</style>\n'
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" '
        'rx="12"/>\n'
        f"{cases}\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
