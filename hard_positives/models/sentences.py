"""Models of sentence-transformers: embedders and rerankers that take images.

* `SentenceEmbedder`: a `SentenceTransformer`; a logit is the cosine of the two embeddings.
* `SentenceReranker`: a `CrossEncoder`; a logit is its score before any activation function,
  with the caption as the query and the picture as the document.

Prompts are the model's own default. sentence-transformers cuts off what is too long; here that is
an error. Nothing of the package is imported until a model asks for it.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import cached_file

from hard_positives.models.adapters import put_on
from hard_positives.models.encoders import OutsideEmbedder
from hard_positives.models.identity import Identity, identify_modules
from hard_positives.models.kinds import RERANKER, SENTENCE_TRANSFORMER, Kind, Settings
from hard_positives.models.pairs import OutsidePairScorer

CHECKED_AT_ONCE = 1024  # captions whose lengths are looked at


def kind_of_name(name: str, revision: str | None) -> Kind | None:
    """Tell which class of sentence-transformers a folder or Hub id holds; None if it holds none."""
    optional = {"_raise_exceptions_for_missing_entries": False, "revision": revision}
    if cached_file(name, "modules.json", **optional) is None:
        return None
    path = cached_file(name, "config_sentence_transformers.json", **optional)
    config = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    is_reranker = config.get("model_type") == "CrossEncoder"
    return RERANKER if is_reranker else SENTENCE_TRANSFORMER


def kind_of_object(model: Any) -> Kind | None:
    """Tell which class of sentence-transformers a loaded model is of; None if of another."""
    package = sys.modules.get("sentence_transformers")
    if package is None:
        return None
    if isinstance(model, package.CrossEncoder):
        return RERANKER
    return SENTENCE_TRANSFORMER if isinstance(model, package.SentenceTransformer) else None


def load_sentences(
    name: str, kind: Kind, settings: Settings, device: torch.device, dtype: torch.dtype
) -> "SentenceEmbedder | SentenceReranker":
    """Load a model from a folder or the Hub."""
    import sentence_transformers

    is_reranker = kind is RERANKER
    of_kind: Any = sentence_transformers.SentenceTransformer
    if is_reranker:
        of_kind = sentence_transformers.CrossEncoder
    model = of_kind(
        name,
        device=str(device),
        revision=settings.get("revision"),
        model_kwargs={"dtype": dtype, **(settings.get("model_kwargs") or {})},
    )
    if settings.get("adapter"):
        put_on(model[0].model, settings["adapter"])
    if is_reranker and dtype != torch.float32:
        _end_in_float32(model)
    return wrap_sentences(model, kind)


def wrap_sentences(model: Any, kind: Kind) -> "SentenceEmbedder | SentenceReranker":
    """Make a loaded model one that can score, or refuse it.

    Raises:
        TypeError: It takes no images, or compares by something else than cosines.
    """
    pair = kind is RERANKER and not model.supports(("image", "text"))
    if pair or not (model.supports("image") and model.supports("text")):
        raise TypeError(
            f"Expected the {type(model).__name__} to take images and text, got one that takes "
            f"{', '.join(map(str, model.modalities))}. Choose one for images."
        )
    if kind is RERANKER:
        return SentenceReranker(_Reranking(model))
    compares_by, last = model.similarity_fn_name, type(model[-1]).__name__
    if compares_by != "cosine" and not (compares_by == "dot" and last == "Normalize"):
        raise TypeError(
            f"Expected the {type(model).__name__} to compare by cosine, got {compares_by!r}. Pass "
            "a function (images, captions) -> logits."
        )
    return SentenceEmbedder(_Embedding(model))


@dataclass(frozen=True)
class _Embedding:
    """The two methods of `protocols.Embedder`, by way of `SentenceTransformer.encode`."""

    model: Any

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return self._encoded(images)

    def embed_captions(self, captions: Sequence[str]) -> torch.Tensor:
        return self._encoded(captions)

    def _encoded(self, inputs: Sequence[Any]) -> torch.Tensor:
        return self.model.encode(
            list(inputs),
            batch_size=len(inputs),
            prompt_name=self.model.default_prompt_name,
            convert_to_tensor=True,
            show_progress_bar=False,
        )


@dataclass(frozen=True)
class _Reranking:
    """The method of `protocols.PairScorer`, by way of `CrossEncoder.predict`."""

    model: Any

    def score_pairs(self, images: Sequence[Image.Image], captions: Sequence[str]) -> torch.Tensor:
        return self.model.predict(
            list(zip(captions, images, strict=True)),
            batch_size=len(captions),
            activation_fn=torch.nn.Identity(),  # a sigmoid is 1.0 for both of two good captions
            convert_to_tensor=True,
            show_progress_bar=False,
        )


@dataclass(frozen=True)
class SentenceEmbedder(OutsideEmbedder):
    """A `SentenceTransformer` that takes images."""

    embedder: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedder.model.device

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on; hashing the weights is worth doing once."""
        return _identified(self.embedder.model)

    def tokenize(self, captions: Sequence[str]) -> list[str]:
        """Leave captions as they are; refuse those that would be cut off."""
        _check_lengths(self.embedder.model, captions)
        return list(captions)


