"""Change what an embedding depends on, and see whether the cache notices.

Each change leaves the caption, the picture and mostly the weights as they are, and moves the
logits. `stale_cache` scores with a filled cache, makes the change, scores again and compares with
the truth, which is scored without the cache:

* noticed: the logits are the truth, and were encoded anew;
* not cached: the logits are the truth, and a warning says that nothing is kept;
* STALE: the logits of before.
"""

import copy
import os
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from transformers import CLIPModel, SiglipConfig, SiglipModel

import hard_positives_dataset
from attacks.trials import Attack, Attempt, Outcome, Trial, refused, right, wrong
from hard_positives import score
from hard_positives.models.loading import load_model

NUM_ROWS = 120


@dataclass
class Subject:
    """A model with its processor, to be changed."""

    model: torch.nn.Module
    processor: object

    def score(self, rows: Dataset, cache: bool) -> np.ndarray:
        """Score on a CPU; (N, 3)."""
        return score(
            self.model,
            rows,
            processor=self.processor,
            device="cpu",
            cache=cache,
            progress=False,
        )


def clip() -> Subject:
    loaded = load_model("shapes_clip", device="cpu")
    return Subject(loaded.model, loaded.processor)


def siglip() -> Subject:
    torch.manual_seed(0)
    processor = clip().processor
    words = len(processor.tokenizer)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2}
    text = {**tower, "vocab_size": words, "max_position_embeddings": 24, "projection_size": 32}
    vision = {**tower, "image_size": 36, "patch_size": 12}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    for values in model.parameters():
        if values.ndim > 1:
            torch.nn.init.normal_(values, std=0.2)
    return Subject(model, processor)


def with_adapters() -> Subject:
    from peft import LoraConfig

    subject = clip()
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = LoraConfig(target_modules=["q_proj", "v_proj"], r=4, init_lora_weights=False)
        subject.model.add_adapter(config, adapter_name=name)
    subject.model.set_adapter("a")
    subject.model.eval()
    return subject


def rebuilt(**changes) -> Callable[[Subject], None]:
    """The same weights in a model of another configuration, as an edited config.json gives it."""

    def change(subject: Subject) -> None:
        config = copy.deepcopy(subject.model.config)
        for tower in (config.text_config, config.vision_config):
            for name, value in changes.items():
                setattr(tower, name, value(getattr(tower, name)) if callable(value) else value)
        other = CLIPModel(config).eval()
        other.load_state_dict(subject.model.state_dict())
        subject.model = other

    return change


class _Turned(CLIPModel):
    def get_image_features(self, pixel_values, **options):
        return super().get_image_features(pixel_values.flip(-1, -2) * 0.3, **options)


def subclass(subject: Subject) -> None:
    subject.model.__class__ = _Turned


def same_name(part: str, method: str, wrap: Callable) -> Callable[[Subject], None]:
    """A subclass of the tokenizer or image processor that has its name and does other things."""

    def change(subject: Subject) -> None:
        processor = copy.deepcopy(subject.processor)
        own = getattr(processor, part)
        kind = type(own)
        body = {method: wrap(getattr(kind, method)), "__module__": "elsewhere"}
        own.__class__ = type(kind.__name__, (kind,), body)
        subject.processor = processor

    return change


def halved_colours(call: Callable) -> Callable:
    return lambda self, image, **options: call(self, image.point(lambda v: v // 2), **options)


def last_word_first(call: Callable) -> Callable:
    def turned(self, texts, **options):
        return call(self, [" ".join(text.split()[::-1]) for text in texts], **options)

    return turned


def hook(subject: Subject) -> None:
    tower = subject.model.vision_model.encoder.layers[0]
    tower.register_forward_hook(lambda module, inputs, output: output * 0.5)


def pre_hook(subject: Subject) -> None:
    tower = subject.model.text_model.encoder.layers[0].mlp
    tower.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5,))


def replaced_method(subject: Subject) -> None:
    original = subject.model.get_text_features

    def reversed_words(self, input_ids, **options):
        return original(input_ids=input_ids.roll(1, dims=0), **options)

    subject.model.get_text_features = types.MethodType(reversed_words, subject.model)


