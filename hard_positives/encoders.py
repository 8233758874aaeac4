"""Models: what each kind of image-text model needs in order to score the rows of an index.

* :class:`DualEncoder`, a tower for images and one for captions (CLIP and its kin): each distinct
  input is encoded once, kept on disk, and multiplied in float32.
* :class:`PairModel`, one network over image and caption together (BLIP's matching head): each
  distinct pair is scored once; nothing can be shared between pairs.
* :class:`CallableModel`, any function of images and captions, such as a few lines of open_clip.

All have ``score(rows, options) -> logits``; ``scoring.load_model`` chooses among them.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from hard_positives.cache import EmbeddingCache, cache_root, trim_cache
from hard_positives.rows import PreparedImages, RowIndex, open_image
from hard_positives_dataset.folders import write_whole

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
# The unit of the cache, of what a killed run does again, and of what processes share.
IMAGES_A_CHUNK, CAPTIONS_A_CHUNK = 256, 4096
MEASURED_FROM = 2000  # images on a CPU, from which measuring threads and batch sizes pays
# Of captions a batch, for each image a batch: what a CPU's cache holds, what fills a GPU.
TOKENS_AN_IMAGE_ON_CPU, TOKENS_AN_IMAGE = 100, 200


@dataclass(frozen=True)
class Options:
    """How to run, as :func:`hard_positives.score` takes it; none of it changes the logits."""

    batch_size: int | None = None
    num_workers: int | None = None
    cache: bool = True
    progress: bool = True

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"Expected {name} to be at least {least}, got {value}.")


class ImageTextModel(Protocol):
    """What all kinds of models have in common."""

    def score(self, rows: RowIndex, options: Options) -> np.ndarray:
        """Score every row; float32 (N, K)."""

    def describe(self) -> dict[str, Any]:
        """Return what the logits depend on, for a signature."""


@dataclass(frozen=True)
class DualEncoder:
    """A model with an image tower and a text tower, ready on its device, and its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    def describe(self) -> dict[str, Any]:
        """Return model, processor, dtype and device."""
        return self._description

    @cached_property
    def _description(self) -> dict[str, Any]:  # hashing the weights is worth doing once
        return _describe(self.model, self.processor)

    def score(self, rows: RowIndex, options: Options) -> np.ndarray:
        """Encode the distinct inputs of ``rows`` that are not cached; float32 (N, K)."""
        run = _EncodingRun(self, rows, options)
        with torch.inference_mode():
            return self.match(rows, *run.embeds())

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Turn captions into token ids, refusing what the model would misread in silence."""
        if not captions:
            return []
        token_ids = self.processor.tokenizer(list(captions), verbose=False)["input_ids"]
        _check_lengths(captions, token_ids, self.max_length)
        _check_tokenizer(captions, token_ids, self.model.config.get_text_config())
        return token_ids

    @property
    def max_length(self) -> int:
        """The most tokens that a caption can have."""
        positions = self.model.config.get_text_config().max_position_embeddings
        return min(positions, self.processor.tokenizer.model_max_length)

    def embed_captions(self, token_ids: list[list[int]]) -> torch.Tensor:
        """Encode one batch of captions into unit vectors, (captions, D) float32 on the device."""
        family = self.model.config.model_type
        inputs = self.processor.tokenizer.pad(
            {"input_ids": token_ids},
            padding="longest" if family in TRIMMED_FAMILIES else "max_length",
            max_length=self.max_length,
            padding_side="right",
            return_attention_mask=family not in MASKLESS_FAMILIES,
            return_tensors="pt",
        )
        return self._unit_vectors(self.model.get_text_features, dict(inputs))

    def embed_images(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Encode one batch of prepared images into unit vectors, (images, D) float32."""
        return self._unit_vectors(self.model.get_image_features, inputs)

    def _unit_vectors(self, tower: Callable, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {name: self._on_device(values) for name, values in inputs.items()}
        features = _halving(lambda batch: _pooled(tower(**batch)), inputs)
        return torch.nn.functional.normalize(features.float(), dim=-1)

    def _on_device(self, values: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype if values.is_floating_point() else None
        return values.to(self.device, dtype, non_blocking=True)

    def match(
        self, rows: RowIndex, image_embeds: torch.Tensor, text_embeds: torch.Tensor
    ) -> np.ndarray:
        """Look up every row's unit vectors and multiply them in float32; (N, K)."""
        cosines = [
            torch.einsum("nd,nkd->nk", image_embeds[of_image], text_embeds[of_captions])
            for of_image, of_captions in zip(
                torch.tensor(rows.image_of_row).split(4096),
                torch.tensor(rows.captions_of_row).split(4096),
                strict=True,
            )
        ]
        bias = getattr(self.model, "logit_bias", None)
        bias = 0.0 if bias is None else bias.detach().float().cpu()
        return (torch.cat(cosines) * self._logit_scale() + bias).numpy()

    def _logit_scale(self) -> torch.Tensor:
        if hasattr(self.model, "temperature"):  # ALIGN
            return 1 / self.model.temperature.detach().float().cpu()
        scale = self.model.logit_scale.detach().float().cpu()
        if hasattr(self.model, "max_log_logit_scale"):  # AIMv2
            scale = scale.clamp(0.0, self.model.max_log_logit_scale)
        return scale.exp()


@dataclass(frozen=True)
class _Plan:
    threads: int
    batch_size: int


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Have glibc keep what a layer frees for the next one, rather than ask the system again.

    What it keeps at most, it sets to twice the largest block below 32 MB that was freed. Without
    this, page faults take up to 7 % of the time of a ViT-B/32.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


@dataclass
class _EncodingRun:
    """One pass over the distinct inputs of an index: cache, batches, processes, progress."""

    encoder: DualEncoder
    rows: RowIndex
    options: Options
    cache: EmbeddingCache | None = field(init=False)
    known: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self):
        self.cache = _open_cache(self.encoder.describe()) if self.options.cache else None
        self.known = self.cache.load() if self.cache else {}
        # Captions of like length stand together, and no order depends on that of the rows: so
        # chunks are the same for any order, and in a run that goes on where another was killed.
        captions, digests = self.rows.captions, self.rows.image_digests
        by_length = sorted(range(len(captions)), key=lambda at: (len(captions[at]), captions[at]))
        by_digest = sorted(range(len(digests)), key=digests.__getitem__)
        self.captions = self._my_chunks(self.rows.caption_digests, by_length, CAPTIONS_A_CHUNK)
        self.images = self._my_chunks(digests, by_digest, IMAGES_A_CHUNK)
        self.files = PreparedImages(self.rows, self.encoder.processor.image_processor)
        self.plan = self._chosen_plan()
        self.batch_size = self.options.batch_size or self.plan.batch_size
        self._say()
        # Workers prepare images from here on, while captions are read and encoded.
        self.prepared = iter(self._image_loader())
        # All before anything is encoded: a caption that is too long should not cost a night.
        places = [place for chunk in self.captions for place in chunk]
        token_ids = self.encoder.tokenize([captions[place] for place in places])
        self.token_ids = dict(zip(places, token_ids, strict=True))

    def _my_chunks(self, digests: list[str], order: list[int], size: int) -> list[list[int]]:
        """Cut the order into chunks, keep what is not cached, and of that this process's share."""
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        missing = [[at for at in chunk if digests[at] not in self.known] for chunk in chunks]
        state = _processes()
        return [chunk for chunk in missing if chunk][state.process_index :: state.num_processes]

    def embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unit vectors of all images, (images, D), and all captions, (captions, D)."""
        fresh = self._encode()
        for part in gather_object([fresh]) if _processes().num_processes > 1 else [fresh]:
            self.known.update(part)
        if fresh and self.cache and is_main_process():  # now that no process adds to it
            trim_cache()
        images, captions = (
            torch.from_numpy(np.stack([self.known[digest] for digest in digests]))
            for digests in (self.rows.image_digests, self.rows.caption_digests)
        )
        return images, captions

    def _encode(self) -> dict[str, np.ndarray]:
        """Encode all chunks, captions in step with images.

        So a GPU has captions to encode while images are decoded, and no worker stands still until
        all captions are done.
        """
        fresh: dict[str, np.ndarray] = {}
        _keep_freed_memory()
        with (
            _threads(self.plan.threads),
            self._bar("captions", self.captions) as captions,
            self._bar("images", self.images) as images,
        ):
            steps = [
                (done / len(chunks), chunk, encode, bar, digests)
                for chunks, encode, bar, digests in (
                    (self.captions, self._encode_captions, captions, self.rows.caption_digests),
                    (self.images, self._encode_images, images, self.rows.image_digests),
                )
                for done, chunk in enumerate(chunks)
            ]
            for _, chunk, encode, bar, digests in sorted(steps, key=itemgetter(0)):
                keys, embeds = [digests[place] for place in chunk], encode(chunk, bar)
                if self.cache:
                    self.cache.add(keys, embeds)
                fresh.update(zip(keys, embeds, strict=True))
        return fresh

    def _bar(self, name: str, chunks: list[list[int]]) -> tqdm:
        # disable=None: no bar where stderr is not a terminal.
        hidden = None if self.options.progress and is_main_process() and chunks else True
        return tqdm(total=sum(map(len, chunks)), desc=name, unit=f" {name}", disable=hidden)

    def _encode_captions(self, chunk: list[int], bar: tqdm) -> np.ndarray:
        # Of one length exactly, so that no padding is computed.
        order = sorted(range(len(chunk)), key=lambda at: len(self.token_ids[chunk[at]]))
        parts = []
        for batch in self._batches_of_one_length([self.token_ids[chunk[at]] for at in order]):
            parts.append(self.encoder.embed_captions(batch))
            bar.update(len(batch))
        return torch.cat(parts)[np.argsort(order)].cpu().numpy()

    def _batches_of_one_length(self, token_ids: list[list[int]]) -> Iterator[list[list[int]]]:
        batch: list[list[int]] = []
        on_cpu = self.encoder.device.type == "cpu"
        tokens = TOKENS_AN_IMAGE_ON_CPU if on_cpu else TOKENS_AN_IMAGE
        for ids in token_ids:
            most = max(1, self.batch_size * tokens // len(ids))
            if batch and (len(batch) >= most or len(ids) != len(batch[0])):
                yield batch
                batch = []
            batch.append(ids)
        yield batch

    def _encode_images(self, chunk: list[int], bar: tqdm) -> np.ndarray:
        parts = []
        for batch in self._batches(chunk):
            parts.append(self.encoder.embed_images(next(self.prepared)))
            bar.update(len(batch))
        return torch.cat(parts).cpu().numpy()  # the one wait for the device in a chunk

    def _batches(self, chunk: list[int]) -> list[list[int]]:
        starts = range(0, len(chunk), self.batch_size)
        return [chunk[start : start + self.batch_size] for start in starts]

    def _image_loader(self) -> DataLoader:
        batches = [batch for chunk in self.images for batch in self._batches(chunk)]
        device = self.encoder.device.type
        workers = _chosen_workers(self.options.num_workers, sum(map(len, batches)), device)
        return DataLoader(
            self.files,
            batch_sampler=batches,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=device == "cuda",
        )

    def _chosen_plan(self) -> _Plan:
        """Measure on a CPU, where it pays; remembered, so that a resumed run computes alike."""
        threads = torch.get_num_threads()
        if self.encoder.device.type != "cpu":
            return _Plan(threads, 64)  # decoding is the wall; small batches keep all workers busy
        usual = _Plan(threads, 16)
        if len(self.rows.image_digests) < MEASURED_FROM:
            return usual
        path = self.cache and self.cache.folder / f"plan_for_{threads}_threads.json"
        if path and path.is_file():
            return _Plan(**json.loads(path.read_text()))
        if not self.images:
            return usual
        plan = self._fastest_plan(threads)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(path) as partial:
                partial.write_text(json.dumps(asdict(plan)))
        return plan

    def _fastest_plan(self, threads: int) -> _Plan:
        """Halve the threads as long as that helps (a container has fewer cores than it shows)."""
        self._seconds_an_image(_Plan(threads, 16))  # warms up
        best = self._seconds_an_image(_Plan(threads, 16))
        while threads > 1:
            halved = self._seconds_an_image(_Plan(threads // 2, 16))
            if halved > 0.95 * best:
                break
            threads, best = threads // 2, halved
        return min((_Plan(threads, size) for size in (16, 32, 64)), key=self._seconds_an_image)

    @torch.inference_mode()
    def _seconds_an_image(self, plan: _Plan) -> float:
        batch = default_collate([self.files[self.images[0][0]]] * plan.batch_size)
        with _threads(plan.threads):
            start = time.perf_counter()
            self.encoder.embed_images(batch)
            return (time.perf_counter() - start) / plan.batch_size

    def _say(self) -> None:
        if not (self.options.progress and is_main_process()):
            return
        images, captions = (sum(map(len, chunks)) for chunks in (self.images, self.captions))
        device = self.encoder.device.type
        threads = f", {self.plan.threads} threads" if device == "cpu" else ""
        tqdm.write(
            f"{device}{threads}, {str(self.encoder.model.dtype).removeprefix('torch.')}, "
            f"{self.batch_size} images a batch. To encode: {images:,} of "
            f"{len(self.rows.image_digests):,} distinct images, {captions:,} of "
            f"{len(self.rows.captions):,} distinct captions.",
            file=sys.stderr,
        )


@dataclass(frozen=True)
class PairModel:
    """A network that reads image and caption together and says whether they match.

    The logit is that of "match" minus that of "no match" where the head has both (BLIP), else the
    one that it has (ViLT). Not its softmax, which is 1.0 for both of two good captions.
    """

    model: PreTrainedModel
    processor: ProcessorMixin

    def describe(self) -> dict[str, Any]:
        """Return model, processor, dtype and device."""
        return _describe(self.model, self.processor)

    def score(self, rows: RowIndex, options: Options) -> np.ndarray:
        """Score each distinct pair of an image and a caption once; float32 (N, K)."""
        of_image = np.broadcast_to(rows.image_of_row[:, None], rows.captions_of_row.shape)
        pairs, of_pair = np.unique(
            np.stack([of_image, rows.captions_of_row], axis=-1).reshape(-1, 2),
            axis=0,
            return_inverse=True,
        )
        size = options.batch_size or (16 if self.model.device.type == "cpu" else 128)
        logits = []
        hidden = None if options.progress else True
        with torch.inference_mode(), tqdm(total=len(pairs), unit=" pairs", disable=hidden) as bar:
            for batch in np.array_split(pairs, range(size, len(pairs), size)):
                logits.append(self._match(rows, batch))
                bar.update(len(batch))
        return torch.cat(logits).numpy()[of_pair].reshape(rows.captions_of_row.shape)

    def _match(self, rows: RowIndex, pairs: np.ndarray) -> torch.Tensor:
        inputs = self.processor(
            images=[open_image(rows, place) for place in pairs[:, 0]],
            text=[rows.captions[place] for place in pairs[:, 1]],
            padding=True,
            return_tensors="pt",
        )
        inputs = inputs.to(self.model.device, self.model.dtype)
        outputs = _halving(lambda batch: _first_scores(self.model(**batch)), dict(inputs)).float()
        scores = outputs[:, 1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs[:, 0]
        return scores.cpu()


def _first_scores(outputs: Any) -> torch.Tensor:
    return outputs.itm_score if "itm_score" in outputs else outputs.logits


@dataclass(frozen=True)
class CallableModel:
    """Any function ``(images, captions) -> logits``.

    It gets B distinct PIL images (RGB) and C distinct captions, all that the rows of these images
    name, and returns (B, C) logits: an array, a tensor or nested lists.
    """

    function: Callable[[list, list[str]], Any]

    def describe(self) -> dict[str, Any]:
        """Return the function's name; what it depends on cannot be known from outside."""
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return {"model": {"id": name, "revision": None, "architecture": "callable"}}

    def score(self, rows: RowIndex, options: Options) -> np.ndarray:
        """Call the function for a batch of distinct images at a time; float32 (N, K)."""
        size = options.batch_size or 32
        logits = np.empty(rows.captions_of_row.shape, np.float32)
        order = np.argsort(rows.image_of_row, kind="stable")
        first_of_batch = np.searchsorted(
            rows.image_of_row[order], np.arange(size, len(rows.first_rows), size)
        )
        hidden = None if options.progress else True
        with tqdm(total=len(rows), unit=" rows", disable=hidden) as bar:
            for batch in np.split(order, first_of_batch):
                logits[batch] = self._score_batch(rows, batch)
                bar.update(len(batch))
        return logits

    def _score_batch(self, rows: RowIndex, batch: np.ndarray) -> np.ndarray:
        images, of_image = np.unique(rows.image_of_row[batch], return_inverse=True)
        captions, of_caption = np.unique(rows.captions_of_row[batch], return_inverse=True)
        matrix = self.function(
            [open_image(rows, place) for place in images],
            [rows.captions[place] for place in captions],
        )
        if isinstance(matrix, torch.Tensor):
            matrix = matrix.detach().float().cpu()
        matrix = np.asarray(matrix, dtype=np.float32)
        if matrix.shape != (len(images), len(captions)):
            raise ValueError(
                f"Expected the callable to return logits of shape {len(images), len(captions)} "
                f"(images, captions), got {matrix.shape}. Return one row an image."
            )
        return matrix[of_image[:, None], of_caption.reshape(len(batch), -1)]


def is_main_process() -> bool:
    """Say whether this process is the one that prints and writes, under ``accelerate launch``."""
    return _processes().is_main_process


def _processes() -> PartialState:
    return PartialState(cpu=not torch.accelerator.is_available())


def _describe(model: PreTrainedModel, processor: ProcessorMixin) -> dict[str, Any]:
    return {
        "model": {
            "id": model.name_or_path or type(model).__name__,
            "revision": getattr(model.config, "_commit_hash", None),
            "architecture": type(model).__name__,
            "weights_sha256": _weights_hash(model),
        },
        "processor": {
            "image_processor": type(processor.image_processor).__name__,
            "sha256": _processor_hash(processor),
        },
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def _weights_hash(model: PreTrainedModel) -> str:
    # Tensor by tensor, so that all cores can hash (hashlib lets go of the GIL).
    with ThreadPoolExecutor() as pool:
        names, tensors = zip(*sorted(model.state_dict().items()), strict=True)
        return hashlib.sha256(b"".join(pool.map(_tensor_hash, names, tensors))).hexdigest()


def _tensor_hash(name: str, values: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {values.dtype} {tuple(values.shape)}".encode())
    digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()


def _processor_hash(processor: ProcessorMixin) -> str:
    digest = hashlib.sha256(processor.image_processor.to_json_string().encode())
    tokenizer = processor.tokenizer
    digest.update(json.dumps(_tokenizer_state(tokenizer), sort_keys=True).encode())
    digest.update(f"{type(tokenizer).__name__} {tokenizer.special_tokens_map}".encode())
    return digest.hexdigest()


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    if not tokenizer.is_fast:
        return tokenizer.get_vocab()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # The last call's, not the tokenizer's own.
    return {name: part for name, part in state.items() if name not in ("padding", "truncation")}


def _open_cache(described: dict[str, Any]) -> EmbeddingCache:
    name = f"{described['model']['id']} ({described['dtype']}, {described['device']})"
    return EmbeddingCache(cache_root() / _cache_key(described), name)


def _cache_key(described: dict[str, Any]) -> str:
    """Name everything that an embedding depends on, apart from what is embedded."""
    packages = {name: version(name) for name in ("pillow", "tokenizers", "torch", "transformers")}
    identity = {**described, "machine": platform.machine(), **packages}
    identity["model"] = described["model"]["weights_sha256"]  # by whatever name it came
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _chosen_workers(num_workers: int | None, num_images: int, device: str) -> int:
    if num_workers is not None:
        return num_workers
    if num_images < 1000:  # starting processes takes longer than decoding
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 1 if device == "cpu" else min(16, cores)


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
