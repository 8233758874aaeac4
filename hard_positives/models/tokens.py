"""Captions as a model reads them: token ids, refused where the model would misread in silence."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

# How a family wants its captions padded. "longest" where the padding behind a caption changes
# nothing: causal attention that is read at the end token (the first four), or an attention mask.
# All others get the padding that they were trained with, to the full length.
TRIMMED_FAMILIES = {"clip", "metaclip_2", "clipseg", "groupvit"} | {
    "chinese_clip",
    "altclip",
    "align",
    "blip",
}
MASKLESS_FAMILIES = {"siglip", "siglip2"}  # trained to attend to their padding


def tokenize(
    tokenizer: Any, captions: Sequence[str], config: Any, *, begin: int | None = None
) -> list[list[int]]:
    """Turn captions into token ids.

    Args:
        tokenizer: Of transformers.
        captions: Any number.
        config: That of the model's text tower.
        begin: A token to put before each caption, in the place of all that the tokenizer would add.

    Raises:
        ValueError: A caption is too long, or the tokenizer is not the model's.
    """
    if not captions:
        return []
    own = begin is None
    try:
        token_ids = tokenizer(list(captions), verbose=False, add_special_tokens=own)["input_ids"]
    except Exception as error:
        if type(error) is not Exception:  # all that tokenizers raises
            raise
        raise ValueError(
            f"Expected the tokenizer to read captions, got: {str(error).rstrip('.')}. Its files "
            "are damaged, or of another model: download or save it again."
        ) from error
    if begin is not None:
        token_ids = [[begin, *ids] for ids in token_ids]
    _check_lengths(captions, token_ids, max_length(tokenizer, config))
    _check_words(captions, token_ids, set(tokenizer.all_special_ids))
    _check_tokenizer(captions, token_ids, config)
    return token_ids


def max_length(tokenizer: Any, config: Any) -> int:
    """Return the most tokens that a caption can have."""
    # Some causal models have no end (ALiBi, Mamba).
    positions = getattr(config, "max_position_embeddings", None) or sys.maxsize
    return min(positions, tokenizer.model_max_length)


def refuse_special_tokens(tokenizer: Any, captions: Sequence[str]) -> None:
    """Refuse captions that a tokenizer would read as more than words.

    Raises:
        ValueError: A caption holds a token such as the end of a turn.
    """
    special = set(tokenizer.all_special_tokens)
    for caption in captions:
        found = [token for token in special if token in caption]
        if found:
            raise ValueError(
                f"Expected captions to be plain text, got the model's own token {found[0]!r} in "
                f"{caption[:80]!r}. Remove it."
            )


def pad(
    tokenizer: Any, token_ids: list[list[int]], config: Any, family: str
) -> dict[str, torch.Tensor]:
    """Pad a batch of captions as a family of dual encoders was trained."""
    return dict(
        tokenizer.pad(
            {"input_ids": token_ids},
            padding="longest" if family in TRIMMED_FAMILIES else "max_length",
            max_length=max_length(tokenizer, config),
            padding_side="right",
            return_attention_mask=family not in MASKLESS_FAMILIES,
            return_tensors="pt",
        )
    )


def batches_of_one_length(token_ids: list[list[int]], tokens: int) -> Iterator[list[int]]:
    """Cut captions into batches of at most so many tokens, in which no padding is computed.

    Yields:
        Places of captions of one length.
    """
    batch: list[int] = []
    for place in sorted(range(len(token_ids)), key=lambda place: len(token_ids[place])):
        length = len(token_ids[place])
        if batch and (len(batch) >= max(1, tokens // length) or length != len(token_ids[batch[0]])):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _check_lengths(captions: Sequence[str], token_ids: list[list[int]], limit: int) -> None:
    over = [place for place, ids in enumerate(token_ids) if len(ids) > limit]
    if over:
        raise ValueError(
            f"Expected captions to be at most {limit} tokens long, got {len(over)} longer ones, "
            f"such as {captions[over[0]][:80]!r} with {len(token_ids[over[0]])}. Shorten them: cut "
            "off, a hard positive and a hard negative could become the same."
        )


def _check_tokenizer(captions: Sequence[str], token_ids: list[list[int]], config: Any) -> None:
    highest = max(max(ids) for ids in token_ids)
    if highest >= config.vocab_size:
        raise ValueError(
            f"Expected the tokenizer to belong to the model, with ids below {config.vocab_size}, "
            f"got {highest}. Pass the model's own processor."
        )
    # Letter case and spaces may be lost to a tokenizer, but never half of the captions.
    distinct = len(set(map(tuple, token_ids)))
    if distinct < len(captions) / 2:
        raise ValueError(
            f"Expected the tokenizer to tell {len(captions)} captions apart, got {distinct} "
            "different token sequences. Load it with AutoTokenizer from the model's own folder, or "
            "take another model: shapes_clip knows the words of its own world alone."
        )
    if config.model_type == "clip_text_model":
        _check_end_token(captions, token_ids, config.eos_token_id)


def _check_words(captions: Sequence[str], token_ids: list[list[int]], special: set[int]) -> None:
    # Without its vocabulary's file a tokenizer of transformers is made with special tokens alone.
    without = [place for place, ids in enumerate(token_ids) if special.issuperset(ids)]
    if len(without) > len(captions) / 2:
        raise ValueError(
            f"Expected the tokenizer to know words of captions, got none in {len(without)} of "
            f"{len(captions)}, such as {captions[without[0]][:80]!r}. Its files are missing or of "
            "another model: download or save it again."
        )


def _check_end_token(captions: Sequence[str], token_ids: list[list[int]], end: int) -> None:
    # CLIP reads a caption at its end token; where there is none it reads the start token instead.
    # (2 marks old configurations, which read at the highest id.)
    without = [place for place, ids in enumerate(token_ids) if end not in ids]
    if without and end != 2:
        raise ValueError(
            f"Expected every caption to hold the end token {end}, got {len(without)} without, "
            f"such as {captions[without[0]][:80]!r}. Pass the model's own processor."
        )
