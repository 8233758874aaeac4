"""Models that read an image and a caption together: each distinct pair once.

* `PairModel`, a matching head of transformers (BLIP, ViLT).
* `OutsidePairScorer`, any object with the method of `protocols.PairScorer`.
* `FunctionModel`, any function of images and captions.

All get a batch of pictures, and which captions go with which of them.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from hard_positives.models.identity import Identity, identify, identify_outside
from hard_positives.models.inference import halving, inference, on_device
from hard_positives.models.protocols import PairScorer
from hard_positives.models.tokens import tokenize

_ITM_SWITCH = "use_image_text_matching_head"  # without it BLIP-2 gives a cosine


@dataclass(frozen=True)
class PairModel:
    """A network that reads image and caption together and says whether they match.

    The logit is that of "match" minus that of "no match" where the head has both (BLIP, BLIP-2,
    BridgeTower), else the one that it has (ViLT). Not its softmax, which is 1.0 for both of two
    good captions.

    Attributes:
        model: Left as it is, but for the mode while it scores.
        processor: With `image_processor` and `tokenizer`.
    """

    model: PreTrainedModel
    processor: ProcessorMixin

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on; hashing the weights is worth doing once."""
        return identify(self.model, self.processor, "transformers")

    @property
    def images_per_batch(self) -> int:
        """How many pictures to take at once, each with all its captions."""
        return 4 if self.device.type == "cpu" else 32

    @property
    def prepare(self) -> Callable[[list[Image.Image]], dict[str, torch.Tensor]]:
        """What prepares the pictures of a batch, in a worker; it does not hold the model."""
        return partial(self.processor.image_processor, return_tensors="pt")

    def running(self) -> AbstractContextManager:
        """Run for outputs alone."""
        return inference(self.model)

    def check(self, captions: Sequence[str]) -> None:
        """Refuse captions that the model would misread in silence, before any is scored."""
        config = self.model.config
        reader = getattr(config, "qformer_config", None) or config.get_text_config()
        tokenize(self.processor.tokenizer, captions, reader)

    def score_pairs(
        self, images: dict[str, torch.Tensor], of_pair: np.ndarray, captions: list[str]
    ) -> torch.Tensor:
        """Score n captions, each for one of the prepared pictures; (n,) float32."""
        texts = dict(self.processor.tokenizer(captions, padding=True, return_tensors="pt"))
        inputs = self._with_image_tokens(texts)
        inputs |= {name: values[torch.from_numpy(of_pair)] for name, values in images.items()}
        forward = inspect.signature(self.model.forward).parameters
        inputs = {name: values for name, values in inputs.items() if name in forward}
        itm = {_ITM_SWITCH: True} if _ITM_SWITCH in forward else {}
        outputs = halving(
            lambda batch: _first_scores(self.model(**batch, **itm)), on_device(self.model, inputs)
        ).float()
        scores = outputs[:, 1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs[:, 0]
        return scores.cpu()

    def _with_image_tokens(self, texts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Put the places of the picture before the words, where a model wants them (BLIP-2)."""
        token = getattr(self.model.config, "image_token_index", None)
        if token is None:
            return texts
        number = self.model.config.num_query_tokens
        filled = {"input_ids": token, "attention_mask": 1}
        return {
            name: torch.nn.functional.pad(texts[name], (number, 0), value=value)
            for name, value in filled.items()
        }


def _first_scores(outputs: Any) -> torch.Tensor:
    for name in ("itm_score", "logits_per_image"):
        if name in outputs:
            return outputs[name]
    return outputs.logits


@dataclass(frozen=True)
class OutsidePairScorer:
    """Any object that scores pairs: see `protocols.PairScorer`."""

    scorer: PairScorer
    images_per_batch: ClassVar[int] = 8
    prepare: ClassVar[Callable] = list  # pictures stay pictures

    @property
    def device(self) -> torch.device:
        """Where it says that it runs; the CPU if it does not."""
        return torch.device(getattr(self.scorer, "device", None) or "cpu")

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on, as far as it can be told."""
        return identify_outside(self.scorer)

    def running(self) -> AbstractContextManager:
        """Leave to the object how it runs, without gradients."""
        return torch.no_grad()

    def check(self, captions: Sequence[str]) -> None:
        """Take all captions."""

    def score_pairs(
        self, images: list[Image.Image], of_pair: np.ndarray, captions: list[str]
    ) -> np.ndarray:
        """Score n captions, each for one of the pictures; (n,) float32."""
        logits = self.scorer.score_pairs([images[place] for place in of_pair], captions)
        logits = _as_array(logits)
        if logits.shape != (len(captions),):
            raise ValueError(
                f"Expected score_pairs to return one logit per pair, of shape ({len(captions)},), "
                f"got {logits.shape}. Return them in the order of the pairs."
            )
        return logits


@dataclass(frozen=True)
class FunctionModel:
    """Any function ``(images, captions) -> logits``.

    It gets B distinct PIL images (RGB) and C distinct captions, all that these images are compared
    with, and returns (B, C) logits: an array, a tensor or nested lists. B is 1 where no
    `batch_size` is given, so that no logit is computed that nobody needs. One with an attribute
    `describe` (see `protocols.PairScorer`) has its logits kept on disk.
    """

    function: Callable[[list, list[str]], Any]
    images_per_batch: ClassVar[int] = 1
    device: ClassVar[torch.device] = torch.device("cpu")
    prepare: ClassVar[Callable] = list

    @cached_property
    def identity(self) -> Identity:
        """What it says of itself; else its name, since nobody knows what a function depends on."""
        if hasattr(self.function, "describe"):
            return identify_outside(self.function)
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        described = {"model": {"id": name, "revision": None, "architecture": "callable"}}
        return Identity(described, "nobody can tell what a function depends on")

    def running(self) -> AbstractContextManager:
        """Leave to the function how it runs, without gradients."""
        return torch.no_grad()

    def check(self, captions: Sequence[str]) -> None:
        """Take all captions."""

    def score_pairs(
        self, images: list[Image.Image], of_pair: np.ndarray, captions: list[str]
    ) -> np.ndarray:
        """Score n captions, each for one of the pictures; (n,) float32."""
        distinct, columns = np.unique(np.array(captions, object), return_inverse=True)
        matrix = _as_array(self.function(images, distinct.tolist()))
        if matrix.shape != (len(images), len(distinct)):
            raise ValueError(
                f"Expected the callable to return logits of shape {len(images), len(distinct)} "
                f"(images, captions), got {matrix.shape}. Return one row per image."
            )
        return matrix[of_pair, columns]


def _as_array(logits: Any) -> np.ndarray:
    if isinstance(logits, torch.Tensor):
        logits = logits.detach().float().cpu()
    return np.asarray(logits, dtype=np.float32)
