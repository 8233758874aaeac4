"""Model and rows in, logits (N, K) out: each distinct image and each distinct caption once.

The benchmark repeats itself: 27,443 rows of REPLACE hold 8,041 distinct images and 50,891 distinct
captions. So the two towers run over the distinct inputs, and a row's logits are looked up:

    rows -> distinct images, distinct captions -> embeddings -> float32 similarity -> logits

This file knows nothing of accuracies (``hard_positive_metric``) or of files (``evaluation``).
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

CAPTION_COLUMNS = ("caption", "hard_positive", "hard_negative")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Only where a caption's embedding does not depend on the padding behind it. Other families get the
# padding that they were trained with: to the full length.
TRIMMED_FAMILIES = ("clip",)
EMBEDDED_MODEL = "shapes_clip"
NAMED = 5  # how many offenders an error names


def score(
    model: str | Path | PreTrainedModel,
    dataset: Dataset,
    *,
    processor: ProcessorMixin | None = None,
    revision: str | None = None,
    caption_columns: Sequence[str] = CAPTION_COLUMNS,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Score every row's image against every one of its captions.

    A logit is ``logit_scale * cosine(image, caption) (+ logit_bias)``, as the model's own
    ``logits_per_image``. Only the encoders run in ``dtype``; normalising and multiplying is always
    float32, since in half precision up to 87 % of near-identical captions tie.

    Args:
        model: A Hub id, a folder, ``"shapes_clip"`` (the tiny one that comes along), or a loaded
            model with ``get_image_features`` and ``get_text_features`` (then ``processor`` is
            needed).
        dataset: N rows with a column ``image`` and the caption columns, such as
            ``datasets.load_dataset(folder, split="replace")``.
        processor: Prepares images and captions; read from ``model`` if that is an id or a folder.
        revision: Branch, tag or commit of a Hub id.
        caption_columns: The K columns to score, in the order of the result's columns.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; the fastest present if left out.
        dtype: The encoders' type: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        batch_size: Images a batch (and captions, times eight); chosen for the device if left out,
            halved when memory runs out.
        progress: Show progress bars where stderr is a terminal.

    Returns:
        float32 array (N, K). Row i belongs to row i of ``dataset``; higher means a better match.

    Raises:
        TypeError: ``model`` is no dual encoder, or an argument is of the wrong kind.
        ValueError: No rows, a missing column, a caption over the model's length, an image that
            cannot be read, logits that are not finite.

    Examples:
        >>> from datasets import load_dataset
        >>> rows = load_dataset("hard_positives_dataset", split="swap").select(range(8))
        >>> logits = score("shapes_clip", rows)
        >>> logits.shape, str(logits.dtype)
        ((8, 3), 'float32')
    """
    check_columns(dataset, caption_columns)
    encoder = load_encoder(
        model, processor=processor, revision=revision, device=device, dtype=dtype
    )
    return encoder.score(
        index_rows(dataset, caption_columns), batch_size=batch_size, progress=progress
    )


def check_columns(dataset: Dataset, caption_columns: Sequence[str] = CAPTION_COLUMNS) -> None:
    """Raise unless ``dataset`` has rows, an image column and the caption columns."""
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"Expected the rows to be a datasets.Dataset, got {type(dataset).__name__}. "
            "Pass one split, such as load_dataset(..., split='replace')."
        )
    missing = [name for name in ("image", *caption_columns) if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"Expected the dataset to have the columns {['image', *caption_columns]}, got "
            f"{dataset.column_names}. Rename or add {missing}."
        )
    if not isinstance(dataset.features["image"], Image):
        raise TypeError(
            f"Expected the column 'image' to be of type Image, got {dataset.features['image']}. "
            "Use dataset.cast_column('image', datasets.Image())."
        )
    if len(dataset) == 0:
        raise ValueError("Expected the dataset to have rows, got none. Check the split or filter.")


