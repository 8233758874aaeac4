"""The formula of fine-tuning: vectors of a batch in, one number out.

It knows of no model, no data and no processes (`trainer`). Its switches stand in a recipe
(`recipes`).
"""

import torch
from torch.nn.functional import cross_entropy


def contrastive_loss(
    image_embeds: torch.Tensor,
    caption_embeds: torch.Tensor,
    hard_positive_embeds: torch.Tensor,
    hard_negative_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    *,
    has_hard_positive: torch.Tensor,
    has_hard_negative: torch.Tensor,
    hard_negatives: str = "batch",
    alignment: float = 0.0,
    known_true: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Compute CLIP's loss with hard positives and hard negatives.

    With the image v_i, its positives P_i (the caption t_i and, if present, the hard positive p_i),
    the texts N_i that count as false of it (t_j and p_j of all other rows; hard negatives of the
    batch, or n_i alone), less those known to be true of it, and the scale s:

        image_i = mean_{x in P_i} -log(e^(s v_i x) / (e^(s v_i x) + sum_{y in N_i} e^(s v_i y)))
        text_i  = mean_{x in P_i} -log(e^(s v_i x) / sum_j e^(s v_j x))
        align_i = -log(e^(s p_i t_i) / sum_j e^(s p_i t_j)), over the rows that have a p_i
        loss    = mean_i (image_i + text_i) / 2 + alignment * mean_i align_i

    The sum in text_i leaves out the other images of which x is known to be true, the sum in align_i
    the t_j that are known to be true of v_i. So a caption and its hard positive never compete, and
    each row counts the same. Without hard positives, without `known_true` and with `"batch"` this
    is NegCLIP's loss; without hard negatives as well, CLIP's. It misleads where a text is true of
    another image and no row of the batch says so: it counts as false.

    Args:
        image_embeds: (B, D) unit vectors of B images, B at least 2.
        caption_embeds: (B, D) unit vectors of their captions.
        hard_positive_embeds: (B, D) unit vectors; rows without one hold anything finite.
        hard_negative_embeds: (B, D) likewise.
        logit_scale: What cosines are multiplied with, above 0.
        has_hard_positive: (B,) booleans.
        has_hard_negative: (B,) booleans.
        hard_negatives: `"batch"` or `"own"`.
        alignment: Weight of the last term, at least 0.
        known_true: (B, 3 B) booleans, from `texts_known_true`; of each image its own texts alone if
            left out.

    Returns:
        The loss, a scalar at least 0; lower is better. CLIP's is log B where all logits are equal.

    Examples:
        >>> embeds, rows = torch.eye(2), torch.tensor([False, False])
        >>> none = dict(has_hard_positive=rows, has_hard_negative=rows)
        >>> round(contrastive_loss(embeds, embeds, embeds, embeds, 1.0, **none).item(), 4)
        0.3133
        >>> has = dict(has_hard_positive=rows, has_hard_negative=~rows)
        >>> round(contrastive_loss(embeds, embeds, embeds, embeds.flip(0), 1.0, **has).item(), 4)
        0.6598

    Source:
        Hard negatives: Yuksekgonul et al., ICLR 2023, and `src/open_clip/loss.py` of
        github.com/vinid/neg_clip, commit e680f8e. Alignment: the sentence-level alignment of Kwon
        et al., NeurIPS 2025 (`modeling_clipwithdecoder.py` of github.com/JiH00nKw0n/READ-CLIP,
        commit b2f096c). The mean over positives outside of the logarithm: Khosla et al., NeurIPS
        2020, equation 2, but with the other positive left out of the denominator.
    """
    size = len(image_embeds)
    own = torch.eye(size, dtype=torch.bool, device=image_embeds.device)
    if known_true is None:
        known_true = torch.cat([own, own, torch.zeros_like(own)], dim=1)
    texts = torch.cat([caption_embeds, hard_positive_embeds, hard_negative_embeds])
    logits = logit_scale * image_embeds @ texts.T  # (B, 3 B)
    told_from = own if hard_negatives == "own" else torch.ones_like(own)
    there = torch.cat([~own, ~own & has_hard_positive, told_from & has_hard_negative], dim=1)
    # Not -inf, whose gradient is no number where nothing is left to compare with.
    nothing = torch.finfo(logits.dtype).min
    against = logits.masked_fill(~there | known_true, nothing).logsumexp(dim=1)

    # Other images of which a caption or a hard positive is true: its own stays in the sum.
    others = [true & ~own for true in known_true.split(size, dim=1)[:2]]
    image_losses, text_losses = [], []
    for of_positives, true in zip(logits.split(size, dim=1)[:2], others, strict=True):
        right = of_positives.diagonal()
        image_losses.append(torch.logaddexp(right, against) - right)
        text_losses.append(of_positives.masked_fill(true, nothing).logsumexp(dim=0) - right)
    # Rows without a hard positive count their caption alone.
    weights = torch.stack([1 / (1.0 + has_hard_positive), has_hard_positive / 2.0])
    losses = torch.stack(image_losses) + torch.stack(text_losses)
    loss = (weights.to(losses.dtype) * losses).sum() / size / 2
    if alignment and has_hard_positive.any():
        similar = logit_scale * hard_positive_embeds @ caption_embeds.T
        similar = similar.masked_fill(others[0], nothing)
        every = cross_entropy(similar, torch.arange(size, device=own.device), reduction="none")
        loss = loss + alignment * every[has_hard_positive].mean()
    return loss


def texts_known_true(content_ids: torch.Tensor) -> torch.Tensor:
    """Find which texts of a batch are true of which images, by what its rows say.

    A text is known to be true of an image if a row of the batch has the same image and, as its
    caption or its hard positive, the same text: five rows of one picture, or one caption of two
    pictures.

    Args:
        content_ids: (B, 4) integers of image, caption, hard positive and hard negative: equal where
            the content is, texts of all columns counted together; -1 where a row has none.

    Returns:
        (B, 3 B) booleans: captions, then hard positives, then hard negatives of the rows.

    Examples:
        >>> ids = torch.tensor([[0, 0, -1, 1], [0, 2, -1, -1], [1, 1, -1, 3]])
        >>> texts_known_true(ids).int()  # two rows of one picture; the third row's caption is n_0
        tensor([[1, 1, 0, 0, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0, 0, 0, 0],
                [0, 0, 1, 0, 0, 0, 1, 0, 0]], dtype=torch.int32)
    """
    images, texts = content_ids[:, 0], content_ids[:, 1:].T.flatten()
    said = texts[: 2 * len(images)]  # captions and hard positives
    of_image = (images[:, None] == images.repeat(2)) & (said >= 0)  # (B, 2 B)
    is_text = said[:, None] == texts  # (2 B, 3 B)
    return of_image.float() @ is_text.float() > 0
