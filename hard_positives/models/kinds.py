"""The kinds of models that can be scored: what each is called by, needs, and can be told.

`loading` finds out which kind a model is; `hard-positives models` lists them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typing_extensions import TypedDict

from hard_positives.lookup import check_name
from hard_positives.names import EMBEDDED_MODEL

if TYPE_CHECKING:  # so that `hard-positives models` answers at once
    from transformers import ProcessorMixin


class Settings(TypedDict, total=False):
    """How a model is loaded and asked. No kind of model takes all of them; others are refused.

    Attributes:
        processor: Prepares images and captions, for a loaded model of transformers; read from the
            model if that is an id or a folder.
        revision: Branch, tag or commit of a Hub id.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; the fastest present if left out.
        dtype: The model's type: ``"float32"`` (if left out), ``"bfloat16"``, ``"float16"``, or
            ``"auto"``: the half precision that a short measurement finds twice as fast here, else
            float32. Similarities, and the logits of answers, are float32 whatever the type.
        preprocessing: `"transformers"` (if left out) prepares images as the model's own processor
            does; `"openai"` as the published code did, for models with CLIP's image processor (see
            `hard_positives.models.preprocessing`). The two differ by one pixel in a quarter of all
            image sizes.
        question: What a generative model is asked about each pair, with `{}` in the place of the
            caption; that of VQAScore if left out. The logit is ``log P(Yes) - log P(No)`` of the
            next token.
        likelihood: Score a generative model by what it says of its own: the logit is
            ``log P(caption | image)``, the sum over the caption's tokens (VisualGPTScore). No
            question is asked then.
        adapter: Hub id or folder of a PEFT adapter (LoRA and others), put on the model's weights.
        model_kwargs: What else transformers' ``from_pretrained`` takes, such as
            ``{"device_map": "auto"}`` for a model over several GPUs or
            ``{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}``.
        base_url: Address of the server of a model ``server:NAME``, up to ``/v1``.
        api_key: Where that server asks for one; ``HARD_POSITIVES_API_KEY`` if left out.
    """

    processor: "ProcessorMixin | None"
    revision: str | None
    device: str | None
    dtype: str
    preprocessing: str
    question: str | None
    likelihood: bool
    adapter: str | Path | None
    model_kwargs: dict[str, Any] | None
    base_url: str | None
    api_key: str | None


QUESTION = 'Does this figure show "{}"? Please answer Yes or No.'
IN_PYTHON = {"processor", "api_key"}  # no options of the command line
DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "preprocessing": "transformers",
    "likelihood": False,
}


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
        name: In the plural, for sentences and tables.
        example: How one is named on the command line.
        logit: What its logits are.
        settings: Which of `Settings` it heeds.
        extra: What of this project's extras it needs, and the package that this brings.
    """

    name: str
    example: str
    logit: str
    settings: frozenset[str]
    extra: tuple[str, str] | None = None

    @property
    def needs(self) -> str:
        """The command that installs what is missing; empty where nothing is."""
        if self.extra is None or find_spec(self.extra[1]):
            return ""
        return f"pip install 'hard-positives[{self.extra[0]}]'"

    def check(self, settings: Settings) -> None:
        """Refuse what this kind would not heed, and say which package it lacks.

        Raises:
            ValueError: A setting that it does not heed.
            ImportError: Its extra is not installed.
        """
        for name, value in given(settings):
            if name not in self.settings:
                raise ValueError(
                    f"Expected {name} to be left out for {self.name}, got {value!r}. They heed: "
                    f"{', '.join(sorted(self.settings)) or 'no settings'}."
                )
        if self.extra:
            check_package(*self.extra, self.name)
        if settings.get("adapter"):
            check_package("peft", "peft", "adapters")


def check_model_name(model: Any, adapter: Any = None) -> None:
    """Raise unless names of a model and an adapter are folders', or within reach on the Hub.

    What is no name is no concern here, nor names that other libraries read (`open_clip:...`).

    Raises:
        FileNotFoundError: With what was looked for, and names that are near.
    """
    if isinstance(model, (str, Path)) and ":" not in str(model):
        expected = f"a folder, a Hub id or {EMBEDDED_MODEL}"
        check_name("model", str(model), expected, [EMBEDDED_MODEL])
        folder = Path(model)
        if folder.is_dir() and not any(folder.glob("*.json")):
            raise FileNotFoundError(
                f"Expected {model} to be the folder of a model, got one without config.json. Give "
                "the folder that save_pretrained wrote."
            )
    if isinstance(adapter, (str, Path)):
        check_name("model", str(adapter), "a folder or a Hub id")


