"""Model and rows in, logits out: each distinct image, caption or pair once.

    rows -> comparisons -> distinct images and captions -> embeddings -> float32 -> logits
                        -> distinct pairs                                        -> logits
                        -> distinct captions -> log P(caption)                   -> logits

`suite.comparisons` finds what is distinct, `models` knows how to embed or score a batch,
`encoding`, `matching` and `likelihoods` run over all of it, `cache` keeps what was computed.
Nothing here knows of accuracies (`hard_positive_metric`) or of saved results (`results`).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from typing_extensions import Unpack

from hard_positives.machine import Options
from hard_positives.models.blind import BlindModel
from hard_positives.models.kinds import Settings
from hard_positives.models.loading import Encoder, Model, load_model
from hard_positives.models.protocols import Embedder, PairScorer
from hard_positives.scoring.encoding import encode
from hard_positives.scoring.likelihoods import likelihoods
from hard_positives.scoring.matching import match_pairs
from hard_positives.suite.columns import (
    DIRECTIONS,
    IMAGE_TO_TEXT,
    TEXT_TO_IMAGE,
    TEXT_TO_TEXT,
    Columns,
)
from hard_positives.suite.comparisons import Comparisons, read_comparisons

NAMED = 5  # how many offenders an error names


def score(
    model: str | Path | PreTrainedModel | Embedder | PairScorer | Callable,
    dataset: Dataset,
    *,
    columns: Columns | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    cache: bool = True,
    progress: bool = True,
    **settings: Unpack[Settings],
) -> np.ndarray | list[np.ndarray]:
    """Score every row's image against every one of its captions, or its caption against images.

    A logit is what the model's own ``logits_per_image`` would be. Only the encoders run in
    ``dtype``; normalising and multiplying is always float32, since in half precision up to 87 % of
    near-identical captions tie. Embeddings are kept on disk (``hard-positives cache``), so that a
    killed run goes on where it stopped. Under ``accelerate launch`` every process encodes its share
    and returns all logits.

    Args:
        model: A Hub id, a folder, ``"shapes_clip"`` (the tiny one that comes along), a loaded model
            (then ``processor`` is needed; the model stays as it is, and is copied where device or
            dtype differ), any object that embeds images and captions or scores pairs
            (`hard_positives.Embedder`, `hard_positives.PairScorer`), or a function
            ``(images, captions) -> logits`` of B PIL images and C captions, returning (B, C); B is
            1 unless ``batch_size`` is given. Models of transformers are dual encoders with
            ``get_image_features`` and ``get_text_features``, matching heads such as
            ``BlipForImageTextRetrieval``, or generative ones with a chat template, such as
            ``Qwen3VLForConditionalGeneration``. ``"lm:"`` before the name of a causal language
            model gives log P(caption), whatever the picture. Towers may be compiled before, as by
            ``model.vision_model.compile(dynamic=True)``.
        dataset: Rows with an image and captions, such as
            ``datasets.load_dataset(folder, split="replace")``.
        columns: What the columns of the dataset are: `hard_positives.Columns`. Left out, those of
            the benchmark: `image`, `caption`, `hard_positive`, `hard_negative`.
        batch_size: Images per batch, and for each of them 200 tokens of captions (100 on a CPU), or
            all its pairs; chosen for the device if left out, halved when memory runs out.
        num_workers: Processes that decode images; chosen if left out.
        cache: Keep embeddings, or the logits of pairs, on disk and use those that are there. A
            model that cannot be described wholly (hooks, replaced methods, unknown classes) is
            scored without, and a warning says why.
        progress: Show progress bars where stderr is a terminal.
        **settings: How the model is loaded and asked, such as ``device="cuda"`` or
            ``dtype="bfloat16"``: see `hard_positives.models.kinds.Settings`.

    Returns:
        float32 array (N, K): row i belongs to row i of ``dataset``, column k to the k-th of its
        candidates, positives first; higher means a better match. Where the numbers of candidates
        differ, a list of N arrays; with pairs, the comparisons of a row one after another.

    Raises:
        TypeError: ``model`` is of no known kind, or an argument is of the wrong kind.
        ValueError: No rows, a missing column, a caption over the model's length, an image that
            cannot be read, logits that are not finite.

    Examples:
        >>> from datasets import load_dataset
        >>> rows = load_dataset("hard_positives_dataset", split="swap").select(range(8))
        >>> logits = score("shapes_clip", rows)
        >>> logits.shape, str(logits.dtype)
        ((8, 3), 'float32')
    """
    options = Options(batch_size, num_workers, cache, progress)
    # What is wrong with the rows shows before a model is loaded.
    comparisons = read_comparisons(dataset, columns)
    scorer = load_model(model, **settings)
    return comparisons.listed(score_comparisons(scorer, comparisons, options))


def score_comparisons(model: Model, comparisons: Comparisons, options: Options) -> np.ndarray:
    """Score comparisons with a loaded model; float32 (M,), all finite, or a ValueError."""
    if isinstance(model, Encoder):
        embeds = encode(model, comparisons, options)
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            cosines = _cosines(comparisons, *embeds)
        logits = (cosines * model.scale + model.bias).numpy()
    elif isinstance(model, BlindModel):
        # Whatever the picture; where pictures are compared, all of them tie.
        logits = likelihoods(model, comparisons, options)[comparisons.pairs[:, 1]]
    elif (comparisons.directions == DIRECTIONS.index(TEXT_TO_TEXT)).any():
        raise ValueError(
            "Expected a model that embeds captions for text_only, got one that scores an image and "
            "a caption together. Use a dual encoder."
        )
    else:
        logits = match_pairs(model, comparisons, options)
    wrong = np.flatnonzero(~np.isfinite(logits))
    if len(wrong):
        of_row = np.searchsorted(comparisons.offsets, wrong, side="right") - 1
        rows = np.unique(comparisons.rows[of_row])
        raise ValueError(
            f"Expected logits to be finite, got NaN or inf in {len(rows)} rows, first "
            f"{rows[:NAMED].tolist()}. Check the weights, or use dtype float32."
        )
    return logits


def _cosines(
    comparisons: Comparisons, image_embeds: torch.Tensor, text_embeds: torch.Tensor
) -> torch.Tensor:
    """Look up every candidate's unit vectors and multiply them in float32; (M,).

    By a sum a pair: a matrix product adds up in an order that depends on how many candidates there
    are, and equal captions would not tie.
    """
    cosines = torch.empty(len(comparisons.candidates))
    for direction, block, places in comparisons.blocks():
        anchors = image_embeds if direction == IMAGE_TO_TEXT else text_embeds
        candidates = image_embeds if direction == TEXT_TO_IMAGE else text_embeds
        products = candidates[comparisons.candidates[places]]  # a copy
        products *= anchors[comparisons.anchors[block], None]
        cosines[torch.from_numpy(places)] = products.sum(-1)
    return cosines