@dataclass(frozen=True)
class RowIndex:
    """What N rows need to have encoded, and where each row finds it.

    Attributes:
        images: A dataset whose column ``image`` holds undecoded files.
        first_rows: For each distinct image, a row of ``images`` that holds it.
        image_digests: SHA-256 of each distinct image's bytes.
        captions: The distinct captions.
        image_of_row: (N,) index into ``first_rows``.
        captions_of_row: (N, K) index into ``captions``.
    """

    images: Dataset
    first_rows: list[int]
    image_digests: list[str]
    captions: list[str]
    image_of_row: np.ndarray
    captions_of_row: np.ndarray

    def __len__(self) -> int:
        return len(self.image_of_row)


def index_rows(dataset: Dataset, caption_columns: Sequence[str] = CAPTION_COLUMNS) -> RowIndex:
    """Find the distinct images (by their bytes) and captions (by their text) of a dataset."""
    images = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
    digests = [hashlib.sha256(data).hexdigest() for data in _image_files(images)]
    distinct = {digest: place for place, digest in enumerate(dict.fromkeys(digests))}
    image_of_row = np.array([distinct[digest] for digest in digests])
    first_rows = np.unique(image_of_row, return_index=True)[1].tolist()

    columns = [list(dataset[name]) for name in caption_columns]
    _check_captions(columns, caption_columns)
    captions = {text: place for place, text in enumerate(dict.fromkeys(chain(*columns)))}
    captions_of_row = np.array([[captions[text] for text in column] for column in columns]).T
    return RowIndex(
        images, first_rows, list(distinct), list(captions), image_of_row, captions_of_row
    )


def _image_files(images: Dataset) -> Iterator[bytes]:
    cells = (cell for batch in images.iter(batch_size=64) for cell in batch["image"])
    for row, cell in enumerate(cells):
        yield _read_image_file(cell, row)


def _read_image_file(cell: dict[str, Any] | None, row: int) -> bytes:
    if cell is not None and cell["bytes"] is not None:
        return cell["bytes"]
    if cell is not None and cell["path"] is not None:
        return Path(cell["path"]).read_bytes()
    raise ValueError(f"Expected row {row} to have an image, got none. Remove or repair the row.")


def _check_captions(columns: list[list], names: Sequence[str]) -> None:
    for name, column in zip(names, columns, strict=True):
        wrong = [row for row, text in enumerate(column) if not isinstance(text, str)]
        if wrong:
            raise TypeError(
                f"Expected the column {name!r} to hold strings, got {column[wrong[0]]!r} in row "
                f"{wrong[0]} ({len(wrong)} such rows). Remove or repair these rows."
            )


