"""How a CLIP is tuned with hard negatives and hard positives, and the recipes that are published.

A `Recipe` is numbers and switches only; ``finetuning`` carries it out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HARD_POSITIVE_KINDS = ("replace", "swap")


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Raise unless ``value`` is one of those known."""
    if value not in known:
        raise ValueError(f"Expected {name} to be one of {list(known)}, got {value!r}.")


@dataclass(frozen=True)
class Recipe:
    """How to tune: the switches of the loss, the shares of the data, the schedule.

    The schedule is AdamW with betas 0.9 and 0.98 and epsilon 1e-6, weight decay on matrices only,
    linear warm-up, then a cosine down to 0, and no clipping of gradients: that of open_clip, with
    which the published recipes were trained.

    Attributes:
        hard_negatives: Which hard negatives an image is told from: those of the whole ``"batch"``,
            or only its ``"own"``.
        alignment: Weight of the term that pulls hard positives to their captions, at least 0.
        leave_out_true: Whether a text that the batch shows to be true of an image (the rows share
            the picture or the text) is left out of what the image is told from. The published
            recipes count it as false, since their losses do.
        hard_negative_share: Of the hard negatives, how many are used, in [0, 1].
        hard_positive_share: Of the hard positives, how many are used, in [0, 1].
        hard_positive_kind: Use only those made by ``"replace"`` or by ``"swap"`` (by the rows'
            ``category``); all if None.
        batch_size: Images a step, over all processes together.
        learning_rate: The highest, after the warm-up.
        epochs: How often every row is seen.
        warmup_steps: Steps until the learning rate is at its highest.
        weight_decay: AdamW's.
        source: Where the figures are published; empty for a recipe of your own.
        differs: What the published training has that this recipe has not.

    Raises:
        ValueError: A value is out of range.

    Examples:
        >>> RECIPES["negclip"].batch_size, RECIPES["negclip"].learning_rate
        (256, 1e-06)
        >>> Recipe(hard_negative_share=1.5)
        Traceback (most recent call last):
        ...
        ValueError: Expected hard_negative_share to be between 0 and 1, got 1.5.
    """

    hard_negatives: str = "batch"
    alignment: float = 0.0
    leave_out_true: bool = True
    hard_negative_share: float = 1.0
    hard_positive_share: float = 1.0
    hard_positive_kind: str | None = None
    batch_size: int = 256
    learning_rate: float = 1e-6
    epochs: float = 5.0
    warmup_steps: int = 50
    weight_decay: float = 0.1
    source: str = ""
    differs: str = ""

    def __post_init__(self) -> None:
        check_choice("hard_negatives", self.hard_negatives, ("batch", "own"))
        check_choice("hard_positive_kind", self.hard_positive_kind, (None, *HARD_POSITIVE_KINDS))
        for name in ("hard_negative_share", "hard_positive_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"Expected {name} to be between 0 and 1, got {getattr(self, name)}."
                )
        for name in ("alignment", "warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Expected {name} to be at least 0, got {getattr(self, name)}.")
        for name in ("learning_rate", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"Expected {name} to be above 0, got {getattr(self, name)}.")
        if self.batch_size < 2:
            raise ValueError(
                f"Expected batch_size to be at least 2, got {self.batch_size}. Images are told "
                "apart from the others of their batch."
            )


RECIPES = {
    "both": Recipe(),
    "negclip": Recipe(
        leave_out_true=False,
        hard_positive_share=0.0,
        weight_decay=0.2,
        source="Yuksekgonul et al., ICLR 2023: the command in the README of "
        "github.com/mertyg/vision-language-models-are-bows, and the defaults of "
        "github.com/vinid/neg_clip, commit e680f8e",
        differs="NegCLIP also puts a similar image with its caption and hard negative beside every "
        "image, so that 256 make a matrix of 512 x 1024.",
    ),
    "fsc_clip": Recipe(
        hard_negatives="own",
        leave_out_true=False,
        hard_positive_share=0.0,
        learning_rate=5e-6,
        source="Oh et al., EMNLP 2024: the training scripts in the README of "
        "github.com/ytaek-oh/fsc-clip, commit 604015d",
        differs="The schedule only. FSC-CLIP has hard negatives in losses of their own: a focal "
        "loss with label smoothing (weight 0.5) and one over patches and words (weight 0.2).",
    ),
    "trohn_text": Recipe(
        leave_out_true=False,
        hard_positive_share=0.0,
        batch_size=200,
        epochs=10.0,
        source="Miranda et al., 2024, arXiv 2406.09952: the model card of "
        "huggingface.co/imirandam/CLIP_TROHN-Text",
        differs="CLIP_TROHN-Text is the epoch that is best on its validation set, not the last.",
    ),
    "read_clip": Recipe(
        alignment=0.5,
        leave_out_true=False,
        learning_rate=1e-5,
        source="Kwon et al., NeurIPS 2025, arXiv 2510.16540: config/train_read_clip.yaml of "
        "github.com/JiH00nKw0n/READ-CLIP, commit b2f096c",
        differs="READ-CLIP also has a frozen T5 rebuild other captions from the text vector "
        "(weight 0.1), three hard negatives a caption, and paraphrases that are aligned but no "
        "captions of the image.",
    ),
}