def hidden_buffer(subject: Subject) -> None:
    """A buffer that `state_dict` leaves out: captions get their positions in another order."""
    embeddings = subject.model.text_model.embeddings
    embeddings.position_ids = embeddings.position_ids.flip(-1)


def scaling(subject: Subject) -> None:
    for module in subject.model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 4 * value for name, value in module.scaling.items()}


def config_of_towers(**changes) -> Callable[[Subject], None]:
    def change(subject: Subject) -> None:
        for name, value in changes.items():
            setattr(subject.model.config, name, value)

    return change


def max_length(subject: Subject) -> None:
    subject.processor = copy.deepcopy(subject.processor)
    subject.processor.tokenizer.model_max_length = 20


CHANGES: dict[str, tuple[Callable[[], Subject], Callable[[Subject], None]]] = {
    "config num_attention_heads x 2": (clip, rebuilt(num_attention_heads=lambda heads: heads * 2)),
    "config layer_norm_eps 1e-3": (clip, rebuilt(layer_norm_eps=1e-3)),
    "config hidden_act": (clip, rebuilt(hidden_act=lambda a: "gelu" if a != "gelu" else "relu")),
    "LoRA switched off": (with_adapters, lambda subject: subject.model.disable_adapters()),
    "LoRA another adapter": (with_adapters, lambda subject: subject.model.set_adapter("b")),
    "LoRA scaling x 4": (with_adapters, scaling),
    "subclass, another get_image_features": (clip, subclass),
    "forward hook": (clip, hook),
    "forward pre-hook": (clip, pre_hook),
    "get_text_features replaced": (clip, replaced_method),
    "tokenizer subclass of the same name": (
        clip,
        same_name("tokenizer", "__call__", last_word_first),
    ),
    "image processor subclass of the same name": (
        clip,
        same_name("image_processor", "__call__", halved_colours),
    ),
    "SigLIP tokenizer.model_max_length": (siglip, max_length),
    "SigLIP config.model_type": (siglip, config_of_towers(model_type="clip")),
    "attn_implementation": (clip, lambda s: s.model.set_attn_implementation("eager")),
    "buffer outside of state_dict": (clip, hidden_buffer),
}


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    before = os.environ.get("HARD_POSITIVES_CACHE")
    os.environ["HARD_POSITIVES_CACHE"] = folder
    try:
        yield
    finally:
        os.environ.pop("HARD_POSITIVES_CACHE")
        if before is not None:
            os.environ["HARD_POSITIVES_CACHE"] = before


def stale_cache(name: str) -> tuple[str, float]:
    """Try one change.

    Args:
        name: One of `CHANGES`.

    Returns:
        What became of it, and how far the change moves the logits at most.
    """
    make, change = CHANGES[name]
    folder = os.path.dirname(hard_positives_dataset.__file__)
    rows = load_dataset(folder, split="swap").select(range(NUM_ROWS))
    with tempfile.TemporaryDirectory() as cache, _cache_in(cache):
        subject = make()
        before = subject.score(rows, cache=True)
        change(subject)
        truth = subject.score(rows, cache=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            after = subject.score(rows, cache=True)
        moved = float(np.abs(truth - before).max())
        if np.abs(after - truth).max() > 1e-5 + moved / 2:
            return "STALE", moved
        if any("are not kept" in str(warning.message) for warning in caught):
            return "not cached", moved
        return ("noticed" if len(os.listdir(cache)) == 2 else "STALE"), moved


def stale_embeddings(small: int) -> Attack:
    """Make every change of the table, one a trial."""

    @contextmanager
    def prepare(scratch: Path) -> Iterator[Attempt]:
        yield _change

    return Attack("stale cache", prepare, small, full=len(CHANGES))


def _change(trial: Trial) -> Outcome:
    name = list(CHANGES)[trial.number]
    if "LoRA" in name and not find_spec("peft"):
        return Outcome("skipped", "peft is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of a second adapter
        outcome, moved = stale_cache(name)
    verdicts = {"noticed": right, "not cached": refused}
    return verdicts.get(outcome, wrong)(f"{name}: {outcome}, logits move by {moved:.2g}")
