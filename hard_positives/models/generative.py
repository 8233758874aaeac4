"""Generative models that are asked whether a picture shows what a caption says, or to say it.

    template, picture, words up to the caption -> keys and values, once per picture
    each caption, rest of the template         -> hidden states
    hidden states                              -> a logit, in float32

* `YesNoModel`: log P(Yes) - log P(No) of the next token. The softmax over all words cancels
  out; what is left is one product with the difference of two rows of the last layer. The question
  is that of VQAScore (Lin et al., ECCV 2024, https://arxiv.org/abs/2404.01291).
* `LikelihoodModel`: log P(caption | picture), the sum over its tokens, as VisualGPTScore has
  it (Lin et al., ICML 2024, https://arxiv.org/abs/2306.01879).

The end is computed in float32 whatever the type of the rest: in bfloat16 near-identical captions
tie.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from hard_positives.models.identity import Identity, identify
from hard_positives.models.inference import inference, on_device
from hard_positives.models.kinds import QUESTION
from hard_positives.models.tokens import refuse_special_tokens

ANSWERS = ("Yes", "No")
TOLERANCE = 1e-4  # in float32, of a logit by way of the prefix
SOME_TOKENS = 16  # on which the last layer is checked
VOCABULARY_PER_STEP = 8192


def check_question(question: str) -> None:
    """Refuse a question without a place for the caption."""
    if question.count("{}") != 1:
        raise ValueError(
            f"Expected the question to have one {{}} in the place of the caption, got {question!r}."
        )


@dataclass(frozen=True)
class Asked:
    """One picture and the question, as a model of transformers takes them; the caption is empty.

    Attributes:
        tokens: Fields with a value for each token: `input_ids`, `attention_mask`, ...; (1, T).
        picture: All other fields, such as `pixel_values`.
    """

    tokens: dict[str, torch.Tensor]
    picture: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Asking:
    """How a processor writes a question about a picture; for workers, without the model.

    Attributes:
        processor: With a chat template.
        question: With `{}` in the place of the caption; None where the caption is the answer.
    """

    processor: ProcessorMixin
    question: str | None = QUESTION

    def prompt(self, caption: str) -> str:
        """Write the conversation up to where the model goes on."""
        if self.question is not None:
            return self._written([_user(self.question.replace("{}", caption))], goes_on=False)
        if not caption:
            return self._written([_user()], goes_on=False)
        answer = {"role": "assistant", "content": [{"type": "text", "text": caption}]}
        return self._written([_user(), answer], goes_on=True)

    def _written(self, messages: list[Any], *, goes_on: bool) -> str:
        return self.processor.apply_chat_template(
            messages,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            tokenize=False,
        )

    def __call__(self, images: list[Image.Image]) -> list[Asked]:
        """Prepare each picture with an empty caption."""
        return [self.ask(image, "") for image in images]

    def ask(self, image: Image.Image, caption: str) -> Asked:
        """Prepare a picture with a caption, by the processor alone."""
        inputs = self.processor(text=[self.prompt(caption)], images=[image], return_tensors="pt")
        shape = inputs["input_ids"].shape
        per_token = {name for name, values in inputs.items() if values.shape == shape}
        return Asked(
            {name: inputs[name] for name in per_token},
            {name: values for name, values in inputs.items() if name not in per_token},
        )


def _user(*texts: str) -> dict[str, Any]:
    content = [{"type": "image"}, *({"type": "text", "text": text} for text in texts)]
    return {"role": "user", "content": content}


@dataclass(frozen=True)
class GenerativeModel(ABC):
    """A generative model of images and text: what its two ways of scoring have in common.

    Attributes:
        model: Any `AutoModelForImageTextToText` whose processor has a chat template.
        processor: With `image_processor` and `tokenizer`.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    _uses_prefix: list[bool] = field(default_factory=list, repr=False, kw_only=True)
    images_per_batch: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(
                f"Expected the processor of {type(self.model).__name__} to have a chat template, "
                "got none. Use a checkpoint that was tuned to answer, or set "
                "processor.chat_template."
            )
        blank, caption = Image.new("RGB", (64, 48)), "a red cube on a table"
        [asked], whole = self.asking([blank]), self.asking.ask(blank, caption)
        if not torch.equal(self._tokens(asked, caption)["input_ids"], whole.tokens["input_ids"][0]):
            raise ValueError(
                f"Expected the chat template of {type(self.model).__name__} to put the picture "
                "before the question, got one that does not. Set processor.chat_template."
            )

    @property
    @abstractmethod
    def asking(self) -> Asking:
        """How questions are written."""

    @property
    @abstractmethod
    def asked(self) -> dict[str, Any]:
        """What is asked, for the signature."""

    @abstractmethod
    def _first_read(self, asked: Asked, ids: list[int]) -> int:
        """Place of the first token whose hidden state is read."""

    @abstractmethod
    def _read(self, hidden: list[torch.Tensor], ids: list[list[int]]) -> torch.Tensor:
        """Turn the hidden states of the last tokens of n texts, (tokens, D) each, into n logits."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def way(self) -> str:
        """How pairs are computed, once some are; for people."""
        if not self._uses_prefix:
            return ""
        return (
            "What the captions of a picture begin with is computed once per picture."
            if self._uses_prefix[0]
            else "Every pair is computed as a whole: a common beginning gave other logits."
        )

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on, question and template among it."""
        identity = identify(self.model, self.processor, "transformers")
        asked = {**self.asked, "prompt": self.asking.prompt("{}")}
        return replace(identity, description={**identity.description, "asked": asked})

    @property
    def prepare(self) -> Callable[[list[Image.Image]], list[Asked]]:
        """What prepares pictures in a worker."""
        return self.asking

    def running(self) -> AbstractContextManager:
        """Run for outputs alone."""
        return inference(self.model)

    def check(self, captions: Sequence[str]) -> None:
        """Refuse captions that would end the user's turn or hold a picture."""
        refuse_special_tokens(self.processor.tokenizer, captions)

    def score_pairs(
        self, images: list[Asked], of_pair: np.ndarray, captions: list[str]
    ) -> torch.Tensor:
        """Score n captions, each for one of the prepared pictures; (n,) float32."""
        logits = torch.empty(len(captions))
        for place, asked in enumerate(images):
            of_image = np.flatnonzero(of_pair == place)
            texts = [self._tokens(asked, captions[at]) for at in of_image]
            logits[of_image] = self._score_image(asked, texts)
        return logits

    def _tokens(self, asked: Asked, caption: str) -> dict[str, torch.Tensor]:
        """Write a caption into a prepared question: as the processor does, without the picture.

        What stands behind the picture's tokens is tokenised apart from what stands before them, as
        tokenizers do at every special token.
        """
        empty, whole = self.processor.tokenizer(
            [self.asking.prompt(""), self.asking.prompt(caption)]
        )["input_ids"]
        ids = asked.tokens["input_ids"][0].tolist()
        # Behind the last of the picture's tokens, of which the written prompt has one only.
        same_end = min(_common(empty[::-1], ids[::-1]), len(empty) - _common(empty, ids))
        begin = len(empty) - same_end
        rest = torch.tensor(whole[begin:])
        written = {}
        for name, values in asked.tokens.items():
            kept = values[0, : len(ids) - same_end]
            added = rest if name == "input_ids" else values[0, -1].expand(len(rest))
            written[name] = torch.cat([kept, added])
        return written

    def _score_image(self, asked: Asked, texts: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        if not self._uses_prefix:
            self._check_last_layer(asked, texts[0])
            self._uses_prefix.append(self._prefix_is_exact(asked, texts))
        if self._uses_prefix[0] and len(texts) > 1:
            return self._by_prefix(asked, texts)
        return torch.cat([self._plain(asked, text) for text in texts])

    def _check_last_layer(self, asked: Asked, text: dict[str, torch.Tensor]) -> None:
        """Refuse a model that does more to its logits than its last layer does."""
        inputs = on_device(self.model, _as_batch(text) | asked.picture)
        some = text["input_ids"].unique()[-SOME_TOKENS:].tolist()
        own = self.model(**inputs).logits[0, -1, some].float()
        hidden = self.model.model(**inputs).last_hidden_state[0, -1]
        difference = float((own - _logits(self.model, hidden, some)).abs().max())
        step = float(own.abs().max()) * torch.finfo(self.model.dtype).eps
        if difference > max(4 * step, TOLERANCE):
            raise ValueError(
                f"Expected the logits of {type(self.model).__name__} to be those of its last "
                f"layer, got some that differ by {difference:.4f}. Models that change them "
                "afterwards cannot be asked; pass a function (images, captions) -> logits."
            )

    def _prefix_is_exact(self, asked: Asked, texts: list[dict[str, torch.Tensor]]) -> bool:
        """Try both ways on real pairs."""
        texts = texts if len(texts) > 1 else [*texts, self._tokens(asked, "something else")]
        plain = torch.cat([self._plain(asked, text) for text in texts])
        try:
            by_prefix = self._by_prefix(asked, texts)
        except Exception:  # each family has a cache of its own kind, and says in its own way
            return False
        most = TOLERANCE if self.model.dtype == torch.float32 else 0.1
        return bool((plain - by_prefix).abs().max() <= most)

    def _plain(self, asked: Asked, text: dict[str, torch.Tensor]) -> torch.Tensor:
        """One forward pass for one pair."""
        inputs = on_device(self.model, _as_batch(text) | asked.picture)
        hidden = self.model.model(**inputs).last_hidden_state[0]
        ids = text["input_ids"].tolist()
        return self._read([hidden[self._first_read(asked, ids) :]], [ids]).cpu()

    def _by_prefix(self, asked: Asked, texts: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """One forward pass for what all captions of a picture begin with, and one for the rest."""
        ids = [text["input_ids"].tolist() for text in texts]
        reads = [self._first_read(asked, of_text) for of_text in ids]
        length = min(_common(min(ids), max(ids)), *reads)
        prefix = on_device(self.model, _as_batch(texts[0], slice(length)) | asked.picture)
        kept = copy.deepcopy(self.model.model(**prefix, use_cache=True).past_key_values)
        kept.batch_repeat_interleave(len(texts))
        rest = {
            name: torch.nn.utils.rnn.pad_sequence(
                [text[name][length:] for text in texts], batch_first=True
            )
            for name in texts[0]
        }
        del rest["attention_mask"]  # no token sees the padding, which stands behind it
        outputs = self.model.model(**on_device(self.model, rest), past_key_values=kept)
        hidden = [
            states[read - length : len(of_text) - length]
            for states, read, of_text in zip(outputs.last_hidden_state, reads, ids, strict=True)
        ]
        return self._read(hidden, ids).cpu()


@dataclass(frozen=True)
class YesNoModel(GenerativeModel):
    """Asked about each pair: log P(Yes) - log P(No).

    Attributes:
        question: With `{}` in the place of the caption.
    """

    question: str = QUESTION

    def __post_init__(self) -> None:
        check_question(self.question)
        super().__post_init__()
        _ = self.answers  # refused before anything is scored

    @cached_property
    def answers(self) -> list[int]:
        """The tokens of Yes and No."""
        tokenizer = self.processor.tokenizer
        tokens = [tokenizer.encode(answer, add_special_tokens=False) for answer in ANSWERS]
        if any(len(of_answer) != 1 for of_answer in tokens) or tokens[0] == tokens[1]:
            raise ValueError(
                f"Expected {' and '.join(ANSWERS)} to be one token each, got {tokens}. This "
                "tokenizer cannot be asked for them."
            )
        return [token for [token] in tokens]

    @property
    def asking(self) -> Asking:
        """How questions are written."""
        return Asking(self.processor, self.question)

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked, for the signature."""
        answers = dict(zip(ANSWERS, self.answers, strict=True))
        return {"question": self.question, "answers": answers}

    def _first_read(self, asked: Asked, ids: list[int]) -> int:
        return len(ids) - 1

    def _read(self, hidden: list[torch.Tensor], ids: list[list[int]]) -> torch.Tensor:
        last = torch.stack([of_text[-1] for of_text in hidden])
        yes, no = _logits(self.model, last, self.answers).T
        return yes - no


@dataclass(frozen=True)
class LikelihoodModel(GenerativeModel):
    """Made to say each caption of a picture: log P(caption | picture), the sum over its tokens."""

    @property
    def asking(self) -> Asking:
        """How the picture is shown."""
        return Asking(self.processor, None)

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked, for the signature."""
        return {"question": None, "logit": "log P(caption | image), summed over tokens"}

    def check(self, captions: Sequence[str]) -> None:
        """Refuse also captions that no token of their own begins."""
        super().check(captions)
        begin, *whole = self.processor.tokenizer(
            [self.asking.prompt(caption) for caption in ("", *captions)]
        )["input_ids"]
        for caption, ids in zip(captions, whole, strict=True):
            if ids[: len(begin)] != begin or len(ids) == len(begin):
                raise ValueError(
                    "Expected every caption to begin with a token of its own, got "
                    f"{caption[:80]!r}, which makes none behind the chat template, or one with the "
                    "template's end. Ask a question instead, or set processor.chat_template."
                )

    def _first_read(self, asked: Asked, ids: list[int]) -> int:
        return asked.tokens["input_ids"].shape[1] - 1

    def _read(self, hidden: list[torch.Tensor], ids: list[list[int]]) -> torch.Tensor:
        numbers = [len(of_text) - 1 for of_text in hidden]
        tokens = [
            token for text, n in zip(ids, numbers, strict=True) for token in text[len(text) - n :]
        ]
        head = self.model.get_output_embeddings()
        states = torch.cat([of_text[:-1] for of_text in hidden]).to(head.weight.device)
        # A vocabulary of 150,000 in float32 would take more memory than some models.
        starts = range(0, len(head.weight), VOCABULARY_PER_STEP)
        parts = [slice(start, start + VOCABULARY_PER_STEP) for start in starts]
        total = [_logits(self.model, states, part).logsumexp(1) for part in parts]
        own = (states.float() * head.weight[tokens].float()).sum(1)
        if getattr(head, "bias", None) is not None:
            own = own + head.bias[tokens].float()
        log_probabilities = own - torch.stack(total).logsumexp(0)
        return torch.stack([of_text.sum() for of_text in log_probabilities.split(numbers)])


def _logits(
    model: PreTrainedModel, hidden: torch.Tensor, tokens: list[int] | slice
) -> torch.Tensor:
    """Apply the last layer to hidden states (..., D), for some tokens; float32."""
    head = model.get_output_embeddings()
    hidden = hidden.to(head.weight.device)  # a model may lie on several
    logits = hidden.float() @ head.weight[tokens].float().T
    bias = getattr(head, "bias", None)
    return logits if bias is None else logits + bias[tokens].float()


def _as_batch(text: dict[str, torch.Tensor], part: slice = slice(None)) -> dict[str, torch.Tensor]:
    return {name: values[None, part] for name, values in text.items()}


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Count what two sequences begin with; of many, the least and the greatest tell for all."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in same)
