"""A Hub id, a folder, a loaded model or a function in, a model that can score out.

What is wrong with a name, a type or a device shows here, before weights are read.
"""

import copy
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    BridgeTowerForImageAndTextRetrieval,
    PreTrainedConfig,
    PreTrainedModel,
    ViltForImageAndTextRetrieval,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import cached_file, extract_commit_hash
from typing_extensions import Unpack

from hard_positives.bars import bars_of_transformers_hidden
from hard_positives.machine import processes
from hard_positives.models.adapters import put_on
from hard_positives.models.blind import BlindModel
from hard_positives.models.encoders import DualEncoder, OutsideEmbedder
from hard_positives.models.generative import GenerativeModel, LikelihoodModel, YesNoModel
from hard_positives.models.kinds import (
    BLIND,
    DUAL_ENCODER,
    GENERATIVE,
    MATCHING_HEAD,
    OPEN_CLIP,
    PYTHON,
    QUESTION,
    SERVER,
    Kind,
    Settings,
    check_model_name,
)
from hard_positives.models.openclip import (
    PREFIXES,
    OpenClipEncoder,
    is_open_clip,
    load_open_clip,
)
from hard_positives.models.pairs import FunctionModel, OutsidePairScorer, PairModel
from hard_positives.models.preprocessing import PREPROCESSINGS, choose_image_processor
from hard_positives.models.protocols import Embedder, PairScorer
from hard_positives.models.sentences import (
    kind_of_name,
    kind_of_object,
    load_sentences,
    wrap_sentences,
)
from hard_positives.models.server import SERVER_PREFIX, ServerModel, load_server
from hard_positives.names import BLIND_PREFIX, EMBEDDED_MODEL

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PAIR_MODELS = (
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    BridgeTowerForImageAndTextRetrieval,
    ViltForImageAndTextRetrieval,
)
Encoder = DualEncoder | OpenClipEncoder | OutsideEmbedder
Matcher = PairModel | GenerativeModel | OutsidePairScorer | FunctionModel | ServerModel
Model = Encoder | Matcher | BlindModel
GENERATIVE_CLASSES = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


@bars_of_transformers_hidden()
def load_model(
    model: str | Path | PreTrainedModel | Embedder | PairScorer | Callable,
    **settings: Unpack[Settings],
) -> Model:
    """Load a model for scoring; a loaded one is left as it was.

    Args:
        model: As `hard_positives.score` takes it.
        **settings: See `kinds.Settings`.

    Raises:
        TypeError: The model is of no known kind, ``processor`` is missing, or a setting is unknown.
        ValueError: A setting has a value that is none, or that this kind of model does not heed; or
            damaged files.
        ImportError: This kind needs a package that is not installed.
        OSError: The id or folder cannot be found (transformers' own message).
    """
    _check_settings(settings)
    check_model_name(model, settings.get("adapter"))
    if isinstance(model, (str, Path)):
        return _by_name(str(model), settings)
    if is_open_clip(model):
        PYTHON.check(settings)
        return OpenClipEncoder(*cast(Any, model))
    kind = kind_of_object(model)
    if kind is not None:
        PYTHON.check(settings)
        return wrap_sentences(model, kind)
    outside = _from_outside(model)
    if outside is not None:
        PYTHON.check(settings)
        return outside
    for name in ("revision", "adapter", "model_kwargs"):
        if settings.get(name):
            raise ValueError(
                f"Expected {name} to be left out for a loaded model, got {settings[name]!r}. Load "
                "the model with it, or give its Hub id or folder."
            )
    loaded = cast(PreTrainedModel, model)
    _kind_of(type(loaded), getattr(loaded, "config", None)).check(settings)
    device, dtype = _target(settings)
    processor = settings.get("processor")
    return _by_kind(_on_target(loaded, device, dtype), processor, settings)


def _check_settings(settings: Settings) -> None:
    unknown = set(settings) - set(Settings.__annotations__)
    if unknown:
        raise TypeError(
            f"Expected settings of a model among {sorted(Settings.__annotations__)}, got "
            f"{sorted(unknown)}."
        )
    for name, known in (("dtype", [*DTYPES, "auto"]), ("preprocessing", list(PREPROCESSINGS))):
        value = settings.get(name, known[0])
        if value not in known:
            raise ValueError(f"Expected {name} to be one of {known}, got {value!r}.")
    if settings.get("likelihood") and settings.get("question") is not None:
        raise ValueError(
            f"Expected question to be left out with likelihood, got {settings['question']!r}. "
            "Choose one of the two."
        )


def _by_name(name: str, settings: Settings) -> Model:
    """Load what is called so on the command line."""
    if name.startswith(SERVER_PREFIX):
        SERVER.check(settings)
        return load_server(name, settings)
    if name.startswith(BLIND_PREFIX):
        BLIND.check(settings)
        with damage_as_value_error(name):
            return _load_blind(name.removeprefix(BLIND_PREFIX), settings)
    if name.startswith(PREFIXES):
        OPEN_CLIP.check(settings)
        return load_open_clip(name, settings, *_target(settings))
    if ":" in name and not Path(name).exists():
        return load_model(_imported(name), **settings)
    with damage_as_value_error(name):
        kind = None if name == EMBEDDED_MODEL else kind_of_name(name, settings.get("revision"))
        if kind is None:
            return _by_kind(*_load_pretrained(name, settings), settings)
        kind.check(settings)
        return load_sentences(name, kind, settings, *_target(settings))


