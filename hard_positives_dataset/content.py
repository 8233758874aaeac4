"""One hash for the content of rows: what a card states, a result records and a reader compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


class ContentHash:
    """SHA-256 over rows in their order, whatever file or process they come from.

    Examples:
        >>> content = ContentHash()
        >>> content.add({"caption": "a cat", "id": "1"})
        >>> content.add({"id": "2", "caption": "a dog"})
        >>> content.hexdigest()[:8]
        'ef53cc59'
    """

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in one row.

        Args:
            row: Column -> text, number, null or a list of these. An image stands in it as the
                hexadecimal SHA-256 of its bytes, in the column's place.
        """
        self._digest.update(json.dumps(dict(row), sort_keys=True).encode() + b"\n")

    def hexdigest(self) -> str:
        """Return the hash of the rows so far."""
        return self._digest.hexdigest()