def check_package(extra: str, package: str, purpose: str) -> None:
    """Refuse to begin without a package, and say which extra of this project brings it."""
    if find_spec(package) is None:
        raise ImportError(
            f"Expected the package {package} to be installed for {purpose}, got none. Run: "
            f"pip install 'hard-positives[{extra}]'"
        )


def given(settings: Settings) -> Iterable[tuple[str, Any]]:
    """Yield the settings that are not as if left out."""
    for name, value in settings.items():
        if value is not None and value != DEFAULTS.get(name):
            yield name, value


_LOADED = {"processor", "revision", "device", "dtype", "adapter", "model_kwargs"}
DUAL_ENCODER = Kind(
    "dual encoders",
    "openai/clip-vit-base-patch32",
    "scaled cosine of the two embeddings",
    frozenset(_LOADED | {"preprocessing"}),
)
MATCHING_HEAD = Kind(
    "matching heads",
    "Salesforce/blip-itm-base-coco",
    "match minus no match",
    frozenset(_LOADED),
)
GENERATIVE = Kind(
    "generative models",
    "Qwen/Qwen3-VL-2B-Instruct",
    "log P(Yes) - log P(No) of the next token, or log P(caption | image)",
    frozenset(_LOADED | {"question", "likelihood"}),
)
OPEN_CLIP = Kind(
    "models of open_clip",
    "open_clip:ViT-B-32/laion2b_s34b_b79k",
    "scaled cosine of the two embeddings",
    frozenset({"device", "dtype", "adapter"}),
    ("open-clip", "open_clip"),
)
SENTENCE_TRANSFORMER = Kind(
    "embedders of sentence-transformers",
    "sentence-transformers/clip-ViT-B-32",
    "cosine of the two embeddings",
    frozenset({"revision", "device", "dtype", "adapter", "model_kwargs"}),
    ("sentence-transformers", "sentence_transformers"),
)
RERANKER = Kind(
    "rerankers of sentence-transformers",
    "Qwen/Qwen3-VL-Reranker-2B",
    "score of the caption as query, before any activation",
    SENTENCE_TRANSFORMER.settings,
    SENTENCE_TRANSFORMER.extra,
)
BLIND = Kind(
    "language models that see no picture",
    "lm:openai-community/gpt2",
    "log P(caption): what text alone tells",
    frozenset({"revision", "device", "dtype", "adapter", "model_kwargs"}),
)
SERVER = Kind(
    "generative models behind a server",
    "server:Qwen/Qwen3-VL-32B-Instruct",
    "log P(Yes) - log P(No) of the first token",
    frozenset({"base_url", "api_key", "question"}),
)
PYTHON = Kind(
    "functions and objects of your own",
    "my_module:my_model",
    "whatever it returns",
    frozenset(),
)
KINDS = (
    DUAL_ENCODER,
    OPEN_CLIP,
    MATCHING_HEAD,
    GENERATIVE,
    SENTENCE_TRANSFORMER,
    RERANKER,
    BLIND,
    SERVER,
    PYTHON,
)


def kinds_table() -> Table:
    """Lay out all kinds: an example of each, what its logit is, what can be set."""
    table = Table(box=box.SIMPLE_HEAD, title="hard-positives evaluate MODEL")
    table.add_column("MODEL, for example; kind, logit, options")
    for kind in KINDS:
        described = f"[bold]{kind.example}[/bold]\n{kind.name}; logit: {kind.logit}"
        options = [f"--{name.replace('_', '-')}" for name in sorted(kind.settings - IN_PYTHON)]
        if options:
            described += f"\n[dim]{' '.join(options)}[/dim]"
        if kind.needs:
            described += f"\n[yellow]{escape(kind.needs)}[/yellow]"
        table.add_row(Padding(Text.from_markup(described), (0, 0, 1, 0)))
    return table
