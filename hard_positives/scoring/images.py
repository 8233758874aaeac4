"""Distinct pictures as a model's preparation makes them; kept on disk for the next model, if asked.

Decoding and resizing is the wall of a small model. Models whose preparation is the same, such as
the checkpoints of one training, can share what it made.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from hard_positives.machine import Options
from hard_positives.models.pixels import Preparation
from hard_positives.scoring.cache import NAME_FILE, cache_root
from hard_positives.suite.comparisons import Comparisons
from hard_positives.suite.rows import open_image


@dataclass(frozen=True)
class ImageStore:
    """Prepared pictures on disk: a file for each, believed only where its seal is right.

    So a file that a killed run left half written, or that was damaged, is made again.

    Attributes:
        folder: Of one preparation, in one version of the libraries.

    Examples:
        >>> import tempfile
        >>> store = ImageStore(Path(tempfile.mkdtemp()))
        >>> store.add("ab" * 32, {"pixel_values": torch.tensor([7], dtype=torch.uint8)})
        >>> store.find("ab" * 32), store.find("cd" * 32)
        ({'pixel_values': tensor([7], dtype=torch.uint8)}, None)
    """

    folder: Path

    def find(self, digest: str) -> dict[str, torch.Tensor] | None:
        """Return what was made of the picture of this SHA-256, or None."""
        try:
            content = self._path(digest).read_bytes()
        except OSError:
            return None
        seal, content = content[:32], content[32:]
        return safetensors.torch.load(content) if seal == _seal(digest, content) else None

    def add(self, digest: str, inputs: dict[str, torch.Tensor]) -> None:
        """Keep what was made of a picture; where that fails, it is made again next time."""
        content = safetensors.torch.save(
            {name: values.contiguous() for name, values in inputs.items()}
        )
        with suppress(OSError):
            self._path(digest).write_bytes(_seal(digest, content) + content)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _seal(digest: str, content: bytes) -> bytes:
    return hashlib.sha256(bytes.fromhex(digest) + content).digest()


def open_store(preparation: Preparation, options: Options) -> ImageStore | None:
    """Open what was kept for a preparation; None where there is nothing and nothing is to be."""
    if not options.cache or preparation.name is None:
        return None
    store = ImageStore(cache_root() / f"images-{preparation.name[:32]}")
    with suppress(OSError):
        if options.keep_images:
            store.folder.mkdir(parents=True, exist_ok=True)
            (store.folder / NAME_FILE).write_text("prepared images", encoding="utf-8")
        os.utime(store.folder)  # what was used last is removed last
    return store if store.folder.is_dir() else None


@dataclass(frozen=True)
class PreparedImages(torch.utils.data.Dataset):
    """The distinct pictures of comparisons as a model gets them, for a `DataLoader`.

    Attributes:
        comparisons: Whose pictures.
        prepare: What is done to one.
        store: Where they may have been kept.
        keep: Whether to keep those that are not there.
    """

    comparisons: Comparisons
    prepare: Callable
    store: ImageStore | None = None
    keep: bool = False

    def __len__(self) -> int:
        return len(self.comparisons.pictures)

    def __getitem__(self, place: int) -> Any:
        digest = self.comparisons.image_digests[place]
        inputs = self.store and self.store.find(digest)
        if inputs is None:
            inputs = self.prepare(open_image(self.comparisons, place))
            if self.store and self.keep:
                self.store.add(digest, inputs)
        return inputs
