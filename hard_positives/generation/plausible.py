"""Of several possible edits the one that text alone cannot tell from the caption.

    caption -> all edits of an editor -> log P of each -> the one nearest to the caption's

An edit that is less likely than its caption, as text, gives itself away: a model that sees no
picture ranks the two. Taking the nearest likelihood takes that from it, as far as the edits allow;
how far is measured, before and after. What model it is comes in as an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from hard_positives.generation.run import Edit, Editor, Task, words_in_common, words_of


class Blind(Protocol):
    """A language model that sees no picture, such as `hard_positives.models.blind.BlindModel`."""

    @property
    def identity(self) -> Any:
        """With a `cache_key` that names all that a likelihood depends on."""

    def log_likelihoods(self, captions: Sequence[str]) -> np.ndarray:
        """Score n captions: (n,) log P, at most 0."""
        ...


class ManyEdits(Editor, Protocol):
    """An editor that can tell all its edits of a caption."""

    def candidates(self, caption: str, task: Task) -> list[Edit]:
        """All edits that it would accept, the one that it prefers first."""
        ...


@dataclass(frozen=True)
class Plausible:
    """An editor that takes of another's edits the one whose likelihood is nearest the caption's.

    A hard negative and a hard positive by replacement still change the same words, wherever both
    are possible there: the hard negative is chosen among such, and then the hard positive among
    those of its place.

    Attributes:
        editor: Makes the edits.
        model: Tells how likely a text is.
        name: What records call the model.
    """

    editor: ManyEdits
    model: Blind = field(repr=False)
    name: str
    chunk_size = 1000
    workers = 1  # the model has its own threads

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the output besides the captions: the editor's, and which model it is."""
        about = {"model": self.name, "sha256": self.model.identity.cache_key}
        return {**self.editor.settings, "plausible_by": about}

    def prepare(self) -> None:
        """Prepare the editor; the model is there."""
        self.editor.prepare()

    def edit_batch(self, captions: Sequence[str], task: Task) -> list[Edit]:
        """Edit each caption; the i-th result belongs to the i-th caption."""
        tasks = [Task(column, task.kind) for column in ("hard_positive", "hard_negative")]
        found = [[self.editor.candidates(text, each) for each in tasks] for text in captions]
        edited = {edit.caption for pair in found for edits in pair for edit in edits}
        texts = sorted(filter(None, {*captions, *edited}))
        known = dict(zip(texts, self.model.log_likelihoods(texts).tolist(), strict=True))
        return [
            self._chosen(caption, pair, tasks.index(task), known)
            if pair[tasks.index(task)]
            else self.editor.edit_batch([caption], task)[0]
            for caption, pair in zip(captions, found, strict=True)
        ]

    def _chosen(
        self, caption: str, pair: list[list[Edit]], at: int, known: dict[str | None, float]
    ) -> Edit:
        positives, negatives = ([(_place(caption, one), one) for one in edits] for edits in pair)

        def nearest(edits: list[tuple[int, Edit]]) -> tuple[int, Edit]:
            return min(edits, key=lambda edit: abs(known[edit[1].caption] - known[caption]))

        places = {place for place, _ in positives}
        negatives = [one for one in negatives if one[0] in places] or negatives
        negative = nearest(negatives) if negatives else (None, None)
        positives = [one for one in positives if one[0] == negative[0]] or positives
        _, chosen = nearest(positives) if at == 0 else negative
        first = pair[at][0].caption
        return replace(chosen, likelihoods=(known[caption], known[first], known[chosen.caption]))


def _place(caption: str, edit: Edit) -> int:
    """Where an edit ends, in words from the caption's end; an article before it may change too."""
    texts = (caption, edit.caption or "")
    return words_in_common(*(words_of(text)[::-1] for text in texts))
