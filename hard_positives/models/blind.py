"""Language models that see no picture: what of a benchmark can be told from the text alone.

    a token that begins a text, the caption's tokens -> log P of each token behind those before it

A benchmark whose hard negatives are odd as text is solved by such a model without a look at any
picture (SugarCrepe's lesson: Hsieh et al., NeurIPS 2023, https://arxiv.org/abs/2306.14610).
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hard_positives.models.identity import Identity, identify_modules, state_hash, unknown_code
from hard_positives.models.inference import halving, inference
from hard_positives.models.tokens import batches_of_one_length, refuse_special_tokens, tokenize

TOKENS_PER_BATCH_ON_CPU, TOKENS_PER_BATCH = 1024, 8192
TOKENS_PER_IMAGE_ON_CPU, TOKENS_PER_IMAGE = 100, 200  # as dual encoders read beside an image
LOGITS_PER_BATCH = 2**27  # half a gigabyte in float32: a vocabulary can have 150,000 words
ROUNDING = 16  # steps of a type within which two logits are the same


@dataclass(frozen=True)
class BlindModel:
    """A causal language model of transformers: the logit is ``log P(caption)``.

    It is the sum over the caption's tokens of the log of each one's probability behind those before
    it, by a softmax in float32 whatever the type of the rest. Before the first token stands the
    tokenizer's own beginning of a text (BOS); where it has none, its end (EOS), which is what GPT-2
    saw before each text; a tokenizer without either is refused. No token ends the caption.

    Longer captions are less likely, as in all sums over tokens: that is part of what text alone
    tells. Pictures are neither decoded nor looked at.

    Attributes:
        model: Any `AutoModelForCausalLM`; left as it is, but for the mode while it scores.
        tokenizer: The model's own.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if self.begin is None:
            raise ValueError(
                f"Expected the tokenizer of {type(self.model).__name__} to have a token that "
                "begins or ends a text, got none: the first word would have no probability. Set "
                "tokenizer.bos_token."
            )

    @property
    def begin(self) -> int | None:
        """The token that stands before each caption."""
        own = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if own is None else own

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """The type that the model runs in."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def identity(self) -> Identity:
        """What the logits depend on; hashing the weights is worth doing once."""
        about = {
            "id": self.model.name_or_path or type(self.model).__name__,
            "attention": str(getattr(self.model.config, "_attn_implementation", "")),
            "tokenizer_sha256": state_hash(self.tokenizer),
        }
        identity = identify_modules(self.model, about, self.device, self.dtype)
        of_tokenizer = (f"its tokenizer has {what}" for what in unknown_code(self.tokenizer))
        problem = identity.problem or next(of_tokenizer, "")
        model = dict(identity.description["model"])
        model["revision"] = getattr(self.model.config, "_commit_hash", None)
        sees = {"logit": "log P(caption), summed over tokens", "begins_with": self.begin}
        described = {**identity.description, "model": model, "text_alone": sees}
        return replace(identity, description=described, problem=problem)

    def running(self) -> AbstractContextManager:
        """Run for outputs alone."""
        return inference(self.model)

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Turn captions into token ids behind the token that begins a text.

        Raises:
            ValueError: A caption is too long, makes no token, or holds one of the model's own; or
                the model is not causal.
        """
        refuse_special_tokens(self.tokenizer, captions)
        config = self.model.config.get_text_config()
        token_ids = tokenize(self.tokenizer, captions, config, begin=self.begin)
        for caption, ids in zip(captions, token_ids, strict=True):
            if len(ids) == 1:
                raise ValueError(
                    f"Expected every caption to make a token, got {caption[:80]!r}, which makes "
                    "none. Remove or repair it."
                )
        if token_ids:
            self._check_causal(max(token_ids, key=len))
        return token_ids

    def caption_batches(
        self, token_ids: list[list[int]], batch_size: int | None = None
    ) -> Iterator[list[int]]:
        """Cut captions into batches of one length, in which nothing is padded; yields places."""
        on_cpu = self.device.type == "cpu"
        tokens = TOKENS_PER_BATCH_ON_CPU if on_cpu else TOKENS_PER_BATCH
        if batch_size is not None:
            tokens = batch_size * (TOKENS_PER_IMAGE_ON_CPU if on_cpu else TOKENS_PER_IMAGE)
        words = self.model.config.get_text_config().vocab_size
        return batches_of_one_length(token_ids, min(tokens, LOGITS_PER_BATCH // words))

    def score_captions(self, token_ids: list[list[int]]) -> torch.Tensor:
        """Score n captions of one length, from `tokenize`; (n,) float32 on the CPU."""
        ids = {"input_ids": torch.tensor(token_ids, device=self.device)}
        return halving(self._log_likelihoods, ids).cpu()

    def log_likelihoods(self, captions: Sequence[str]) -> np.ndarray:
        """Score n captions at once, without keeping anything; (n,) float32, at most 0."""
        token_ids = self.tokenize(captions)
        found = np.empty(len(captions), np.float32)
        with self.running():
            for places in self.caption_batches(token_ids):
                found[places] = self.score_captions([token_ids[place] for place in places]).numpy()
        return found

    def _log_likelihoods(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = batch["input_ids"]
        logits = self.model(input_ids=ids).logits[:, :-1].float()  # (n, tokens - 1, words)
        own = ids[:, 1:].to(logits.device)  # a model may lie on several
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), own.flatten(), reduction="none"
        )
        return -losses.view(own.shape).sum(1)

    def _check_causal(self, ids: list[int]) -> None:
        """Refuse a model that reads what comes next (BERT): every word would be certain."""
        other = [*ids[:-1], (ids[-1] + 1) % self.model.config.get_text_config().vocab_size]
        with self.running():
            read = self.model(input_ids=torch.tensor([ids, other], device=self.device)).logits
        one, another = read[:, :-1].float()
        step = float(one.abs().max()) * torch.finfo(self.model.dtype).eps
        if float((one - another).abs().max()) > ROUNDING * step:
            raise ValueError(
                f"Expected {type(self.model).__name__} to read from left to right, got a model "
                "whose probability of a word depends on the words behind it. Choose a causal "
                "language model."
            )
