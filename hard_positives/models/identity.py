"""What a logit depends on besides the picture and the caption: the signature and the cache's key.

Weights alone do not make an embedding. So here everything is described that a model, its processor
and torch bring along: tensors, configuration, classes, the plain attributes of every module (an
adapter's scaling is one), the tokenizer, switches of precision. What cannot be described so, such
as a hook, has a `problem`, and its embeddings are not kept.
"""

import hashlib
import inspect
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from PIL import ImageFile
from torch.nn.modules import module as torch_module
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Whose code is known by its version. Remote code has no version that could be told.
_KNOWN_PACKAGES = {"torch", "transformers", "tokenizers", "peft", "huggingface_hub", "numpy"}
_KNOWN_PACKAGES |= {"hard_positives", "open_clip", "sentence_transformers", "timm", "torchvision"}
_KNOWN_PACKAGES |= set(sys.stdlib_module_names)
_VERSIONS = ["ftfy", "numpy", "open_clip_torch", "peft", "pillow", "regex"]
_VERSIONS += ["sentence-transformers", "timm", "tokenizers", "torch", "torchvision", "transformers"]
_CAPTURING = "transformers.utils.output_capturing"  # its hooks note outputs and change none
# Names, and what concerns loading, saving and training: none of it changes a logit.
_NOT_OF_CONFIGS = {"_name_or_path", "name_or_path", "transformers_version", "architectures"}
_NOT_OF_CONFIGS |= {"dtype", "torch_dtype", "_commit_hash", "base_model_name_or_path", "revision"}
_NOT_OF_CONFIGS |= {"_pair_role_probe"}  # sentence-transformers' note of an earlier call
_NOT_OF_MODULES = {*vars(torch.nn.Module()), "name_or_path", "gradient_checkpointing"}
_NOT_OF_MODULES |= {"_is_hf_initialized", "_weight_conversions", "all_tied_weights_keys"}
_NOT_OF_MODULES |= {"_no_split_modules", "_skip_keys_device_placement"}
_NOT_OF_MODULES |= {"_hf_hook", "_old_forward", "hf_device_map"}  # on which device it runs
_NOT_OF_MODULES |= {"rope_deltas", "_output_capturing_hooks_installed"}  # of the last call
_MOVING = {"to", "cuda", "xpu", "npu"}  # accelerate has them warn
_NOT_OF_SENTENCES = {"model_card_data", "_model_card_text", "_model_card_vars", "_model_config"}
_NOT_OF_SENTENCES |= {"_method_signature_cache", "_chat_template_suffix_cache"}  # of earlier calls
_NOT_OF_SENTENCES |= {"_prompt_length_mapping", "_modules_placed", "_accelerate_placement_hook"}
_NOT_OF_SENTENCES |= {"activation_fn"}  # of a reranker, not used here
_NOT_OF_MODULES |= _NOT_OF_SENTENCES
_PLANS_AND_KEYS = re.compile("_(tp|pp|ep|fsdp)_plan|_keep_in_fp32.*|_keys_to_ignore.*")
_NOT_OF_TOKENIZERS = {"name_or_path", "init_inputs", "init_kwargs", "deprecation_warnings"}
_NOT_OF_TOKENIZERS |= {"_tokenizer", "verbose", "backend", "files_loaded"}
_IN_THE_BACKEND = {"_merges", "_vocab"}  # of which it was made


@dataclass(frozen=True)
class Identity:
    """What one model's logits depend on.

    Attributes:
        description: For the signature: `model`, `processor`, `dtype`, `device`, `machine` and
            `precision`; texts, numbers and hashes.
        problem: Why embeddings of this model cannot be kept, since something that changes them is
            not in the description; empty where they can.
    """

    description: dict[str, Any]
    problem: str

    @property
    def cache_key(self) -> str:
        """Name everything that an embedding depends on, apart from what is embedded."""
        model = dict(self.description["model"])
        for name in ("id", "revision"):  # the same by whatever name it came
            del model[name]
        identity = {**self.description, "model": model, "versions": _versions()}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def identify(model: PreTrainedModel, processor: ProcessorMixin, preprocessing: str) -> Identity:
    """Describe a model, its processor and the state of torch.

    Args:
        model: On the device and in the type that it runs in.
        processor: With `image_processor` and `tokenizer`.
        preprocessing: By which name the images' preparation was chosen.
    """
    problems = _problems(model, processor)
    problem = next(problems, "")
    structure, images, words = (
        _hash_or_none(describe)
        for describe in (
            lambda: _structure(model),
            lambda: _image_processor_state(processor.image_processor),
            lambda: _tokenizer_state(processor.tokenizer),
        )
    )
    weights = _weights_hash(model)
    if not problem and None in (structure, images, words, weights):
        problem = "it has a part whose state no hash can hold"
    description = {
        "model": {
            "id": model.name_or_path or type(model).__name__,
            "revision": getattr(model.config, "_commit_hash", None),
            "architecture": type(model).__name__,
            "weights_sha256": weights,
            "structure_sha256": structure,
            "attention": getattr(model.config, "_attn_implementation", None),
            "adapters": _active_adapters(model),
        },
        "processor": {
            "image_processor": type(processor.image_processor).__name__,
            "preprocessing": preprocessing,
            "truncated_images": "filled" if ImageFile.LOAD_TRUNCATED_IMAGES else "refused",
            "sha256": images and words and _hash([images, words]),
        },
        **_running(model.device, str(model.dtype).removeprefix("torch.")),
    }
    return Identity(description, problem)


