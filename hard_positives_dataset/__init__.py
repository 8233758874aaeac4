"""The Hard Positives benchmark as a Hugging Face dataset: its builder and its Parquet form."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builder import HardPositives
    from .parquet import build_parquet

__all__ = ["HardPositives", "build_parquet"]


def __getattr__(name: str) -> Any:  # both need `datasets`, which what stands beside them does not
    if name == "HardPositives":
        from .builder import HardPositives

        return HardPositives
    if name == "build_parquet":
        from .parquet import build_parquet

        return build_parquet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
