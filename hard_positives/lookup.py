"""Whether a name leads anywhere, before anything is loaded: to a folder, the Hub or its cache.

The libraries try a mistyped folder on the Hub, five times where that is out of reach, and end with
an error about connections. Here it is asked once, and what was looked for is told.
"""

import difflib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from huggingface_hub import constants

_PATIENCE = 10  # seconds for the Hub's one answer
_NEAR = 0.8  # of difflib's ratio: a slip or two of a name; its own 0.6 takes clp for negclip


def check_name(kind: str, name: str, expected: str, known: Iterable[str] = ()) -> None:
    """Raise unless a name is known, is a file or folder, or may be had from the Hub.

    Args:
        kind: `model` or `dataset`.
        name: What the user gave.
        expected: What it could have been, for the error.
        known: Names that need no file.

    Raises:
        FileNotFoundError: It leads nowhere; with what was looked for, and names that are near.
    """
    known = list(known)
    if name in known or os.path.exists(name):
        return
    try:
        _look_outside(kind, name)
    except FileNotFoundError as error:
        near = near_names(name, known)
        advice = f"Did you mean {' or '.join(near)}?" if near else "Check the name."
        raise FileNotFoundError(
            f"Expected the {kind} to be {expected}, got {name!r}: there is no such folder, and "
            f"{error}. {advice}"
        ) from error.__cause__


def near_names(name: str, known: Iterable[str] = ()) -> list[str]:
    """Find up to three names like one that leads nowhere: known ones, and what lies beside it.

    Examples:
        >>> near_names("sugarcrep", ["sugarcrepe", "winoground", "valse"])
        ['sugarcrepe']
    """
    folder, last = os.path.split(name.rstrip("/"))
    candidates = {one: one for one in known}
    try:
        beside = [entry.name for entry in os.scandir(folder or ".") if _is_alike(entry, last)]
    except OSError:
        beside = []
    candidates |= {one: os.path.join(folder, one) for one in beside}
    return [candidates[one] for one in _nearest(last, candidates)]


def near_columns(missing: Iterable[str], columns: Iterable[str]) -> str:
    """Ask whether columns that a dataset has were meant by those that it lacks.

    Examples:
        >>> near_columns(["captoin"], ["image", "caption"])
        ' Did you mean caption?'
        >>> near_columns(["text"], ["image", "caption"])
        ''
    """
    columns = list(columns)
    near = dict.fromkeys(one for name in missing for one in _nearest(name, columns))
    return f" Did you mean {' and '.join(near)}?" if near else ""


def _nearest(name: str, candidates: Iterable[str]) -> list[str]:
    by_lower = {one.lower(): one for one in candidates}
    near = difflib.get_close_matches(name.lower(), by_lower, cutoff=_NEAR)
    return [by_lower[one] for one in near]


def _is_alike(entry: os.DirEntry, name: str) -> bool:
    suffix = Path(name).suffix
    return entry.is_dir() or (suffix != "" and Path(entry.name).suffix == suffix)


@cache  # an error is not kept: the next try asks again
def _look_outside(kind: str, name: str) -> None:
    """Raise FileNotFoundError with the reason unless the Hub or its cache has it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise FileNotFoundError("a Hub id has another form (organization/name)") from None
    if name.endswith((".yaml", "/")):
        raise FileNotFoundError("no such file")
    if _is_cached(kind, name):
        return
    if constants.is_offline_mode():
        raise FileNotFoundError(
            "no copy from the Hub on this machine, which HF_HUB_OFFLINE keeps from asking"
        )
    _ask_hub(kind, name)


def _is_cached(kind: str, name: str) -> bool:
    folder = f"{kind}s--{name.replace('/', '--')}"
    if any(Path(constants.HF_HUB_CACHE, folder).glob("snapshots/*/*")):
        return True
    organization, _, last = name.rpartition("/")
    if kind == "model" or not organization:  # without, it may be the copy of a folder
        return False
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    copy = f"{organization}___{camelcase_to_snakecase(last)}"
    return Path(config.HF_DATASETS_CACHE, copy).is_dir()


def _ask_hub(kind: str, name: str) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_PATIENCE)
    except GatedRepoError:
        return  # it is there; who reads it is told how to ask for access
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            raise FileNotFoundError(
                f"no {kind} of this id on the Hub that you may read (private ones need "
                "`hf auth login`)"
            ) from error
    except HTTPError as error:
        raise FileNotFoundError(f"the Hub could not be asked ({error})") from error