def _by_kind(
    model: PreTrainedModel, processor: Any, settings: Settings
) -> DualEncoder | PairModel | GenerativeModel:
    """Wrap a model of transformers as what it is."""
    _check_processor(processor)
    kind = _kind_of(type(model), model.config)
    if kind is GENERATIVE and settings.get("likelihood"):
        return LikelihoodModel(model, processor)
    if kind is GENERATIVE:
        return YesNoModel(model, processor, settings.get("question") or QUESTION)
    if kind is MATCHING_HEAD:
        return PairModel(model, processor)
    _check_scale(model)
    preprocessing = settings.get("preprocessing", "transformers")
    choose_image_processor(processor.image_processor, preprocessing)  # refused here, not later
    return DualEncoder(model, processor, preprocessing)


def _from_outside(model: Any) -> Encoder | Matcher | None:
    """Wrap an object or a function; None for a module of torch without their methods."""
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


def _imported(name: str) -> Any:
    """Import what `module:attribute` names, from the current folder too; a class is called."""
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, and other tools that take such names
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"Expected {name} to be module:attribute of something to import, got an error "
            f"({error}). Start where the module lies, or install it."
        ) from error
    return found() if isinstance(found, type) else found


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
    except Exception as error:  # tokenizers and safetensors raise bare exceptions
        told = isinstance(error, (OSError, ValueError, ImportError))
        is_parsing = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError))
        is_a_line = "\n" not in str(error).strip()
        if str(error).startswith("Expected ") or (told and not is_parsing and is_a_line):
            raise
        in_a_line = " ".join(str(error).split())
        for kind in (OSError, ImportError):  # of the Hub, or of a package that is not there
            if isinstance(error, kind):
                raise kind(in_a_line) from error
        raise ValueError(
            f"Expected {model} to hold a whole model with its tokenizer and image processor, got "
            f"files that are missing or cannot be read ({type(error).__name__}: {in_a_line}). "
            "Download or save it again."
        ) from error


def _load_pretrained(model: str, settings: Settings) -> tuple[PreTrainedModel, Any]:
    if model == EMBEDDED_MODEL:
        model = str(Path(__file__).parents[1] / EMBEDDED_MODEL)
    commit = _commit_of(model, settings)
    revision = commit or settings.get("revision")
    # What is wrong is found out before the weights are read.
    config = AutoConfig.from_pretrained(model, revision=revision)
    model_class = _model_class(config)
    _kind_of(model_class, config).check(settings)
    _target(settings)
    processor = settings.get("processor")
    if processor is None:
        # The PIL backend gives the same pixels on every machine and needs no torchvision.
        processor = AutoProcessor.from_pretrained(model, revision=revision, backend="pil")
    # AIMv2's text tower ignores its causal mask under SDPA.
    own = {"attn_implementation": "eager"} if config.model_type == "aimv2" else {}
    return _with_weights(model_class, model, commit, settings, own), processor


def _load_blind(name: str, settings: Settings) -> BlindModel:
    """Load a causal language model from a folder or the Hub."""
    commit = _commit_of(name, settings)
    revision = commit or settings.get("revision")
    config = AutoConfig.from_pretrained(name, revision=revision)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise TypeError(
            f"Expected {BLIND_PREFIX}{name} to be a causal language model of transformers, got one "
            f"of the type {config.model_type!r}. Choose another, or leave out {BLIND_PREFIX!r}."
        )
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    return BlindModel(_with_weights(AutoModelForCausalLM, name, commit, settings), tokenizer)


def _commit_of(name: str, settings: Settings) -> str | None:
    """Find one commit for all parts: the repository may change in between. None of a folder."""
    path = cached_file(name, "config.json", revision=settings.get("revision"))
    return extract_commit_hash(path, None)


def _with_weights(
    model_class: Any,
    name: str,
    commit: str | None,
    settings: Settings,
    own: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Read the weights, and an adapter's, onto the device."""
    device, dtype = _target(settings)
    revision = commit or settings.get("revision")
    own = {**(own or {}), **(settings.get("model_kwargs") or {})}
    if "device_map" in own and processes().num_processes > 1:
        raise ValueError(
            f"Expected device_map to be left out under {processes().num_processes} processes, got "
            f"{own['device_map']!r}. Each holds a whole copy; start one process instead."
        )
    loaded = model_class.from_pretrained(name, revision=revision, dtype=dtype, **own)
    loaded.config._commit_hash = commit  # As transformers 4 did; the signature tells it.
    if settings.get("adapter"):
        put_on(loaded, settings["adapter"])
    is_placed = hasattr(loaded, "hf_device_map") or getattr(loaded, "is_quantized", False)
    return loaded if is_placed else loaded.to(device, dtype)


def _model_class(config: PreTrainedConfig) -> Any:
    """Return the class for scoring: that of a matching head where the checkpoint has one."""
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is not None and issubclass(named, PAIR_MODELS):
        return named
    found = MODEL_MAPPING.get(type(config), type(config))
    if config.model_type in GENERATIVE_CLASSES and not hasattr(found, "get_text_features"):
        return getattr(transformers, GENERATIVE_CLASSES[config.model_type])
    return found


def _kind_of(model_class: type, config: PreTrainedConfig | None) -> Kind:
    if issubclass(model_class, PAIR_MODELS):
        return MATCHING_HEAD
    is_generative = config and model_class.__name__ == GENERATIVE_CLASSES.get(config.model_type)
    if is_generative and not hasattr(model_class, "get_text_features"):
        return GENERATIVE
    if hasattr(model_class, "get_image_features") and hasattr(model_class, "get_text_features"):
        return DUAL_ENCODER
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


def _target(settings: Settings) -> tuple[torch.device, torch.dtype]:
    """Choose where a model runs, and in which type."""
    device = _chosen_device(settings.get("device"))
    return device, _chosen_dtype(settings.get("dtype", "float32"), device)


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
