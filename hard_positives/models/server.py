"""A generative model behind an OpenAI-compatible server that gives log-probabilities.

    picture as PNG, question with a caption -> the likeliest first tokens -> log P(Yes) - log P(No)

For what outgrows one machine: vLLM, SGLang and others serve the model; `servers` asks, many pairs
at a time, those of a picture side by side, so that the server's cache of beginnings serves all its
captions. Nobody can see what stands behind a name: what the server itself says of the model is part
of what logits are kept under, and after a change that it does not tell, empty the cache
(`hard-positives cache --empty`) or score with `cache=False`.
"""

import base64
import io
import json
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from hard_positives.models.generative import ANSWERS, check_question
from hard_positives.models.identity import Identity
from hard_positives.models.kinds import QUESTION, Settings
from hard_positives.names import public_url
from hard_positives.servers import ChatServer

SERVER_PREFIX = "server:"
TOP = 20  # the most that OpenAI's protocol allows
_TOLD = ("id", "root", "parent", "owned_by", "max_model_len")  # other fields are new in each answer


def load_server(name: str, settings: Settings) -> "ServerModel":
    """Find a model on its server.

    Raises:
        ValueError: No address, or a model that the server does not list.
        ConnectionError: No usable answer.
    """
    base_url = settings.get("base_url")
    if not base_url:
        raise ValueError(
            f"Expected base_url to be the address of the server of {name}, such as "
            "http://localhost:8000/v1, got none. Give --base-url."
        )
    key = settings.get("api_key") or os.environ.get("HARD_POSITIVES_API_KEY")
    server = ChatServer(name.removeprefix(SERVER_PREFIX), base_url, key)
    listed = {model.get("id"): model for model in server.list_models()}
    if server.model not in listed:
        raise ValueError(
            f"Expected the model to be one that {public_url(base_url)} serves, "
            f"{sorted(map(str, listed))}, got {server.model!r}."
        )
    told = {key: listed[server.model].get(key) for key in _TOLD}
    return ServerModel(server, settings.get("question") or QUESTION, told)


@dataclass(frozen=True)
class ServerModel:
    """Asked about each pair: log P(Yes) - log P(No) of the first token of the answer.

    The tokens are exactly "Yes" and "No", as where the model runs here. A server gives only the
    likeliest ones. Where one of the two is not among them, its probability is at most the smallest
    given, which makes the logit a bound; such pairs are counted, and a warning tells.

    Attributes:
        server: Knows the address and the model's name.
        question: With `{}` in the place of the caption.
        told: What the server says of the model.
    """

    server: ChatServer
    question: str
    told: dict[str, Any]
    device: ClassVar[torch.device] = torch.device("cpu")
    images_per_batch: ClassVar[int] = 8  # several dozen requests
    images_per_chunk: ClassVar[int] = 8  # requests can cost money: few are lost with a killed run

    def __post_init__(self) -> None:
        check_question(self.question)

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on, as far as the server tells."""
        model = {
            "id": f"{SERVER_PREFIX}{self.server.model}",
            "revision": None,
            "architecture": "server",
            "base_url": public_url(self.server.base_url),
            "told": self.told,
        }
        asked = {
            "question": self.question,
            "answers": list(ANSWERS),
            "top_logprobs": TOP,
            "images": "PNG",
        }
        return Identity({"model": model, "asked": asked}, "")

    @property
    def prepare(self) -> Callable[[list[Image.Image]], list[str]]:
        """What prepares pictures in a worker."""
        return _as_addresses

    def running(self) -> AbstractContextManager:
        """Nothing runs here."""
        return torch.no_grad()

    def check(self, captions: Sequence[str]) -> None:
        """Take all captions; the server writes its own template."""

    def score_pairs(
        self, images: list[str], of_pair: np.ndarray, captions: list[str]
    ) -> np.ndarray:
        """Score n captions, each for one of the pictures; (n, 2): logit, and whether a bound."""
        requests = [
            self._request(images[place], caption)
            for place, caption in zip(of_pair, captions, strict=True)
        ]
        answers = self.server.complete_all(requests, _first_tokens)
        pairs = zip(captions, answers, strict=True)
        return np.array([self._logit(caption, tokens) for caption, tokens in pairs], np.float32)

    def remark(self, logits: np.ndarray) -> None:
        """Warn of bounds among the logits (M, 2) of a run."""
        number = int(logits[:, 1].sum())
        if number:
            warnings.warn(
                f"{number:,} of {len(logits):,} logits are bounds: Yes or No was not among the "
                f"{TOP} likeliest tokens that the server gives. Their order among each other is "
                "not known.",
                stacklevel=2,
            )

    def _request(self, image: str, caption: str) -> dict[str, Any]:
        text = self.question.replace("{}", caption)
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": text},
        ]
        return {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP,
        }

    def _logit(self, caption: str, tokens: dict[str, float] | None) -> tuple[float, bool]:
        if not tokens:
            raise ValueError(
                f"Expected {public_url(self.server.base_url)} to give log-probabilities of the "
                "likeliest tokens, got none. Start the server with them, or score the model here."
            )
        yes, no = (tokens.get(answer) for answer in ANSWERS)
        if yes is None and no is None:
            raise ValueError(
                f"Expected the model to answer Yes or No, got {list(tokens)[:5]} as the likeliest "
                f"first tokens for the caption {caption[:80]!r}. Set a question that it answers so."
            )
        least = min(tokens.values())
        is_bound = yes is None or no is None
        return (least if yes is None else yes) - (least if no is None else no), is_bound


def _as_addresses(images: list[Image.Image]) -> list[str]:
    """Write pictures as data URLs, without loss."""
    addresses = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        addresses.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
    return addresses


def _first_tokens(body: bytes) -> dict[str, float] | None:
    """The likeliest first tokens of an answer and their log-probabilities; None without any."""
    try:
        [choice, *_] = json.loads(body)["choices"]
        content = (choice.get("logprobs") or {}).get("content") or []
        found: dict[str, float] = {}
        for one in content[0]["top_logprobs"] if content else ():
            found.setdefault(one["token"], float(one["logprob"]))  # the likeliest of one text
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError("an answer that is no chat completion") from None
    return found or None
