"""Which words an edit changed."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby


def mark_edits(text: str, others: Sequence[str]) -> list[tuple[str, bool]]:
    """Cut a text into pieces, each with whether some other text has other words in its place.

    The pieces joined are the text.

    Examples:
        >>> mark_edits("white square left of cross", ["white square under cross"])
        [('white square ', False), ('left of', True), (' cross', False)]
        >>> mark_edits("walking elephant", ["strolling elephant", "walking ant"])
        [('walking elephant', True)]
    """
    words = re.split(r"(\s+)", text)  # and the space between them, at the odd places
    edited = [False] * len(words)
    for other in others:
        matcher = SequenceMatcher(None, words[::2], re.split(r"\s+", other))
        for operation, start, end, _, _ in matcher.get_opcodes():
            if operation != "equal":
                edited[2 * start : 2 * end : 2] = [True] * (end - start)
    for place in range(1, len(words), 2):
        edited[place] = edited[place - 1] and edited[place + 1]
    pairs = groupby(zip(words, edited, strict=True), key=lambda pair: pair[1])
    return [("".join(word for word, _ in run), is_edited) for is_edited, run in pairs]
