"""Repository cards as text: edits that leave every byte outside of what is new as it was.

A card is Markdown behind YAML front matter. Reading that into a dict and writing it back loses
comments, quotes, order and line ends, so the YAML parser only tells *where* things stand, and the
text is cut there. No network here; `repository` reads and sends the cards.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from hard_positive_metric import FIGURES as METRICS

# What cards, results and a benchmark's file call the task and the figures.
TASK = "zero-shot-image-classification"
FIGURES = {
    "original_accuracy": "Original accuracy",
    "augmented_accuracy": "Augmented accuracy",
    "brittleness": "Brittleness (lower is better)",
    "set_accuracy": "Set accuracy",
}
# As the Hub finds it: group 1 opens, group 2 is the YAML, group 3 closes.
_FRONT_MATTER = re.compile(
    r"\A(\ufeff?\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z))"
)
HUB = "https://huggingface.co"
_Edit = tuple[int, int, str]
_Result = dict[str, Any]


def task_of(split: str, figure: str) -> str:
    """The id of a figure's task, the same in a benchmark's file and in results.

    A leaderboard shows it and no more, so it says where lower is better.
    """
    return f"{split}_{figure}{'_lower_is_better' * (METRICS[figure].better == 'lower')}"


def result_entry(
    dataset: str, revision: str | None, split: str, metrics: Sequence[dict[str, Any]]
) -> _Result:
    """An entry of ``model-index[0].results``: the figures of a split of a dataset."""
    described = {"type": dataset, "name": f"Hard Positives, {split}", "split": split}
    return {
        "task": {"type": TASK, "name": "Image to caption, with hard positives"},
        "dataset": {**described, **({"revision": revision} if revision else {})},
        "metrics": list(metrics),
        "source": {"name": "hard-positives", "url": f"{HUB}/datasets/{dataset}"},
    }


def metric_entry(figure: str, fraction: float, view: str, title: str) -> dict[str, Any]:
    """A figure in such an entry."""
    name = f"{FIGURES[figure]}, {title}"
    return {"type": figure, "value": round(fraction, 4), "name": name, "args": {"view": view}}


def identity_of(result: _Result) -> tuple | None:
    """The dataset and split of a result that we have written; None for other people's."""
    metrics = result["metrics"]
    if not metrics or any(m["type"] not in FIGURES or m.get("verified") for m in metrics):
        return None
    return result["dataset"]["type"], result["dataset"].get("split")


def add_metadata(card: str, values: dict[str, Any]) -> str:
    r"""Add keys to the front matter of a card; keys that it has stay as they are.

    Args:
        card: The whole text of a ``README.md``.
        values: What to add, in this order, at the top of the front matter.

    Returns:
        The text with the missing keys added.

    Raises:
        ValueError: The front matter is no YAML mapping.

    Examples:
        >>> card = "---\nlicense: mit\n---\n# Card"
        >>> print(add_metadata(card, {"license": "other", "tags": ["a"]}))
        ---
        tags:
        - a
        license: mit
        ---
        # Card
    """
    card, start, end = _with_front_matter(card)
    present = _parse(card[start:end]) or {}
    missing = {key: value for key, value in values.items() if key not in present}
    if not missing:
        return card
    return _edited(card, [(start, start, _lines(missing, _newline(card)) + _newline(card))])


def add_config(card: str, config: dict[str, Any]) -> str:
    """Put a config behind the last one of a dataset's card, unless it is there.

    Raises:
        ValueError: The front matter is no YAML mapping, or has no list of configs.
    """
    card, start, end = _with_front_matter(card)
    block = card[start:end]
    before = _parse(block) or {}
    if config in before.get("configs", []):
        return card
    root = yaml.compose(block, Loader=yaml.SafeLoader)
    nodes = {key.value: value for key, value in root.value} if root else {}
    sequence = nodes.get("configs")
    new = block
    if sequence is not None and before["configs"]:
        at, newline = _end(block, sequence), _newline(card)
        item = _item([config], sequence.start_mark.column, newline)
        new = _edited(block, [(at, at, newline + item)])
    if not _says(new, {**before, "configs": [*before.get("configs", []), config]}):
        raise ValueError(
            "Expected the card's configs to be a list in block style, got another form. Write it "
            "as hard-positives build does."
        )
    return card[:start] + new + card[end:]


