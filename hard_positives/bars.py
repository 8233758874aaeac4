"""Our bars, of one form; and the libraries' bars, hidden where they tell nothing.

What is downloaded keeps its bars: that can take hours, and the libraries alone know how far it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub
from huggingface_hub.utils import are_progress_bars_disabled
from tqdm import tqdm


def new_bar(name: str, total: int, *, shown: bool) -> tqdm:
    """Show how much is done, where stderr is a terminal.

    Args:
        name: What is counted, such as `images`.
        total: How many there are.
        shown: Whether to show it at all.
    """
    return tqdm(desc=name, total=total, unit=f" {name}", disable=None if shown else True)


@contextmanager
def bars_of_datasets_hidden() -> Iterator[None]:
    """Hide "Generating train split" while files that are here are read."""
    import datasets

    is_chosen = datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None
    if is_chosen or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def bars_of_transformers_hidden() -> Iterator[None]:
    """Hide "Loading weights" and "Writing model shards", but not what the Hub's files show."""
    from transformers.utils import logging

    is_chosen = huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    if is_chosen or are_progress_bars_disabled() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()  # which it has turned off, too
    try:
        yield
    finally:
        logging.enable_progress_bar()
