"""What the columns of a dataset are, and which way a row is compared; no row is read here."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

CAPTION_COLUMNS = ("caption", "hard_positive", "hard_negative")
IMAGE_TO_TEXT, TEXT_TO_IMAGE, TEXT_TO_TEXT = DIRECTIONS = (
    "image_to_text",
    "text_to_image",
    "text_to_text",
)


@dataclass(frozen=True)
class Columns:
    """What the columns of a dataset are. Left out, they are the columns of the benchmark.

    One of these makes a comparison of a row; a column may hold one text or picture, or a list of
    them, whose length may differ from row to row:

    * `positives` and `negatives`: captions that are true and false of `image`; or, where `caption`
      is given, images that it is true and false of. The first positive is the original.
    * `candidates` and `label`: a column of lists, or several columns, and a column that tells the
      right one: its place from 0, or itself, or a list of 1 and 0 for each.
    * `pairs`: two or more pairs of an image column and a caption column. Each image is compared
      with all captions of its row, and each caption with all images: a set of comparisons.

    Attributes:
        image: The image that captions are compared for.
        caption: The caption that images are compared for, in the place of `image`.
        positives: Columns of what is true, the original first.
        negatives: Columns of what is false.
        candidates: Columns of what is true or false.
        label: Which of `candidates` is true.
        pairs: Pairs (image column, caption column).
        category: Rows with the same value are reported together; `category` if there is one.
        cluster: Rows with the same value are not counted as independent; if left out `set` or
            `image_id` if there is one, else the (first) picture of a row.
        set: Rows with the same value are a set, which is right only if all of them are. With
            `pairs` every row is one.
        text_only: Compare captions with captions, without images: each of `positives` with the
            others (true) and the negatives (false), a set of comparisons. SugarCrepe++'s text-only
            task. Dual encoders alone can; a logit is the scaled cosine of two captions.
        crop: A box that is cut out of `image`, in pixels: a list of left, top, width and height, or
            a struct of x, y, w and h.

    Examples:
        >>> Columns(positives=["caption"], negatives=["negative_caption"]).needed
        ['image', 'caption', 'negative_caption']
        >>> Columns(pairs=[("image_0", "caption_0"), ("image_1", "caption_1")]).needed
        ['image_0', 'caption_0', 'image_1', 'caption_1']
    """

    image: str = "image"
    caption: str | None = None
    positives: Sequence[str] = ()
    negatives: Sequence[str] = ()
    candidates: Sequence[str] = ()
    label: str | None = None
    pairs: Sequence[tuple[str, str]] = ()
    category: str | None = None
    cluster: str | None = None
    set: str | None = None
    crop: str | None = None
    text_only: bool = False

    def __post_init__(self) -> None:
        if not (self.positives or self.negatives or self.candidates or self.pairs):
            if self.caption is not None or self.label is not None:
                raise ValueError(
                    "Expected positives and negatives, candidates or pairs to be given with "
                    "caption or label, got none of them. Name the columns."
                )
            object.__setattr__(self, "positives", CAPTION_COLUMNS[:2])
            object.__setattr__(self, "negatives", CAPTION_COLUMNS[2:])
        for name in ("positives", "negatives", "candidates"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        object.__setattr__(self, "pairs", tuple(map(tuple, self.pairs)))
        self._check()

    def _check(self) -> None:
        kinds = {
            "positives and negatives": self.positives or self.negatives,
            "candidates": self.candidates,
            "pairs": self.pairs,
        }
        given = [name for name, value in kinds.items() if value]
        if len(given) > 1:
            raise ValueError(
                f"Expected one of {', '.join(kinds)} to be given, got {' and '.join(given)}. Leave "
                "out all but one."
            )
        if bool(self.positives) != bool(self.negatives):
            raise ValueError(
                "Expected positives and negatives to be given together, got "
                f"{given and (self.positives or self.negatives)} alone. Name both."
            )
        if bool(self.candidates) != bool(self.label):
            raise ValueError(
                f"Expected candidates and label to be given together, got {self.candidates} and "
                f"{self.label!r}. Name both."
            )
        if self.pairs and (len(self.pairs) < 2 or any(len(pair) != 2 for pair in self.pairs)):
            raise ValueError(
                "Expected pairs to be two or more pairs of an image column and a caption column, "
                f"got {list(self.pairs)}. Name all pairs of a row."
            )
        if self.pairs and self.set is not None:
            raise ValueError(
                f"Expected set to be left out with pairs, got {self.set!r}. Every row is a set."
            )
        if self.text_only and not (self.positives and self.caption is None and self.crop is None):
            raise ValueError(
                "Expected text_only to be given with positives and negatives alone, got caption, "
                "candidates, pairs or crop. Name the columns of true and false captions."
            )
        if self.crop is not None and (self.pairs or self.caption is not None):
            raise ValueError(
                "Expected crop to be given with one image that captions are compared for, got "
                f"{'pairs' if self.pairs else 'caption'}. Crop the pictures of the dataset."
            )

    @property
    def compared(self) -> list[str]:
        """The columns of what is true or false."""
        return [*self.positives, *self.negatives, *self.candidates]

    @property
    def needed(self) -> list[str]:
        """All columns that a dataset must have."""
        if self.pairs:
            columns = list(chain(*self.pairs))
        else:
            anchor = [] if self.text_only else [self.caption or self.image]
            columns = [*anchor, *self.compared]
        optional = (self.label, self.crop, self.category, self.cluster, self.set)
        return list(dict.fromkeys([*columns, *filter(None, optional)]))

    @property
    def image_columns(self) -> list[str]:
        """The columns that hold pictures."""
        if self.pairs:
            return [image for image, _ in self.pairs]
        if self.text_only:
            return []
        return [self.image] if self.caption is None else self.compared

    @property
    def text_columns(self) -> list[str]:
        """The columns that hold texts."""
        if self.pairs:
            return [caption for _, caption in self.pairs]
        return self.compared if self.caption is None else [self.caption]
