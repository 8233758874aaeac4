"""What a result's numbers depend on, as its page tells it: the command and the signature."""

import shlex
from collections.abc import Iterator
from typing import Any

from hard_positives.models.kinds import QUESTION
from hard_positives.names import public_name
from hard_positives.results.figures import name_of, preprocessing_of
from hard_positives.results.result import EvaluationResult


def command_of(result: EvaluationResult) -> str | None:
    """The command that repeats a result; None where model or data have no name to call them by."""
    signature = result.signature
    if signature["dataset"]["id"] is None or "dtype" not in signature:  # a function, an object
        return None
    command = ["hard-positives", "evaluate", name_of(result)]
    command += ["--dataset", public_name(signature["dataset"]["id"])]
    if not signature["dataset"].get("figures"):  # a benchmark's file says what columns are
        command += _column_options(signature["dataset"].get("columns", {}))
    if signature["dataset"].get("columns", {}).get("text_only"):
        command.append("--text-only")
    for split in signature["dataset"]["splits"]:
        command += ["--split", split]
    for option, part in {"--revision": "model", "--dataset-revision": "dataset"}.items():
        if signature[part].get("revision") and not signature[part].get("figures"):
            command += [option, signature[part]["revision"]]
    preprocessing = preprocessing_of(result)
    if preprocessing not in (None, "transformers"):
        command += ["--preprocessing", preprocessing]
    asked = signature.get("asked", {}).get("question", QUESTION)
    if asked != QUESTION:
        command += ["--likelihood"] if asked is None else ["--question", asked]
    for adapter in signature["model"].get("adapters") or []:
        command += ["--adapter", adapter]
    return shlex.join([*command, "--dtype", signature["dtype"], "--device", signature["device"]])


def _column_options(columns: dict[str, Any]) -> Iterator[str]:
    """The options of the command line that say what columns are."""
    names = {"positives": "--positive", "negatives": "--negative", "pairs": "--pair"}
    for name, value in columns.items():
        if value is True:
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            yield names.get(name, f"--{name}")
            yield ":".join(one) if name == "pairs" else one


def flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of a signature, those inside others as `outer.inner`."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", "none" if value is None else value