def identify_modules(
    model: torch.nn.Module, about: dict[str, Any], device: torch.device, dtype: str
) -> Identity:
    """Describe a model of sentence-transformers or open_clip: its modules, and what is in them.

    Args:
        model: On its device.
        about: What else to say of it: `id`, and what its modules do not hold; None for what no
            hash can hold.
        device: Where it is.
        dtype: The type that it runs in.
    """
    structure = _hash_or_none(lambda: _structure(model))
    weights = _weights_hash(model)
    problem = next(_problems_of_modules(model), "")
    if not problem and None in (structure, weights, *about.values()):
        problem = "it has a part whose state no hash can hold"
    description = {
        "model": {
            "id": "",
            "revision": None,
            "architecture": type(model).__name__,
            "weights_sha256": weights,
            "structure_sha256": structure,
            "adapters": _active_adapters(model),
            "truncated_images": "filled" if ImageFile.LOAD_TRUNCATED_IMAGES else "refused",
            **about,
        },
        **_running(device, dtype),
    }
    return Identity(description, problem)


def state_hash(part: Any) -> str | None:
    """Hash an object of known code by its class and state; None if no hash can hold it."""
    return _hash_or_none(lambda: _plain(part))


def identify_outside(part: Any) -> Identity:
    """Describe an object from outside by what it says of itself, its code, state and weights.

    Args:
        part: An embedder or a scorer of pairs; see `protocols`.

    Raises:
        TypeError: Its `describe()` returns what JSON cannot hold.
    """
    kind = part if isinstance(part, FunctionType) else type(part)
    described, code = _own_description(part), _code_hash(kind)
    modules = {
        name: value
        for name, value in {"": part, **_attributes_of(part)}.items()
        if isinstance(value, torch.nn.Module)
    }
    weights = {name: _weights_hash(module) for name, module in modules.items()}
    problems = [
        *([] if hasattr(part, "describe") else [f"{kind.__name__} has no describe()"]),
        *([] if code else [f"the code of {kind.__name__} cannot be read"]),
        *(["a part of it has a state that no hash can hold"] if None in weights.values() else []),
        *_replaced_methods(part),
        *(hook for module in modules.values() for hook in _hooks(module)),
    ]
    model = {
        "id": kind.__name__,
        "revision": None,
        "architecture": _class_name(kind),
        "code_sha256": code,
        "weights_sha256": None if None in weights.values() else _hash(weights),
        "state_sha256": _hash(_plain_attributes(part)),
        **described,
    }
    return Identity({"model": model, "precision": _precision()}, next(iter(problems), ""))


def _own_description(part: Any) -> dict[str, Any]:
    described = part.describe() if hasattr(part, "describe") else {}
    try:
        plain = json.loads(json.dumps(described))
    except (TypeError, ValueError):
        plain = None
    if not isinstance(plain, dict):
        raise TypeError(
            f"Expected describe() of {type(part).__name__} to return a dictionary that JSON can "
            f"hold, got {described!r:.200}. Return texts, numbers, lists and dictionaries, such as "
            "{'id': 'my model'}."
        )
    return plain


def _code_hash(kind: Any) -> str | None:
    """Hash the file of a function, or those of a class and its bases; None if one is unreadable."""
    digest = hashlib.sha256()
    for base in [kind] if isinstance(kind, FunctionType) else kind.__mro__:
        if not _is_known(base):
            try:
                inspect.getsource(base)  # raises where the file is not that of the class
                digest.update(inspect.getsource(inspect.getmodule(base)).encode())
            except (OSError, TypeError):
                return None
    return digest.hexdigest()


def _attributes_of(part: Any) -> dict[str, Any]:
    return getattr(part, "__dict__", {})


def _plain_attributes(part: Any) -> dict[str, Any]:
    """What of an object's attributes a hash can hold; what else there is, it has to describe."""
    plain = {}
    for name, value in _attributes_of(part).items():
        with suppress(_UndescribableError, RecursionError):
            plain[name] = _plain(value)
    return plain


