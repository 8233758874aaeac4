"""Measure how well image-text models understand composition, with hard positives.

The public names are loaded when first used, so that ``import hard_positives`` and
``hard-positives --help`` cost no import of torch.

Examples:
    >>> import hard_positives
    >>> hard_positives.__version__
    '0.1.0'
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; what runs is the table below
    from hard_positives.finetuning.loss import contrastive_loss
    from hard_positives.finetuning.recipes import RECIPES, Recipe
    from hard_positives.finetuning.run import finetune
    from hard_positives.generation.augment import augment
    from hard_positives.generation.captions import read_captions
    from hard_positives.generation.language_model import LanguageModel
    from hard_positives.generation.rules import Rules
    from hard_positives.generation.run import generate
    from hard_positives.hub.dataset import publish_dataset
    from hard_positives.hub.metric import publish_metric
    from hard_positives.hub.model import publish_model
    from hard_positives.hub.results import publish_results
    from hard_positives.models.protocols import Embedder, PairScorer
    from hard_positives.results.comparison import compare
    from hard_positives.results.evaluation import evaluate
    from hard_positives.results.exports import write_comparison, write_figures
    from hard_positives.results.pages import write_report
    from hard_positives.results.result import EvaluationResult
    from hard_positives.results.several import evaluate_all
    from hard_positives.results.tables import (
        render_authors,
        render_comparison,
        render_summary,
        render_table,
    )
    from hard_positives.review.accepted import write_accepted
    from hard_positives.scoring.score import score
    from hard_positives.suite.columns import Columns

__version__ = "0.1.0"

_HOMES = {
    "Columns": "suite.columns",
    "score": "scoring.score",
    "evaluate": "results.evaluation",
    "Embedder": "models.protocols",
    "PairScorer": "models.protocols",
    "EvaluationResult": "results.result",
    "evaluate_all": "results.several",
    "compare": "results.comparison",
    "render_authors": "results.tables",
    "render_comparison": "results.tables",
    "render_summary": "results.tables",
    "render_table": "results.tables",
    "write_comparison": "results.exports",
    "write_figures": "results.exports",
    "write_report": "results.pages",
    "read_captions": "generation.captions",
    "generate": "generation.run",
    "augment": "generation.augment",
    "write_accepted": "review.accepted",
    "Rules": "generation.rules",
    "LanguageModel": "generation.language_model",
    "finetune": "finetuning.run",
    "contrastive_loss": "finetuning.loss",
    "Recipe": "finetuning.recipes",
    "RECIPES": "finetuning.recipes",
    "publish_dataset": "hub.dataset",
    "publish_metric": "hub.metric",
    "publish_model": "hub.model",
    "publish_results": "hub.results",
}
__all__ = [
    "RECIPES",
    "Columns",
    "Embedder",
    "EvaluationResult",
    "LanguageModel",
    "PairScorer",
    "Recipe",
    "Rules",
    "__version__",
    "augment",
    "compare",
    "contrastive_loss",
    "evaluate",
    "evaluate_all",
    "finetune",
    "generate",
    "publish_dataset",
    "publish_metric",
    "publish_model",
    "publish_results",
    "read_captions",
    "render_authors",
    "render_comparison",
    "render_summary",
    "render_table",
    "score",
    "write_accepted",
    "write_comparison",
    "write_figures",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
