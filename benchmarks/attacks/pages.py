"""Texts that try to leave their place on a page, in a table or in a terminal, and who notices.

`hostile_strings` go into every field of a result. `problems_of_page` reads the two files of
`hard-positives report` as a browser and a Markdown reader would, `problems_of_terminal` what was
printed. Nothing here needs a browser or a network.
"""

import random
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
from markdown_it import MarkdownIt

from attacks.trials import Attack, Attempt, Outcome, Trial, right, verdict_of, wrong
from hard_positives import EvaluationResult, write_report

# What a terminal or a page obeys, and what turns the direction of text.
ACTIVE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
PIECES = (
    *("<script>document.title='run'</script>", "<img src=http://localhost:9/x onerror=run()>"),
    *("</td></tr></table>", "</script>", "--></style>", "]]>", "' onfocus=run() x='", '" onload="'),
    *(
        "```",
        "````",
        "`````\n# free\n",
        "~~~~",
        "\n\n# heading\n\n",
        "\n- item\n",
        "|",
        "\n|---|\n",
    ),
    *(
        "[link](http://localhost:9)",
        "![x](http://localhost:9)",
        "<http://localhost:9>",
        "\\",
        "&lt;",
    ),
    *(
        "{{ 7 * 7 }}",
        "{% raw %}",
        "$x$",
        "**",
        "__",
        "[red]",
        "[/]",
        "[link=file:///x]",
        "%s",
        "\x00",
    ),
    *("\x1b]0;owned\x07", "\x1b[31m", "\x9b2J", "\x08", "\r", "\n", "\t", "\x0c", "\x1c", "\x85"),
    *(
        "\u2028",
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\ufffe",
        "e\u0301",
        "👩‍👩‍👧",
        "שלום",
        "w" * 3_000,
    ),
)


def hostile_strings(count: int, seed: int = 0) -> list[str]:
    """Every piece once, then random runs of pieces."""
    choose = random.Random(seed)
    runs = ("".join(choose.choices(PIECES, k=choose.randint(2, 6))) for _ in range(count))
    return [*PIECES, *runs][:count]


def problems_of_page(folder: Path) -> list[str]:
    """What got out of its place in `index.html` and `report.md`; none where all is well."""
    page, markdown = ((folder / name).read_bytes().decode() for name in ("index.html", "report.md"))
    reader = _Reader()
    reader.feed(page)
    reader.close()
    problems = [
        f"{name}: {problem}"
        for name, text in {"page": page, "md": markdown}.items()
        for problem in _active(text)
    ]
    return [*problems, *reader.problems, *_problems_of_markdown(markdown)]


def problems_of_terminal(printed: str) -> list[str]:
    """What a terminal would obey in printed text."""
    return _active(printed)


def _active(text: str) -> list[str]:
    return [f"{unicodedata.name(c, repr(c))} is there" for c in sorted(set(ACTIVE.findall(text)))]


class _Reader(HTMLParser):
    """Notes scripts, handlers, addresses, and tables that are not closed where they were opened."""

    def __init__(self):
        super().__init__()
        self.problems, self.open = [], []
        self.num_scripts = 0

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.num_scripts += tag == "script"
        if self.num_scripts > 1:
            self.problems.append("a second script")
        for name, value in attributes:
            if name.startswith("on"):
                self.problems.append(f"a handler {name}")
            if name in ("src", "href") and not re.match("data:image/webp;|#", value or ""):
                self.problems.append(f"an address {value}")
        if tag in ("table", "article", "section", "td", "th", "tr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("table", "article", "section", "td", "th", "tr") and (
            not self.open or self.open.pop() != tag
        ):
            self.problems.append(f"</{tag}> out of place")


def _problems_of_markdown(text: str) -> list[str]:
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    every = [token for block in tokens for token in (block, *(block.children or ()))]
    found = [
        f"md: {token.type} {token.content[:40]!r}"
        for token in every
        if token.type in ("html_block", "html_inline", "link_open", "image", "hr", "code_block")
    ]
    headings = [
        tokens[place + 1].content
        for place, token in enumerate(tokens)
        if token.type == "heading_open" and token.tag == "h1"
    ]
    fences = [token.content for token in tokens if token.type == "fence"]
    found += [f"md: a heading {heading!r}" for heading in set(headings) - {"Hard positives"}]
    found += [f"md: a block {code[:40]!r}" for code in fences if not _is_command(code)]
    return found + [f"md: a table with lines of {bars} bars" for bars in _uneven_tables(text)]


def _is_command(code: str) -> bool:
    return code.startswith("hard-positives evaluate ") and code.count("\n") == 1


def _uneven_tables(text: str) -> list[set[int]]:
    """How many bars the lines of a table have, for tables in which these differ."""
    tables = [block for block in re.split("\n\n+", text) if re.search(r"^\|---", block, re.M)]
    lines = [table[table.index("| ") :].strip("\n").split("\n") for table in tables]
    bars = [{len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table} for table in lines]
    return [numbers for numbers in bars if len(numbers) > 1]


def hostile_results(result: Callable[[], Path], small: int, full: int) -> Attack:
    """Put hostile texts into every field of a result and write its page, a trial each."""

    @contextmanager
    def prepare(scratch: Path) -> Iterator[Attempt]:
        whole = EvaluationResult.load(result())
        yield lambda trial: _write_page(whole, trial)

    return Attack("pages", prepare, small, full)


def _write_page(whole: EvaluationResult, trial: Trial) -> Outcome:
    texts = hostile_strings(300, seed=trial.random.getrandbits(32))
    draw = partial(trial.random.choice, texts)
    scores = whole.scores
    for place, field in enumerate(scores.schema):
        if field.name in ("direction", "set"):  # which no result that is read has otherwise
            continue
        if field.type == pa.string():
            column = pa.array([draw() for _ in range(len(scores))])
        elif field.type == pa.list_(pa.string()):
            lists = scores[field.name].to_pylist()
            column = pa.array([[draw() for _ in texts] for texts in lists], field.type)
        else:
            continue
        scores = scores.set_column(place, field, column)
    poisoned = EvaluationResult(scores, _with_texts(whole.signature, draw))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            write_report([poisoned], trial.folder)
        except Exception as error:
            return verdict_of(error)
    problems = problems_of_page(trial.folder)
    problems += problems_of_terminal(" ".join(str(warning.message) for warning in caught))
    return wrong("; ".join(problems)) if problems else right()


def _with_texts(value: Any, draw: Callable[[], str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_texts(part, draw) for key, part in value.items()}
    return draw() if isinstance(value, str) else value