def code_key(part: Any) -> str | None:
    """Name an object of known code by its class, its state and the versions of the libraries."""
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    return _hash_or_none(lambda: [_plain(part), truncated, _versions()])


def _problems(model: PreTrainedModel, processor: ProcessorMixin) -> Iterator[str]:
    """What can change an embedding and cannot be put into a hash, in words."""
    yield from _problems_of_modules(model)
    for part in (processor.image_processor, processor.tokenizer):
        yield from (f"{type(part).__name__} has {what}" for what in unknown_code(part))


def _problems_of_modules(model: torch.nn.Module) -> Iterator[str]:
    yield from _hooks(model)
    for name, module in model.named_modules():
        place = f"{type(module).__name__} {name}".rstrip()
        yield from (f"{place} has {what}" for what in unknown_code(module))
    for name in {getattr(config, "_attn_implementation", None) for config in _configs(model)}:
        function = ALL_ATTENTION_FUNCTIONS.get(name)
        if function is not None and not _is_known(function):
            yield f"its attention {name} comes from {function.__module__}"


def _hooks(model: torch.nn.Module) -> Iterator[str]:
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        yield "torch has a forward hook for all modules"
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(hook.__module__ != _CAPTURING for hook in hooks):
            yield f"{type(module).__name__} {name}".rstrip() + " has a forward hook"


def unknown_code(part: Any) -> Iterator[str]:
    """Name the code of an object that no version of a known package names."""
    kind: Any = type(part)  # of which a type checker doubts that it can be hashed
    of_class = _unknown_code_of_class(kind)
    if of_class:
        yield of_class
    yield from _replaced_methods(part)


def _replaced_methods(part: Any) -> Iterator[str]:
    for name, value in _attributes_of(part).items():
        of_class = getattr(type(part), name, None)
        if name in _MOVING or (name == "forward" and _is_dispatched(part)):
            continue
        if name != "_compiled_call_impl" and callable(value) and callable(of_class):
            yield f"a {name} of its own"


def _is_dispatched(part: Any) -> bool:
    """Whether accelerate moves a module's inputs to its device, and does no more."""
    hook = _attributes_of(part).get("_hf_hook")
    hooks = hook.hooks if type(hook) is SequentialHook else [hook]
    return all(type(one) is AlignDevicesHook for one in hooks)


@cache
def _unknown_code_of_class(kind: type) -> str:
    for base in kind.__mro__:
        if not _is_known(base):
            return f"code from {base.__module__} ({base.__qualname__})"
        for name, value in vars(base).items():
            if isinstance(value, FunctionType) and not _is_known(value):
                return f"a {name} from {value.__module__}"
    return ""


def _is_known(code: Any) -> bool:
    return (getattr(code, "__module__", None) or "builtins").split(".")[0] in _KNOWN_PACKAGES


def _structure(model: torch.nn.Module) -> list[Any]:
    """Classes, configurations and plain attributes of all modules."""
    configs = {id(config): _plain(config) for config in _configs(model)}
    adapters = _plain(getattr(model, "peft_config", None))
    modules = [
        [name, _class_name(type(module)), _attributes(module)]
        for name, module in model.named_modules()
    ]
    return [list(configs.values()), adapters, modules]


def _configs(model: torch.nn.Module) -> list[PreTrainedConfig]:
    found = (getattr(module, "config", None) for module in model.modules())
    return list({id(one): one for one in found if isinstance(one, PreTrainedConfig)}.values())


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    of_dispatching = _MOVING | {"forward"} if _is_dispatched(module) else _MOVING
    return {
        name: "compiled" if name == "_compiled_call_impl" else _plain(value)
        for name, value in sorted(vars(module).items())
        if name not in _NOT_OF_MODULES | of_dispatching
        and not _PLANS_AND_KEYS.fullmatch(name)
        and name not in ("config", "peft_config", "generation_config")
    }


def _image_processor_state(image_processor: Any) -> Any:
    return [_class_name(type(image_processor)), _plain(vars(image_processor))]


