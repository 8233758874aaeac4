"""Measure how well image-text models understand composition, with hard positives.

The public names are loaded when first used, so that ``import hard_positives`` and
``hard-positives --help`` cost no import of torch.

Examples:
    >>> import hard_positives
    >>> hard_positives.__version__
    '0.1.0'
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "score": "scoring",
    "evaluate": "evaluation",
    "EvaluationResult": "evaluation",
    "compare": "comparison",
    "render_comparison": "report",
    "render_table": "report",
    "write_report": "report",
    "read_captions": "captions",
    "generate": "generation",
    "Rules": "rules",
    "LanguageModel": "language_model",
    "finetune": "finetuning",
    "contrastive_loss": "loss",
    "Recipe": "recipes",
    "RECIPES": "recipes",
    "publish_dataset": "hub",
    "publish_metric": "hub",
    "publish_results": "hub",
}
__all__ = [
    "RECIPES",
    "EvaluationResult",
    "LanguageModel",
    "Recipe",
    "Rules",
    "__version__",
    "compare",
    "contrastive_loss",
    "evaluate",
    "finetune",
    "generate",
    "publish_dataset",
    "publish_metric",
    "publish_results",
    "read_captions",
    "render_comparison",
    "render_table",
    "score",
    "write_report",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