@dataclass(frozen=True)
class SentenceReranker(OutsidePairScorer):
    """A `CrossEncoder` that takes images."""

    scorer: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.scorer.model.device

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on; hashing the weights is worth doing once."""
        return _identified(self.scorer.model)

    def score_pairs(
        self, images: list[Image.Image], of_pair: np.ndarray, captions: list[str]
    ) -> np.ndarray:
        """Score n captions, each for one of the pictures; (n,) float32."""
        _check_lengths(self.scorer.model, captions, images[0])
        return super().score_pairs(images, of_pair, captions)


def _identified(model: Any) -> Identity:
    inner = model[0].model
    about = {"id": getattr(inner, "name_or_path", "") or type(model).__name__}
    return identify_modules(model, about, model.device, str(model.dtype).removeprefix("torch."))


def _check_lengths(model: Any, captions: Sequence[str], image: Any = None) -> None:
    """Refuse captions that are longer than the model reads: it would cut them in silence."""
    of_text = model[0].model.config.get_text_config()
    most = min(
        model.max_seq_length or sys.maxsize,
        getattr(of_text, "max_position_embeddings", None) or sys.maxsize,
    )
    prompts = {"prompt": model._resolve_prompt(None, model.default_prompt_name)}
    for start in range(0, len(captions), CHECKED_AT_ONCE):
        some = captions[start : start + CHECKED_AT_ONCE]
        # Of pairs the caption of most tokens tells for all of the picture.
        inputs = list(some) if image is None else [(_longest(model, some), image)]
        whole = model.preprocess(
            inputs, processing_kwargs={"text": {"truncation": False}}, **prompts
        )
        lengths = whole["attention_mask"].sum(1).tolist()
        if max(lengths) > most:
            raise ValueError(
                f"Expected captions of at most {most} tokens with the model's prompt, got "
                f"{max(lengths)}: {str(inputs[np.argmax(lengths)])[:80]!r}. Shorten it, or raise "
                "max_seq_length if the model can read more."
            )


def _longest(model: Any, captions: Sequence[str]) -> str:
    """Return the caption of most tokens, which need not be that of most letters."""
    tokens = model[0].tokenizer(list(captions), add_special_tokens=False, verbose=False)
    lengths = [len(ids) for ids in tokens["input_ids"]]
    return captions[lengths.index(max(lengths))]


def _end_in_float32(model: Any) -> None:
    """Have the last layer of a reranker compute in float32: in half precision scores tie."""
    head = model[0].model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    if head is not None and type(head) is torch.nn.Linear:
        model.set_keep_in_fp32_modules(names[:1])