def _tokenizer_state(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    left_out = _NOT_OF_TOKENIZERS if backend is None else _NOT_OF_TOKENIZERS | _IN_THE_BACKEND
    state = {name: v for name, v in vars(tokenizer).items() if name not in left_out}
    if backend is not None:
        # Padding and truncation, which are of the last call, stand before the first of these words.
        _, found, content = backend.to_str().partition('"added_tokens":')
        if not found:
            raise _UndescribableError("a tokenizer written in another order")
        state["backend"] = hashlib.sha256(content.encode()).hexdigest()
    else:
        state["vocabulary"] = tokenizer.get_vocab()
    return [_class_name(type(tokenizer)), _plain(state)]


class _UndescribableError(TypeError):
    pass


def _plain(value: Any) -> Any:  # noqa: C901, PLR0911, PLR0912 a case for each kind
    """Turn a value into what JSON can hold, the same in every process."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, PreTrainedConfig):
        # Not to_dict, which leaves out the attention and takes model_type from the class.
        return [_class_name(type(value)), value.model_type, _plain(vars(value))]
    if isinstance(value, Mapping):
        value = _without_names(value)
        if all(type(key) is str for key in value):  # a vocabulary has 50,000
            return [[key, _plain(part)] for key, part in sorted(value.items())]
        return sorted(([_plain(key), _plain(part)] for key, part in value.items()), key=json.dumps)
    if isinstance(value, PreTrainedTokenizerBase):
        return _tokenizer_state(value)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(part) for part in value), key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (torch.dtype, torch.device, Enum)) or type(value).__name__ == "Pattern":
        return str(value)  # of the package regex, too
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (type, FunctionType, MethodType)) and _is_known(value):
        return _class_name(value)
    if hasattr(value, "serialized_model_proto"):  # SentencePiece
        return hashlib.sha256(value.serialized_model_proto()).hexdigest()
    kind: Any = type(value)
    if not isinstance(value, (torch.nn.Module, type)) and not _unknown_code_of_class(kind):
        return [_class_name(type(value)), _plain(_state(value))]
    raise _UndescribableError(f"{type(value).__module__}.{type(value).__qualname__}")


def _state(value: Any) -> Any:
    if hasattr(value, "__getstate__"):  # AddedToken; from Python 3.11 every object
        return value.__getstate__()
    return getattr(value, "__dict__", repr(value))


def _without_names(values: Mapping) -> dict:
    return {key: part for key, part in values.items() if key not in _NOT_OF_CONFIGS}


def _class_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _hash_or_none(describe: Callable[[], Any]) -> str | None:
    try:
        return _hash(describe())
    except (_UndescribableError, RecursionError):
        return None


def _hash(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _weights_hash(model: torch.nn.Module) -> str | None:
    """Hash all tensors, also buffers that `state_dict` leaves out; None if one is no plain one."""
    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    if not all(map(_is_plain_tensor, tensors.values())):
        return None
    if not tensors:
        return _hash([])
    # Tensor by tensor, so that all cores can hash (hashlib lets go of the GIL).
    with ThreadPoolExecutor() as pool:
        names, values = zip(*sorted(tensors.items()), strict=True)
        return hashlib.sha256(b"".join(pool.map(_tensor_hash, names, values))).hexdigest()


def _is_plain_tensor(values: Any) -> bool:
    return (
        type(values) in (torch.Tensor, torch.nn.Parameter)
        and values.layout == torch.strided
        and not values.is_quantized
        and not values.is_meta
    )


def _tensor_hash(name: str, values: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _active_adapters(model: torch.nn.Module) -> list[str]:
    """The adapters that are switched on, as PEFT's layers have it."""
    names: dict[str, None] = {}
    for module in model.modules():
        active: Any = getattr(module, "active_adapters", [])
        if not getattr(module, "disable_adapters", True):
            names |= dict.fromkeys(active)
    return list(names)


def _running(device: torch.device, dtype: str) -> dict[str, Any]:
    """Where and how a model runs."""
    on_gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
    return {
        "dtype": dtype,
        "device": device.type,
        "machine": machine,
        "precision": _precision(),
    }


def _precision() -> dict[str, str]:
    """The switches that let torch compute float32 with fewer bits."""
    switches = {
        "float32": torch.backends,
        "cuda_matmul": torch.backends.cuda.matmul,
        "cudnn_conv": getattr(torch.backends.cudnn, "conv", None),
        "mkldnn_matmul": getattr(torch.backends.mkldnn, "matmul", None),
        "mkldnn_conv": getattr(torch.backends.mkldnn, "conv", None),
    }
    found = {name: getattr(of, "fp32_precision", None) for name, of in switches.items()}
    for half in ("fp16", "bf16"):
        name = f"allow_{half}_reduced_precision_reduction"
        found[name] = getattr(torch.backends.cuda.matmul, name, None)
    if None in (found["float32"], found["mkldnn_matmul"]):  # torch before 2.9
        found["float32_matmul"] = torch.get_float32_matmul_precision()
        found["cudnn_tf32"] = torch.backends.cudnn.allow_tf32
    # "none" stands for the default, which is that of IEEE.
    plain = {name: str(value) for name, value in found.items() if value is not None}
    return {name: "ieee" if value == "none" else value for name, value in plain.items()}


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
