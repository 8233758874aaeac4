"""The Hard Positives benchmark as a Hugging Face dataset: its builder and its Parquet form."""

from .builder import HardPositives
from .parquet import build_parquet

__all__ = ["HardPositives", "build_parquet"]
