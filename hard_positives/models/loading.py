"""A Hub id, a folder, a loaded model or a function in, a model that can score out.

What is wrong with a name, a type or a device shows here, before weights are read.
"""

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoProcessor,
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    BridgeTowerForImageAndTextRetrieval,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    ViltForImageAndTextRetrieval,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import cached_file, extract_commit_hash

from hard_positives.machine import processes
from hard_positives.models.encoders import DualEncoder, OutsideEmbedder
from hard_positives.models.generative import QUESTION, YesNoModel
from hard_positives.models.pairs import FunctionModel, OutsidePairScorer, PairModel
from hard_positives.models.preprocessing import PREPROCESSINGS, choose_image_processor
from hard_positives.models.protocols import Embedder, PairScorer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PAIR_MODELS = (
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    BridgeTowerForImageAndTextRetrieval,
    ViltForImageAndTextRetrieval,
)
EMBEDDED_MODEL = "shapes_clip"
Encoder = DualEncoder | OutsideEmbedder
Matcher = PairModel | YesNoModel | OutsidePairScorer | FunctionModel
GENERATIVE = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load_model(
    model: str | Path | PreTrainedModel | Embedder | PairScorer | Callable,
    *,
    processor: ProcessorMixin | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    preprocessing: str = "transformers",
    question: str | None = None,
) -> Encoder | Matcher:
    """Load a model for scoring, in ``dtype``, on ``device``; a loaded one is left as it was.

    See :func:`score` for the arguments.

    Raises:
        TypeError: The model is of no known kind, or ``processor`` is missing.
        ValueError: Unknown ``dtype``, ``device`` or ``preprocessing``, or damaged files.
        OSError: The id or folder cannot be found (transformers' own message).
    """
    for name, value, known in (
        ("dtype", dtype, [*DTYPES, "auto"]),
        ("preprocessing", preprocessing, list(PREPROCESSINGS)),
    ):
        if value not in known:
            raise ValueError(f"Expected {name} to be one of {known}, got {value!r}.")
    outside = None if isinstance(model, (str, Path)) else _from_outside(model)
    if outside is not None:
        _refuse_settings(device=device, dtype=dtype, preprocessing=preprocessing, question=question)
        return outside
    target = _chosen_device(device)
    if isinstance(model, (str, Path)):
        with damage_as_value_error(str(model)):
            loaded, processor = _load_pretrained(model, processor, revision, target, dtype)
    else:
        _kind_of(type(model), getattr(model, "config", None))
        loaded = _on_target(cast(PreTrainedModel, model), target, _chosen_dtype(dtype, target))
    _check_processor(processor)
    return _by_kind(loaded, processor, preprocessing, question)


def _by_kind(
    model: PreTrainedModel, processor: ProcessorMixin, preprocessing: str, question: str | None
) -> DualEncoder | PairModel | YesNoModel:
    """Wrap a loaded model as what it is, or refuse settings that it would not heed."""
    kind = _kind_of(type(model), model.config)
    if kind is YesNoModel and preprocessing == "transformers":
        return YesNoModel(model, processor, QUESTION if question is None else question)
    if question is not None:
        what = "a dual encoder" if kind is DualEncoder else "a matching head"
        raise ValueError(
            f"Expected question to be left out for {what}, got {question!r}. It is put to "
            "generative models."
        )
    if kind is DualEncoder:
        _check_scale(model)
        choose_image_processor(processor.image_processor, preprocessing)  # refused here, not later
        return DualEncoder(model, processor, preprocessing)
    if preprocessing != "transformers":
        raise ValueError(
            f"Expected preprocessing 'transformers' for {type(model).__name__}, got "
            f"{preprocessing!r}. The published code scores dual encoders only."
        )
    return PairModel(model, processor)


def _from_outside(model: Any) -> Encoder | Matcher | None:
    """Wrap an object or a function; None for a model of transformers."""
    if hasattr(model, "embed_images") and hasattr(model, "embed_captions"):
        return OutsideEmbedder(model)
    if hasattr(model, "score_pairs"):
        return OutsidePairScorer(model)
    if isinstance(model, torch.nn.Module):
        return None
    if callable(model):
        return FunctionModel(model)
    raise TypeError(
        "Expected model to be a Hub id, a folder, a model, an object with embed_images and "
        f"embed_captions or with score_pairs, or a function, got {type(model).__name__}."
    )


def _refuse_settings(**given: str | None) -> None:
    """Refuse what a function or an object from outside would not heed."""
    defaults = {"dtype": "float32", "preprocessing": "transformers"}
    for name, value in given.items():
        if value != defaults.get(name):
            raise ValueError(
                f"Expected {name} to be left out for a function or an object that is no model of "
                f"transformers, got {value!r}. It gets pictures and captions as they are and runs "
                "where it will."
            )