@dataclass(frozen=True)
class DualEncoder:
    """A model with an image tower and a text tower, ready on its device, and its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def score(
        self, rows: RowIndex, *, batch_size: int | None = None, progress: bool = True
    ) -> np.ndarray:
        """Encode the distinct inputs of ``rows`` and return its logits, float32 (N, K)."""
        batch_size = _chosen_batch_size(batch_size, self.device)
        token_ids = self.tokenize(rows.captions)
        with torch.inference_mode():
            text_embeds = self.embed_captions(token_ids, 8 * batch_size, progress)
            image_embeds = self.embed_images(rows, batch_size, progress)
            logits = self.match(rows, image_embeds, text_embeds)
        _check_finite(logits)
        return logits

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Turn captions into token ids, refusing what the model would misread in silence."""
        token_ids = self.processor.tokenizer(list(captions), verbose=False)["input_ids"]
        config = self.model.config.get_text_config()
        _check_lengths(captions, token_ids, config.max_position_embeddings)
        _check_tokenizer(captions, token_ids, config)
        return token_ids

    def embed_captions(
        self, token_ids: list[list[int]], batch_size: int, progress: bool = True
    ) -> torch.Tensor:
        """Encode captions, shortest first so that a batch holds little padding; (captions, D)."""
        order = sorted(range(len(token_ids)), key=lambda place: len(token_ids[place]))
        batches = (
            self._padded([token_ids[place] for place in order[start : start + batch_size]])
            for start in range(0, len(order), batch_size)
        )
        embeds = _encode(self._text_features, batches, len(order), "captions", progress)
        return embeds[torch.argsort(torch.tensor(order))]

    def _padded(self, token_ids: list[list[int]]) -> dict[str, torch.Tensor]:
        trimmed = self.model.config.model_type in TRIMMED_FAMILIES
        length = self.model.config.get_text_config().max_position_embeddings
        return self.processor.tokenizer.pad(
            {"input_ids": token_ids},
            padding="longest" if trimmed else "max_length",
            max_length=None if trimmed else length,
            padding_side="right",
            return_tensors="pt",
        )

    def embed_images(self, rows: RowIndex, batch_size: int, progress: bool = True) -> torch.Tensor:
        """Decode, prepare and encode each distinct image; (images, D)."""
        files = _PreparedImages(rows, self.processor.image_processor)
        batches = (
            {"pixel_values": pixels}
            for pixels in DataLoader(files, batch_size, num_workers=0, collate_fn=torch.stack)
        )
        return _encode(self._image_features, batches, len(files), "images", progress)

    def match(
        self, rows: RowIndex, image_embeds: torch.Tensor, text_embeds: torch.Tensor
    ) -> np.ndarray:
        """Look up every row's embeddings and multiply them in float32; (N, K)."""
        scale = self.model.logit_scale.detach().float().exp().cpu()
        bias = getattr(self.model, "logit_bias", None)
        bias = 0.0 if bias is None else bias.detach().float().cpu()
        logits = [
            torch.einsum("nd,nkd->nk", image_embeds[of_image], text_embeds[of_captions])
            for of_image, of_captions in zip(
                torch.tensor(rows.image_of_row).split(4096),
                torch.tensor(rows.captions_of_row).split(4096),
                strict=True,
            )
        ]
        return (torch.cat(logits) * scale + bias).numpy()

    def _image_features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pixels = batch["pixel_values"].to(self.device, self.model.dtype, non_blocking=True)
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    def _text_features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return _pooled(
            self.model.get_text_features(
                **{name: values.to(self.device) for name, values in batch.items()}
            )
        )


class _PreparedImages(torch.utils.data.Dataset):
    """The distinct images as pixel tensors."""

    def __init__(self, rows: RowIndex, image_processor: Callable):
        self.rows = rows
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.rows.first_rows)

    def __getitem__(self, place: int) -> torch.Tensor:
        row = self.rows.first_rows[place]
        file = _read_image_file(self.rows.images[row]["image"], row)
        try:
            # Not datasets' own decoding, which rotates by EXIF: the published loader does not.
            image = PILImage.open(io.BytesIO(file)).convert("RGB")
        except (OSError, SyntaxError) as error:
            raise ValueError(
                f"Expected row {row} to hold a readable image, got {len(file)} bytes that are not "
                f"one ({error}). Repair or remove the row."
            ) from error
        return self.image_processor(image, return_tensors="pt")["pixel_values"][0]


