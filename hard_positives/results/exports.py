"""Results as tables for other programs: CSV of every figure, LaTeX of models by datasets."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from hard_positive_metric import FIGURES
from hard_positives.names import printable
from hard_positives.results.figures import (
    all_figures_of,
    dataset_name_of,
    name_of,
    percent,
    shown_figures,
)
from hard_positives.results.result import EvaluationResult


def figures_csv(results: Sequence[EvaluationResult]) -> str:
    """Every figure of every result, one a line, as fractions, with the signature of its run."""
    lines = [
        {
            name: printable(value) if isinstance(value, str) else value
            for name, value in line.items()
        }
        for result in results
        for line in _lines(result)
    ]
    return pd.DataFrame(lines).to_csv(index=False)


def _lines(result: EvaluationResult) -> Iterator[dict[str, Any]]:
    about = {"model": name_of(result), "dataset": dataset_name_of(result)}
    signed = {"signature": result.signature_line}
    for view, split, label, figures in all_figures_of(result):
        for name in filter(figures.__contains__, FIGURES):
            ends = {end: figures[f"{name}_{end}"] for end in ("ci_low", "ci_high")}
            rows = {"view": view, "split": split, "rows": label, "n": figures["num_examples"]}
            yield {**about, **rows, "figure": name, "value": figures[name], **ends, **signed}
    for value in result.authors:
        record = value.as_record()
        rows = {"view": "authors", "split": "", "rows": record["rule"], "n": record["count"]}
        figure = {"figure": record["title"], "value": record["value"]}
        ends = {end: record[end] for end in ("ci_low", "ci_high")}
        yield {**about, **rows, **figure, **ends, **signed}


def figures_latex(results: Sequence[EvaluationResult]) -> str:
    r"""Models by datasets in percent, as published, for `\usepackage{booktabs}`.

    Of each split the means over categories, without drop and ties; of a known benchmark also its
    authors' headline. The signatures stand above as comments.
    """
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for result in results:
        model, dataset = printable(name_of(result)), printable(dataset_name_of(result))
        for split, figures in result.metrics["as_published"].items():
            for name in shown_figures(result):
                if name in ("drop", "tie_rate") or name not in figures["macro"]:
                    continue
                key = (dataset, printable(f"{split}, {FIGURES[name].title}"), "ours")
                cells.setdefault(key, {})[model] = percent(figures["macro"][name])
        for value in result.authors[:1]:
            key = (dataset, printable(value.figure.title), "authors")
            cells.setdefault(key, {})[model] = percent(value.estimate.value)
    columns = sorted(cells, key=lambda key: list(dict.fromkeys(k[0] for k in cells)).index(key[0]))
    frame = pd.DataFrame({key: cells[key] for key in columns}).fillna("")
    styled = frame.style.format(escape="latex")
    styled = styled.format_index(escape="latex", axis=0).format_index(escape="latex", axis=1)
    text = styled.to_latex(hrules=True, multicol_align="c", column_format="l" + "r" * len(columns))
    signatures = "".join(f"% {printable(result.signature_line)}\n" for result in results)
    return signatures + text
