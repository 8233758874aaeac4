"""How sources are named in records, on pages and on terminals: nothing private, nothing active.

A record goes to other people. It names a model, a dataset or a server so that they know which one
is meant, without the folders, passwords and keys of whoever made it.
"""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

EMBEDDED_DATASET, EMBEDDED_MODEL = "shapes", "shapes_clip"
# Control characters (C0 and C1) and those that turn the direction of what follows: a terminal obeys
# the first, and the second show a reader other words than are there. Halves of a character that
# stand alone, as JSON may hold them, cannot be written at all.
_ACTIVE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


BLIND_PREFIX = "lm:"  # of language models that see no picture


def public_name(source: Any) -> str | None:
    """Name what the user gave: a Hub id or a relative path as it is, else a path's last part.

    Returns:
        None where `source` is neither a text nor a path.

    Examples:
        >>> public_name("openai/clip-vit-base-patch32"), public_name("/home/ann/models/clip")
        ('openai/clip-vit-base-patch32', 'clip')
        >>> public_name("lm:/home/ann/models/gpt2")
        'lm:gpt2'
    """
    if not isinstance(source, (str, Path)):
        return None
    if str(source).startswith(BLIND_PREFIX):  # of the model behind it
        return f"{BLIND_PREFIX}{public_name(str(source).removeprefix(BLIND_PREFIX))}"
    path = Path(os.path.expanduser(source))  # which leaves an unknown user as it is
    if path.is_absolute() or ".." in path.parts:
        return path.resolve().name
    return str(source)


def public_url(url: str) -> str:
    """Drop user, password, query and fragment from an address.

    Examples:
        >>> public_url("https://ann:secret@host:8000/v1?api-key=1#top")
        'https://host:8000/v1'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def printable(text: Any) -> str:
    r"""Spell out the characters that a terminal or a page would obey instead of show.

    Examples:
        >>> print(printable("red\x1b[31m"))
        red\x1b[31m
    """
    return _ACTIVE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))