def load_encoder(
    model: str | Path | PreTrainedModel,
    *,
    processor: ProcessorMixin | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> DualEncoder:
    """Load a dual encoder for scoring: in evaluation mode, in ``dtype``, on ``device``.

    See :func:`score` for the arguments.

    Raises:
        TypeError: The model has no image tower or no text tower, or ``processor`` is missing.
        ValueError: Unknown ``dtype`` or ``device``.
        OSError: The id or folder cannot be found (transformers' own message).
    """
    if dtype not in DTYPES:
        raise ValueError(f"Expected dtype to be one of {sorted(DTYPES)}, got {dtype!r}.")
    target = _chosen_device(device)
    if model == EMBEDDED_MODEL:
        model = Path(__file__).parent / EMBEDDED_MODEL
    if isinstance(model, (str, Path)):
        # The PIL backend gives the same pixels on every machine and needs no torchvision.
        processor = processor or AutoProcessor.from_pretrained(
            model, revision=revision, backend="pil"
        )
        _check_processor(processor)
        config = AutoConfig.from_pretrained(model, revision=revision)
        _check_dual_encoder(MODEL_MAPPING.get(type(config), type(config)))
        model = AutoModel.from_pretrained(model, revision=revision, dtype=DTYPES[dtype])
    elif isinstance(model, torch.nn.Module):
        _check_dual_encoder(type(model))
        _check_processor(processor)
    else:
        raise TypeError(
            f"Expected model to be a Hub id, a folder or a model, got {type(model).__name__}."
        )
    return DualEncoder(model.eval().to(target, DTYPES[dtype]), processor)


def _check_dual_encoder(model_class: type) -> None:
    if hasattr(model_class, "get_image_features") and hasattr(model_class, "get_text_features"):
        return
    raise TypeError(
        "Expected the model to be a dual encoder with get_image_features and get_text_features, "
        f"got {model_class.__name__}. Use a CLIP-like model."
    )


def _check_processor(processor: Any) -> None:
    if hasattr(processor, "tokenizer") and hasattr(processor, "image_processor"):
        return
    raise TypeError(
        "Expected processor to prepare images and captions (transformers.AutoProcessor), got "
        f"{type(processor).__name__}. Pass the processor that belongs to the model."
    )


def _chosen_device(device: str | None) -> torch.device:
    if device is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"Expected device to be one that this machine has, got {device!r} ({error}). "
            "Leave it out to have one chosen."
        ) from error


def _chosen_batch_size(batch_size: int | None, device: torch.device) -> int:
    if batch_size is None:
        return 32 if device.type == "cpu" else 256  # two cores are fastest at 16 to 64
    if batch_size < 1:
        raise ValueError(f"Expected batch_size to be at least 1, got {batch_size}.")
    return batch_size


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
            "different token sequences. Load it with AutoTokenizer from the model's own folder."
        )
    # CLIP reads a caption at its end token; where there is none it reads the start token instead.
    # (eos_token_id 2 marks old configurations, which read at the highest id.)
    end = config.eos_token_id
    if config.model_type == "clip_text_model" and end != 2:
        without = [place for place, ids in enumerate(token_ids) if end not in ids]
        if without:
            raise ValueError(
                f"Expected every caption to hold the end token {end}, got {len(without)} without, "
                f"such as {captions[without[0]][:80]!r}. Pass the model's own processor."
            )


def _check_finite(logits: np.ndarray) -> None:
    wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"Expected logits to be finite, got NaN or inf in {len(wrong)} rows, first "
            f"{wrong[:NAMED].tolist()}. Check the weights, or use dtype float32."
        )


def _encode(
    encode: Callable, batches: Iterable[dict], total: int, name: str, progress: bool
) -> torch.Tensor:
    """Run ``encode`` over batches; unit vectors, float32, on the CPU."""
    embeds = []
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=total, desc=name, unit=f" {name}", disable=None if progress else True) as bar:
        for batch in batches:
            features = _halving(encode, batch).float()
            embeds.append(torch.nn.functional.normalize(features, dim=-1).cpu())
            bar.update(len(features))
    return torch.cat(embeds)


def _halving(encode: Callable, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Encode a batch; where the device's memory is too small for it, in halves."""
    size = len(next(iter(batch.values())))
    try:
        return encode(batch)
    except torch.OutOfMemoryError:
        if size == 1:
            raise
    halves = [
        {name: values[part] for name, values in batch.items()}
        for part in (slice(size // 2), slice(size // 2, None))
    ]
    return torch.cat([_halving(encode, half) for half in halves])


def _pooled(features: Any) -> torch.Tensor:
    # transformers 5 returns an output object, its predecessors the tensor itself.
    return getattr(features, "pooler_output", features)
