"""What a run writes down of itself: `finetuning.json`, beside the model and its card."""

import hashlib
import json
from pathlib import Path
from typing import Any

from hard_positives_dataset.folders import write_whole

RECORD, CARD = "finetuning.json", "README.md"


def read_record(output: Path) -> dict[str, Any]:
    """Read what a run has written down of itself; a ValueError that names the file if damaged."""
    try:
        record = json.loads((output / RECORD).read_bytes())
        if record.pop("sha256") == _hash(record):
            return record
        problem = "content that was changed"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"something else ({error})"
    raise ValueError(
        f"Expected {output / RECORD} to be as finetune wrote it, got {problem}. Remove the "
        "folder, or choose another."
    )


def write_record(output: Path, record: dict[str, Any]) -> None:
    """Write it whole, with the hash that `read_record` checks."""
    signed = {**record, "sha256": _hash(record)}
    with write_whole(output / RECORD) as partial:
        partial.write_text(json.dumps(signed, indent=2) + "\n", encoding="utf-8")


def _hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
