"""Embeddings on disk, so that nothing is encoded twice, also after a kill.

A folder holds what one model, processor and dtype made; `identity` decides what belongs in its
name. A chunk is a safetensors file named by the SHA-256 of its bytes and put in place by a rename,
so a killed run leaves whole chunks only, several processes can write at once, and a chunk that was
damaged or put there by somebody else does not pass for one. Others may empty the cache at any time.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError

from hard_positives_dataset.folders import write_whole

NAME_FILE = "name.txt"
SIZE_LIMIT = 20 * 2**30  # bytes; a ViT-B/32 takes 120 MB for the whole of REPLACE


def cache_root() -> Path:
    """Return where embeddings are kept: `HARD_POSITIVES_CACHE`, or beside the Hub's own cache."""
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
        >>> cache.add(np.array([[1, 1], [2, 2]], np.uint8), np.eye(2, dtype=np.float32))
        >>> found, embeds = cache.find(np.array([[2, 2], [3, 3]], np.uint8))
        >>> found.tolist(), embeds.tolist()
        ([True, False], [[0.0, 1.0]])
    """

    folder: Path
    name: str = "unknown"

    def find(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up inputs; chunks that are not whole are removed.

        Args:
            digests: (n, 32) uint8, SHA-256 of n inputs.

        Returns:
            Which of them are there, (n,) bool, and the vectors of these, (found, D) float32.
        """
        places = {digest.tobytes(): place for place, digest in enumerate(digests)}
        found = np.zeros(len(digests), bool)
        embeds: np.ndarray | None = None
        for keys, vectors in self._chunks():
            here = [(places.get(key.tobytes()), row) for row, key in enumerate(keys)]
            wanted = [pair for pair in here if pair[0] is not None]
            if not wanted:
                continue
            if embeds is None:
                embeds = np.empty((len(digests), vectors.shape[1]), np.float32)
            at, rows = map(list, zip(*wanted, strict=True))
            embeds[at] = vectors[rows]
            found[at] = True
        if embeds is None:
            return found, np.empty((0, 0), np.float32)
        with suppress(OSError):  # a cache can be read-only
            os.utime(self.folder)  # what was used last is removed last
        return found, embeds[found]

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for path in sorted(_listed(self.folder, "*.safetensors")):
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # emptied in the meantime
                continue
            chunk = _parse_chunk(content) if _names_content(path, content) else None
            if chunk is None:
                with suppress(OSError):
                    path.unlink()
            else:
                yield chunk["digests"], chunk["embeds"]

    def add(self, digests: np.ndarray, embeds: np.ndarray) -> None:
        """Keep a chunk of vectors.

        Args:
            digests: (n, 32) uint8, SHA-256 of n inputs.
            embeds: (n, D) float32.
        """
        content = safetensors.numpy.save(
            {"digests": np.ascontiguousarray(digests), "embeds": np.ascontiguousarray(embeds)}
        )
        name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
        try:
            self._write(name, content)
        except (FileNotFoundError, FileExistsError):  # emptied in the meantime
            if self.folder.is_file():
                raise

    def _write(self, name: str, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / NAME_FILE
        if not about.exists():
            with write_whole(about) as partial:
                partial.write_text(self.name, encoding="utf-8")
        with write_whole(self.folder / name) as partial:
            partial.write_bytes(content)


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except FileNotFoundError:  # emptied while it was listed, which Python 3.11 does not expect
        return []


def _names_content(path: Path, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == path.stem


def _parse_chunk(content: bytes) -> dict[str, np.ndarray] | None:
    try:
        chunk = safetensors.numpy.load(content)
    except SafetensorError:
        return None
    digests, embeds = chunk.get("digests"), chunk.get("embeds")
    fits = digests is not None and embeds is not None and len(digests) == len(embeds)
    return chunk if fits else None


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
    for folder in _listed(cache_root(), "*/"):
        try:
            about = folder / NAME_FILE
            name = about.read_text(encoding="utf-8") if about.is_file() else "unknown"
            size = sum(path.stat().st_size for path in folder.iterdir())
            yield CachedModel(folder, name, size, folder.stat().st_mtime)
        # Emptied in the meantime; or no folder: "*/" finds files, too, before Python 3.11.
        except (FileNotFoundError, NotADirectoryError):
            continue


def trim_cache(limit: int = SIZE_LIMIT) -> list[CachedModel]:
    """Remove the models used longest ago until the cache holds at most `limit` bytes.

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