def merge_results(
    card: str, model_name: str, results: Sequence[_Result], replaces: Callable[[_Result], Any]
) -> str:
    r"""Put results into the ``model-index`` of a card and touch nothing else.

    A result takes the place of those with its identity, so that a repetition changes nothing. All
    other results, keys, comments, quotes and line ends, and the text below, keep their bytes.

    Args:
        card: The whole text of a ``README.md``; may be empty.
        model_name: The name in a ``model-index`` that is not there yet.
        results: Entries of ``model-index[0].results``: ``task``, ``dataset``, ``metrics``.
        replaces: Gives the identity of a result of ours, and None for anybody else's.

    Returns:
        The new text.

    Raises:
        ValueError: The front matter is no YAML mapping, or its ``model-index`` is of another form.

    Examples:
        >>> result = {"task": {"type": "x"}, "dataset": {"type": "org/data"}, "metrics": []}
        >>> card = merge_results("# Model\n", "clip", [result], lambda r: r["dataset"]["type"])
        >>> print(card)
        ---
        model-index:
        - name: clip
          results:
          - task:
              type: x
            dataset:
              type: org/data
            metrics: []
        ---
        # Model
        <BLANKLINE>
        >>> merge_results(card, "clip", [result], lambda r: r["dataset"]["type"]) == card
        True
    """
    card, start, end = _with_front_matter(card)
    block = card[start:end]
    before = _parse(block) or {}
    expected = _merged(before, model_name, results, replaces)
    if expected == before:
        return card
    new = _edited(block, _edits(block, before, expected, results, replaces, _newline(card)))
    # The text was cut by positions, so make sure that it says what the merged data says.
    if not _says(new, expected):
        raise ValueError(
            "Expected the card's front matter to be of a form that can be extended in place, got "
            "another, such as flow style or aliases. Write it in block style."
        )
    return card[:start] + new + card[end:]


def _merged(
    before: dict, model_name: str, results: Sequence[_Result], replaces: Callable
) -> dict[str, Any]:
    index = before.get("model-index") or [{"name": model_name, "results": []}]
    try:
        [first, *others] = index
        kept = list(first["results"] or [])
        places = _places(kept, results, replaces)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            "Expected the card's model-index to be a list of names with results, got another form. "
            "Repair it, or remove it from the card."
        ) from None
    for result, (place, *repeated) in zip(results, places, strict=True):
        kept[place : place + 1] = [result]
        for extra in repeated:
            kept[extra] = None
    first = {**first, "results": [result for result in kept if result is not None]}
    return {**before, "model-index": [first, *others]}


def _places(
    kept: Sequence[_Result], results: Sequence[_Result], replaces: Callable
) -> list[list[int]]:
    """Where each result goes: the places that it takes over, or one behind the last."""
    identities = [replaces(result) for result in kept]
    places, behind = [], len(kept)
    for result in results:
        found = [place for place, known in enumerate(identities) if known == replaces(result)]
        places.append(found or [behind])
        behind += not found
    return places


def _edits(
    block: str,
    before: dict,
    expected: dict,
    results: Sequence[_Result],
    replaces: Callable,
    newline: str,
) -> list[_Edit]:
    root = yaml.compose(block, Loader=yaml.SafeLoader)
    nodes = {key.value: value for key, value in root.value} if root else {}
    if not before.get("model-index"):
        text = _lines({"model-index": expected["model-index"]}, newline)
        if "model-index" not in nodes:
            return [(len(block), len(block), (newline if block.strip() else "") + text)]
        return [(*_empty_span(block, nodes["model-index"]), text.removeprefix("model-index:"))]
    first = nodes["model-index"].value[0]
    sequence = next(value for key, value in first.value if key.value == "results")
    if not before["model-index"][0]["results"]:
        text = newline + _item(results, first.start_mark.column, newline)
        return [(*_empty_span(block, sequence), text)]
    kept = before["model-index"][0]["results"]
    return _item_edits(block, sequence, kept, results, _places(kept, results, replaces), newline)


