"""Tables for other programs and for papers: CSV, Markdown and LaTeX, each with its signatures."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from hard_positive_metric import FIGURES
from hard_positives.names import printable
from hard_positives.results.comparison import compare
from hard_positives.results.figures import (
    all_figures_of,
    dataset_name_of,
    labels_of,
    percent,
    shown_figures,
)
from hard_positives.results.result import EvaluationResult
from hard_positives.results.tables import (
    render_authors,
    render_comparison,
    render_ranking,
    render_summary,
    render_table,
)
from hard_positives_dataset.folders import write_whole

FORMATS = (".csv", ".md", ".tex")


def write_figures(results: Sequence[EvaluationResult], path: str | Path) -> Path:
    """Write the figures of results to a file, in the format that its name ends in.

    Args:
        results: One or more, of any models and datasets.
        path: Ends in `.csv`: every figure of every view and category, as fractions with the ends of
            their intervals, one a line. In `.md` or `.tex` (for the package booktabs): the table of
            `render_table`, with that of `render_authors` for a known benchmark; of several results
            that of `render_summary`; in percent. What is there is replaced.

    Returns:
        The path.

    Raises:
        ValueError: The name ends in something else; no results.
        OSError: The file cannot be written; what was there is whole.

    Examples:
        >>> result = EvaluationResult.load("results/clip")  # doctest: +SKIP
        >>> write_figures([result], "clip.tex")  # doctest: +SKIP
        PosixPath('clip.tex')
    """

    def tables() -> Iterator[Table]:
        if len(results) > 1:
            yield render_summary(results)
            return
        yield render_table(results[0])
        if results[0].authors:
            yield render_authors(results[0])

    return _write(path, results, lambda: figures_csv(results), tables)


def write_comparison(results: Sequence[EvaluationResult], path: str | Path) -> Path:
    """Write how results differ from the first to a file, in the format that its name ends in.

    Args:
        results: Two or more over the same rows; the others are compared with the first.
        path: Ends in `.csv`: all of `compare`, as fractions, one difference a line. In `.md` or
            `.tex`: the table of `render_comparison`; of more than two results a row for each.

    Returns:
        The path.

    Raises:
        ValueError: As `compare`, and where the name ends in something else.
        OSError: The file cannot be written; what was there is whole.

    Examples:
        >>> base = EvaluationResult.load("results/base")  # doctest: +SKIP
        >>> tuned = EvaluationResult.load("results/tuned")  # doctest: +SKIP
        >>> write_comparison([base, tuned], "tuned.md")  # doctest: +SKIP
        PosixPath('tuned.md')
    """

    def tables() -> Iterator[Table]:
        yield render_comparison(*results) if len(results) == 2 else render_ranking(results)

    return _write(path, results, lambda: _differences_csv(results), tables)


def check_format(path: str | Path) -> Path:
    """The path, if its ending names a format.

    Raises:
        ValueError: It does not.
    """
    if Path(path).suffix not in FORMATS:
        raise ValueError(
            f"Expected the name of a table's file to end in {', '.join(FORMATS)}, got {path}. The "
            "ending says the format."
        )
    return Path(path)


def _write(
    path: str | Path,
    results: Sequence[EvaluationResult],
    csv: Callable[[], str],
    tables: Callable[[], Iterable[Table]],
) -> Path:
    path = check_format(path)
    if not results:
        raise ValueError("Expected results to be at least one result, got none.")
    if path.suffix == ".csv":
        text = csv()
    else:
        render = _markdown if path.suffix == ".md" else _latex
        signatures = [printable(result.signature_line) for result in results]
        text = "\n".join([*map(render, tables()), _SIGNED[path.suffix](signatures)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


_SIGNED: dict[str, Callable[[Sequence[str]], str]] = {
    ".md": lambda lines: "".join(f"- {plain(line)}\n" for line in lines),
    ".tex": lambda lines: "".join(f"% {line}\n" for line in lines),
}


def _markdown(table: Table) -> str:
    header, *lines = _cells(table)
    rule = ["---", *["---:"] * (len(header) - 1)]
    rows = [" | ".join(line) for line in [map(plain, header), rule, *_marked(lines)]]
    grid = "".join(f"| {row} |\n" for row in rows)
    parts = [f"**{plain(table.title)}**\n", grid, f"{plain(table.caption)}\n"]
    return "\n".join(part for part in parts if part.strip())


def _marked(lines: Iterable[list[str]]) -> Iterator[list[str]]:
    """Cells as Markdown, in bold where a line has nothing but a name."""
    for name, *cells in lines:
        mark = "" if any(cells) else "**"
        yield [f"{mark}{plain(name)}{mark}", *map(plain, cells)]


def _latex(table: Table) -> str:
    header, *lines = _cells(table)
    frame = pd.DataFrame([line[1:] for line in lines], [line[0] for line in lines], header[1:])
    bold = ["" if any(line[1:]) else "font-weight: bold" for line in lines]
    styled = _escaped(frame).apply_index(lambda _: bold, axis=0)
    layout = "l" + "r" * len(frame.columns)
    text = styled.to_latex(hrules=True, column_format=layout, convert_css=True)
    return f"% {' '.join(str(table.title).split())}\n{text}% {table.caption}\n"


def _escaped(frame: pd.DataFrame) -> Any:
    """A frame to be styled, whose cells and headers LaTeX shows as they are."""
    styled = frame.style.format(escape="latex")
    return styled.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)


def _cells(table: Table) -> list[list[str]]:
    """The header and the lines of a table as texts, as wide as it can be shown."""
    columns = getattr(table, "wider", None) or table
    texts = [[str(column.header), *map(str, column.cells)] for column in columns.columns]
    one_line = [["; ".join(map(str.strip, text.splitlines())) for text in of] for of in texts]
    return [list(line) for line in zip(*one_line, strict=True)]


def plain(text: Any) -> str:
    """Text that Markdown shows as it is, in one line and one table cell."""
    one_line = " ".join(printable(text).split())
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", one_line)


def _csv(lines: Iterable[dict[str, Any]]) -> str:
    shown = [
        {
            name: printable(value) if isinstance(value, str) else value
            for name, value in line.items()
        }
        for line in lines
    ]
    return pd.DataFrame(shown).to_csv(index=False)


def _differences_csv(results: Sequence[EvaluationResult]) -> str:
    first, *others = results
    names = labels_of(results)
    return _csv(
        {
            "first_model": names[0],
            "second_model": name,
            **asdict(difference),
            "first_signature": first.signature_line,
            "second_signature": other.signature_line,
        }
        for name, other in zip(names[1:], others, strict=True)
        for difference in compare(first, other)
    )


def figures_csv(results: Sequence[EvaluationResult]) -> str:
    """Every figure of every result, one a line, as fractions, with the signature of its run."""
    named = zip(results, labels_of(results), strict=True)
    return _csv(line for result, name in named for line in _lines(result, name))


def _lines(result: EvaluationResult, name: str) -> Iterator[dict[str, Any]]:
    about = {"model": name, "dataset": dataset_name_of(result)}
    signed = {"signature": result.signature_line}
    for view, split, label, figures in all_figures_of(result):
        for figure in filter(figures.__contains__, FIGURES):
            ends = {end: figures[f"{figure}_{end}"] for end in ("ci_low", "ci_high")}
            rows = {"view": view, "split": split, "rows": label, "n": figures["num_examples"]}
            yield {**about, **rows, "figure": figure, "value": figures[figure], **ends, **signed}
    for value in result.authors:
        record = value.as_record()
        rows = {"view": "authors", "split": "", "rows": record["rule"], "n": record["count"]}
        titled = {"figure": record["title"], "value": record["value"]}
        ends = {end: record[end] for end in ("ci_low", "ci_high")}
        yield {**about, **rows, **titled, **ends, **signed}


def figures_latex(results: Sequence[EvaluationResult]) -> str:
    r"""Models by datasets in percent, as published, for `\usepackage{booktabs}`.

    Of each split the means over categories, without drop and ties; of a known benchmark also its
    authors' headline. The signatures stand above as comments.
    """
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for result, name in zip(results, labels_of(results), strict=True):
        model, dataset = printable(name), printable(dataset_name_of(result))
        for split, figures in result.metrics["as_published"].items():
            for figure in shown_figures(result):
                if figure in ("drop", "tie_rate") or figure not in figures["macro"]:
                    continue
                key = (dataset, printable(f"{split}, {FIGURES[figure].title}"), "ours")
                cells.setdefault(key, {})[model] = percent(figures["macro"][figure])
        for value in result.authors[:1]:
            key = (dataset, printable(value.figure.title), "authors")
            cells.setdefault(key, {})[model] = percent(value.estimate.value)
    columns = sorted(cells, key=lambda key: list(dict.fromkeys(k[0] for k in cells)).index(key[0]))
    frame = pd.DataFrame({key: cells[key] for key in columns}).fillna("")
    layout = "l" + "r" * len(columns)
    text = _escaped(frame).to_latex(hrules=True, multicol_align="c", column_format=layout)
    signatures = "".join(f"% {printable(result.signature_line)}\n" for result in results)
    return signatures + text
