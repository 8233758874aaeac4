"""What an object needs in order to be a model here: two methods of one kind, or one of another.

Whatever has them gets what the models of transformers get: each distinct input once, embeddings and
logits that are kept on disk, runs that resume, several processes.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image


class Embedder(Protocol):
    """An object that embeds images and captions apart; a logit is the scaled cosine of the two.

    Also read, where the object has them: `scale` and `bias` (numbers; a logit is
    ``scale * cosine + bias``, 1 and 0 if absent) and `describe`.

    Examples:
        >>> import numpy as np
        >>> from datasets import load_dataset
        >>> from hard_positives import score
        >>> class Colours:  # red pictures are like captions with the word red, and so on
        ...     words = ("red", "green", "blue")
        ...     def embed_images(self, images):
        ...         return np.stack([np.asarray(image).mean((0, 1)) for image in images])
        ...     def embed_captions(self, captions):
        ...         return np.array([[1 + text.count(word) for word in self.words]
        ...                          for text in captions])
        ...     def describe(self):
        ...         return {"id": "colours", "words": self.words}
        >>> rows = load_dataset("hard_positives_dataset", split="swap").select(range(8))
        >>> score(Colours(), rows, cache=False).shape
        (8, 3)
    """

    def embed_images(self, images: Sequence[Image.Image]) -> Any:
        """Embed n RGB pictures: (n, D), an array, a tensor or lists; any length, any device."""

    def embed_captions(self, captions: Sequence[str]) -> Any:
        """Embed n captions: (n, D) likewise, of the same D."""

    def describe(self) -> dict[str, Any]:
        """Return all that changes an embedding, as JSON can hold it; `id` is the model's name.

        The weights of torch modules among the attributes, and the code of the class, are added to
        it. Without this method nothing is kept on disk: nobody could tell what belongs to what.
        """


class PairScorer(Protocol):
    """An object that reads an image and a caption together and says how well they match.

    Examples:
        >>> from datasets import load_dataset
        >>> from hard_positives import score
        >>> class Shortest:
        ...     def score_pairs(self, images, captions):
        ...         return [-len(caption) for caption in captions]
        ...     def describe(self):
        ...         return {"id": "shortest"}
        >>> rows = load_dataset("hard_positives_dataset", split="swap").select(range(8))
        >>> score(Shortest(), rows, cache=False).shape
        (8, 3)
    """

    def score_pairs(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Any:
        """Score n pairs: (n,) logits, higher for a better match.

        Pairs of one picture stand side by side and hold the same object, so that what is computed
        of a picture can be computed once.
        """

    def describe(self) -> dict[str, Any]:
        """Return all that changes a logit, as `Embedder.describe` does."""
