"""Changes to a model that move its logits: the cache must notice, or not be used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attacks.harness import Attack, Outcome, Trial, refused, right, wrong
from attacks_identity import CHANGES, stale_cache


def stale_embeddings(small: int) -> Attack:
    """Make every change of the table, one a trial."""

    @contextmanager
    def prepare(scratch: Path) -> Iterator[Callable[[Trial], Outcome]]:
        yield _change

    return Attack("stale cache", prepare, small, full=len(CHANGES))


def _change(trial: Trial) -> Outcome:
    name = list(CHANGES)[trial.number]
    outcome, moved = stale_cache(name)
    verdicts = {"noticed": right, "not cached": refused}
    return verdicts.get(outcome, wrong)(f"{name}: {outcome}, logits move by {moved:.2g}")
