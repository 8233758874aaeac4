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
    "render_table": "report",
}
__all__ = ["EvaluationResult", "__version__", "evaluate", "render_table", "score"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