def _item_edits(
    block: str,
    sequence: yaml.SequenceNode,
    kept: Sequence[_Result],
    results: Sequence[_Result],
    places: list[list[int]],
    newline: str,
) -> list[_Edit]:
    """Cut out and put in single items of a list, in the style in which the list is written."""
    flow, indent = sequence.flow_style, sequence.start_mark.column
    spans = [
        (node.start_mark.index if flow else _dash(block, node), _end(block, node))
        for node in sequence.value
    ]
    edits = []
    for result, (place, *repeated) in zip(results, places, strict=True):
        if flow:
            text = yaml.safe_dump(result, default_flow_style=True, sort_keys=False, width=10**9)
            text, joint = text.strip(), ", "
        else:
            text, joint = _item([result], indent, newline).lstrip(" "), newline + " " * indent
        if place >= len(spans):
            # Behind a comment on the last line, which belongs to the item before.
            end = spans[-1][1] if flow else re.compile(r"[^\r\n]*").match(block, spans[-1][1]).end()
            edits.append((end, end, joint + text))
        elif kept[place] != result:
            edits.append((*spans[place], text))
        # From the end of the item before, so that the separator goes with it.
        edits += [(spans[extra - 1][1], spans[extra][1], "") for extra in repeated]
    return edits


def _item(results: Sequence[_Result], indent: int, newline: str) -> str:
    lines = _lines(list(results), newline).split(newline)
    return newline.join(" " * indent + line for line in lines)


def _dash(block: str, node: yaml.Node) -> int:
    """Where the ``- `` of a list item stands."""
    return block.rindex("-", 0, node.start_mark.index)


def _empty_span(block: str, node: yaml.Node) -> tuple[int, int]:
    """From the colon to the end of a value that is null or an empty list."""
    return len(block[: node.start_mark.index].rstrip()), _end(block, node)


def _end(block: str, node: yaml.Node) -> int:
    """Where the text of a node ends; the parser counts what follows a block as part of it."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return len(block[: node.end_mark.index].rstrip())


def _edited(text: str, edits: Sequence[_Edit]) -> str:
    # From the back, so that earlier positions stay; what goes in at one place keeps its order.
    for start, end, new in sorted(edits, key=lambda edit: edit[0])[::-1]:
        text = text[:start] + new + text[end:]
    return text


def _lines(value: Any, newline: str) -> str:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10**9)
    return text.rstrip("\n").replace("\n", newline)


def _newline(card: str) -> str:
    found = re.search(r"\r\n|\r|\n", card)
    return found[0] if found else "\n"


def _with_front_matter(card: str) -> tuple[str, int, int]:
    """The card, with empty front matter if it has none, and where its YAML begins and ends."""
    found = _FRONT_MATTER.search(card)
    if not found:
        newline = _newline(card)
        card = f"---{newline}{newline}---{newline}{card}"
        found = _FRONT_MATTER.search(card)
    return card, *found.span(2)


def _parse(block: str) -> dict[str, Any] | None:
    try:
        values = yaml.safe_load(block)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ValueError(
            f"Expected the card's front matter to be YAML, got: {problem}. Repair the card."
        ) from error
    if values is not None and not isinstance(values, dict):
        raise ValueError(
            f"Expected the card's front matter to be a mapping, got {type(values).__name__}. "
            "Repair the card."
        )
    return values


def _says(block: str, values: dict[str, Any]) -> bool:
    try:
        return yaml.safe_load(block) == values
    except yaml.YAMLError:
        return False
