"""The distinct captions of comparisons, scored by a model that sees no picture.

    distinct captions -> chunks -> log P(caption), kept on disk

What is kept and shared is as for embeddings: a likelihood is a vector of one number. No picture is
opened here.
"""

from itertools import islice

import numpy as np
import torch

from hard_positives.machine import Options, processes
from hard_positives.models.blind import BlindModel
from hard_positives.scoring.cache import trim_cache
from hard_positives.scoring.sharing import (
    announce,
    look_up,
    open_cache,
    progress_bar,
    share_captions,
)
from hard_positives.suite.comparisons import Comparisons

CAPTIONS_PER_CHUNK = 4096  # what a killed run does again, and what processes share


def likelihoods(model: BlindModel, comparisons: Comparisons, options: Options) -> np.ndarray:
    """Score each distinct caption once; float32 (captions,), in the order of `comparisons`."""
    cache = open_cache(model, options)
    share = share_captions(comparisons, CAPTIONS_PER_CHUNK)
    look_up(cache, share)
    missing = [comparisons.captions[place] for chunk in share.missing for place in chunk]
    token_ids = iter(model.tokenize(missing))  # one too long is refused before any is scored
    announce(f"{model.device.type}, {model.dtype}, text alone", [share], options)
    with model.running(), progress_bar(share, options) as bar:
        for chunk in share.missing:
            of_chunk, order, parts = list(islice(token_ids, len(chunk))), [], []
            for places in model.caption_batches(of_chunk, options.batch_size):
                parts.append(model.score_captions([of_chunk[place] for place in places]))
                order.extend(places)
                bar.update(len(places))
            scored = torch.cat(parts)[:, None].numpy()
            cache.add(share.digests[chunk[order]], scored)
            share.put(chunk[order], scored)
    found = share.gathered().numpy()[:, 0]
    if cache.has_grown and processes().is_local_main_process:  # now that no process adds to it
        trim_cache()
    return found
