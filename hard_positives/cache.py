"""Embeddings on disk, in chunks that are whole or not there.

A folder holds what one model, processor and dtype made; ``encoders`` decides what belongs in its
name. A chunk is a safetensors file named by the SHA-256 of its bytes and put in place by a rename,
so a killed run leaves whole chunks only, several processes can write at once, and a chunk that was
damaged or put there by somebody else does not pass for one.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from huggingface_hub.constants import HF_HOME

from hard_positives_dataset.folders import write_whole

_NAME_FILE = "name.txt"
SIZE_LIMIT = 20 * 2**30  # bytes; a ViT-B/32 takes 120 MB for the whole of REPLACE


def cache_root() -> Path:
    """Return where embeddings are kept: ``HARD_POSITIVES_CACHE``, or beside the Hub's own cache."""
    return Path(os.environ.get("HARD_POSITIVES_CACHE") or Path(HF_HOME) / "hard_positives")


@dataclass(frozen=True)
class EmbeddingCache:
    """The embeddings of one model: unit vectors (float32) by the digest of what was encoded.

    Attributes:
        folder: Where the chunks are; made when the first is added.
        name: What made them, for people.

    Examples:
        >>> import tempfile
        >>> cache = EmbeddingCache(Path(tempfile.mkdtemp()) / "model")
        >>> cache.add(["aa", "bb"], np.eye(2, dtype=np.float32))
        >>> cache.load()["bb"].tolist()
        [0.0, 1.0]
    """

    folder: Path
    name: str = "unknown"

    def load(self) -> dict[str, np.ndarray]:
        """Return every vector by its digest; chunks that are not whole are removed."""
        vectors: dict[str, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            chunk = _read_chunk(path)
            if chunk is None:
                path.unlink(missing_ok=True)
                continue
            digests = [digest.tobytes().hex() for digest in chunk["digests"]]
            vectors.update(zip(digests, chunk["embeds"], strict=True))
        if vectors:
            os.utime(self.folder)  # what was used last is removed last
        return vectors

    def add(self, digests: Sequence[str], embeds: np.ndarray) -> None:
        """Keep a chunk of vectors.

        Args:
            digests: Hexadecimal digests of n inputs.
            embeds: float32 (n, D).
        """
        keys = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), -1)
        content = safetensors.numpy.save({"digests": keys, "embeds": embeds})
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _NAME_FILE).write_text(self.name, encoding="utf-8")
        name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
        with write_whole(self.folder / name) as partial:
            partial.write_bytes(content)


def _read_chunk(path: Path) -> dict[str, np.ndarray] | None:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.stem:
        return None
    return safetensors.numpy.load(content)


@dataclass(frozen=True)
class CachedModel:
    """One folder of the cache: what made it, its size in bytes and when it was last used."""

    folder: Path
    name: str
    size: int
    last_used: float


def list_cache() -> list[CachedModel]:
    """Return what is cached, last used first."""
    return sorted(_cached_models(), key=lambda model: -model.last_used)


def _cached_models() -> Iterator[CachedModel]:
    for folder in cache_root().glob("*/"):
        about = folder / _NAME_FILE
        name = about.read_text(encoding="utf-8") if about.is_file() else "unknown"
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        yield CachedModel(folder, name, size, folder.stat().st_mtime)


def trim_cache(limit: int = SIZE_LIMIT) -> list[CachedModel]:
    """Remove the models used longest ago until the cache holds at most ``limit`` bytes.

    Args:
        limit: Bytes; 0 empties the cache.

    Returns:
        What was removed.
    """
    kept, removed = 0, []
    for model in list_cache():
        kept += model.size
        if kept > limit:
            shutil.rmtree(model.folder, ignore_errors=True)
            removed.append(model)
    return removed