def _on_target(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model, or where device or dtype differ a copy: casting back would not undo it."""
    values = [*model.parameters(), *model.buffers()]
    floating = {value.dtype for value in values if value.is_floating_point()}
    if {value.device for value in values} == {device} and floating <= {dtype}:
        return model
    copied: Any = copy.deepcopy(model)
    return copied.to(device, dtype)


@contextmanager
def damage_as_value_error(model: str) -> Iterator[None]:
    """Name the model whose files cannot be read; the libraries raise errors of many kinds."""
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError):
        raise
    except Exception as error:  # tokenizers and safetensors raise bare exceptions
        raise ValueError(
            f"Expected {model} to hold a whole model with its tokenizer and image processor, got "
            f"files that cannot be read ({type(error).__name__}: {error}). Download or save it "
            "again."
        ) from error


def _load_pretrained(
    model: str | Path,
    processor: ProcessorMixin | None,
    revision: str | None,
    device: torch.device,
    dtype: str,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    if model == EMBEDDED_MODEL:
        model = Path(__file__).parents[1] / EMBEDDED_MODEL
    # One commit for all parts, even if the repository changes in between.
    commit = extract_commit_hash(cached_file(model, "config.json", revision=revision), None)
    revision = commit or revision
    # What is wrong is found out before the weights are read.
    config = AutoConfig.from_pretrained(model, revision=revision)
    model_class = _model_class(config)
    _kind_of(model_class, config)
    if processor is None:
        # The PIL backend gives the same pixels on every machine and needs no torchvision.
        processor = AutoProcessor.from_pretrained(model, revision=revision, backend="pil")
    loaded = model_class.from_pretrained(
        model,
        revision=revision,
        dtype=_chosen_dtype(dtype, device),
        # AIMv2's text tower ignores its causal mask under SDPA.
        attn_implementation="eager" if config.model_type == "aimv2" else None,
    )
    loaded.config._commit_hash = commit  # As transformers 4 did; the signature tells it.
    return loaded.to(device, _chosen_dtype(dtype, device)), processor


def _model_class(config: PreTrainedConfig) -> Any:
    """Return the class for scoring: that of a matching head where the checkpoint has one."""
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is not None and issubclass(named, PAIR_MODELS):
        return named
    found = MODEL_MAPPING.get(type(config), type(config))
    if config.model_type in GENERATIVE and not hasattr(found, "get_text_features"):
        return getattr(transformers, GENERATIVE[config.model_type])
    return found


def _kind_of(
    model_class: type, config: PreTrainedConfig | None
) -> type[DualEncoder] | type[PairModel] | type[YesNoModel]:
    if issubclass(model_class, PAIR_MODELS):
        return PairModel
    is_generative = config and model_class.__name__ == GENERATIVE.get(config.model_type)
    if is_generative and not hasattr(model_class, "get_text_features"):
        return YesNoModel
    if hasattr(model_class, "get_image_features") and hasattr(model_class, "get_text_features"):
        return DualEncoder
    raise TypeError(
        "Expected the model to be a dual encoder with get_image_features and get_text_features, a "
        "generative model of images and text, or one of "
        f"{[kind.__name__ for kind in PAIR_MODELS]}, got {model_class.__name__}. Use one of these, "
        "or pass a function (images, captions) -> logits."
    )


def _check_scale(model: PreTrainedModel) -> None:
    if not (hasattr(model, "logit_scale") or hasattr(model, "temperature")):
        raise TypeError(
            "Expected a dual encoder to have a scale for its cosines (logit_scale or temperature), "
            f"got {type(model).__name__}. Use the checkpoint of a matching head, or pass an object "
            "with embed_images and embed_captions."
        )


def _check_processor(processor: Any) -> None:
    if hasattr(processor, "tokenizer") and hasattr(processor, "image_processor"):
        return
    raise TypeError(
        "Expected processor to prepare images and captions (transformers.AutoProcessor), got "
        f"{type(processor).__name__}. Pass the processor that belongs to the model."
    )


def _chosen_device(device: str | None) -> torch.device:
    if device is None and "WORLD_SIZE" in os.environ:  # accelerate launch, torchrun
        return processes().device
    chosen = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        return torch.empty(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Expected device to be one that this machine has, got {device!r} ({error}). "
            "Leave it out to have one chosen."
        ) from error


def _chosen_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Resolve "auto" by timing a matrix product, since names of chips tell little."""
    if dtype != "auto":
        return DTYPES[dtype]
    half = torch.float16 if device.type == "mps" else torch.bfloat16
    return (
        half
        if _product_seconds(half, device) < _product_seconds(torch.float32, device) / 2
        else torch.float32
    )


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    factor = torch.randn(1024, 1024, device=device).to(dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        (factor @ factor)[0, 0].item()  # .item() waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds)
