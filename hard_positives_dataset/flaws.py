"""Which rows should not count, and which are only doubtful: rules over the words of one row.

A flaw is marked in the column `flaws` and taken out of the clean view: no model can get the row
right, or its text is plainly broken. What is only doubtful (a reader may think so, or not) is
counted by name and stays. Every rule is a comparison of texts with the table of the benchmark's
authors, or with a short list that stands here; none looks at an image.

What shows only beside other rows (contradictions, repetitions) is marked in `annotations.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .annotations import Triple

# Name -> what is wrong, in the order of the column.
FLAWS = {
    "negative_equals_caption": "the hard negative is the caption",
    "negative_equals_hard_positive": "the hard negative is the hard positive",
    "negative_is_synonym": "the hard negative means the same, by the authors' own table",
    "contradicted": "the hard negative is true of the image in another row",
    "duplicate": "repeats an earlier row",
    "substring_accident": "the hard positive was edited inside a word (wetsuit, dampsuit)",
    "substring_accident_in_negative": (
        "the hard negative was edited inside a word (wine in glass, wout ofe out of glass)"
    ),
    "relation_named_twice": (
        "the caption has the replaced relation twice (trees behind behind, to the rear of behind)"
    ),
}

# The attribute words that the authors replaced. They replaced them as substrings, so that "covered"
# became "covecrimson": only with this table can such a row be told from a real synonym.
ATTRIBUTE_SUBSTITUTIONS = {
    "aged": ["old"],
    "big": ["huge", "large"],
    "chestnut": ["brown"],
    "crimson": ["red"],
    "damp": ["wet"],
    "dangling": ["hanging"],
    "ebony": ["black"],
    "emerald": ["green"],
    "gazing": ["looking"],
    "happy": ["smiling"],
    "ingesting": ["eating"],
    "ivory": ["white"],
    "large": ["big"],
    "lengthy": ["long"],
    "metallic": ["silver"],
    "sapphire": ["blue"],
    "seated": ["sitting"],
    "strolling": ["walking"],
    "tiny": ["small"],
    "unclouded": ["clear"],
    "upright": ["standing"],
    "youthful": ["young"],
}
# Words of hard negatives that the table lacks and that are words of it under another name.
_OTHER_NAMES = {"little": ["small"], "cloudless": ["unclouded"]}


def said(text: str) -> str:
    """What a text says but for spaces and the case of letters.

    Most tokenisers drop both, and no reader takes them for another meaning.

    Examples:
        >>> said("woman WEARING white  shirt ")
        'woman wearing white shirt'
    """
    return " ".join(text.split()).casefold()


def changes(caption: str, other: str) -> list[tuple[str, str]]:
    """Pair the words of a caption that changed with what they became.

    Where words were only dropped or added, a neighbouring word that stayed is taken along, so that
    neither side is empty. A replacement inside a longer word shows the longer words.
    """
    # Split on single spaces: runs of spaces give empty words, and the captions stay as they are.
    before, after = caption.split(" "), other.split(" ")
    if len(before) == len(after):
        return [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    start = _shared(before, after)
    length = min(len(before), len(after)) - start
    end = min(length, _shared(before[::-1], after[::-1]))
    if length == end:  # One side is empty: take the neighbour along.
        start, end = (start - 1, end) if start else (start, end - 1)
    stop = -end if end else None
    return [(" ".join(before[start:stop]), " ".join(after[start:stop]))]


def _shared(before: list[str], after: list[str]) -> int:
    """How many words both begin with."""
    pairs = zip(before, after, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def text_flaws(
    caption: str, hard_positive: str, hard_negative: str, category: str
) -> Iterator[str]:
    """The flaws that show in the three texts of one replaced attribute or relation."""
    if said(hard_negative) == said(caption):
        yield "negative_equals_caption"
    elif said(hard_negative) == said(hard_positive):
        yield "negative_equals_hard_positive"
    elif _is_synonym(caption, hard_negative):
        yield "negative_is_synonym"
    if any(_is_accident(*change) for change in changes(caption, hard_positive)):
        yield "substring_accident"
    if _is_accident_in_negative(caption, hard_negative):
        yield "substring_accident_in_negative"
    if category == "relation" and _is_relation_named_twice(caption, hard_positive):
        yield "relation_named_twice"


def _meanings() -> list[set[str]]:
    groups: list[set[str]] = []
    for word, others in (ATTRIBUTE_SUBSTITUTIONS | _OTHER_NAMES).items():
        group = {word, *others}
        same = [known for known in groups if known & group]
        groups = [known for known in groups if known not in same] + [group.union(*same)]
    return groups


_MEANINGS = _meanings()


def _is_synonym(caption: str, hard_negative: str) -> bool:
    """Whether all that changed are words of one meaning, so that the negative is true.

    Source: the authors' table, in both directions and over more than one step (huge = big = large),
    with the two words of `_OTHER_NAMES`, which any dictionary gives.
    """
    before, after = said(caption).split(), said(hard_negative).split()
    if len(before) != len(after):
        return False
    changed = [{old, new} for old, new in zip(before, after, strict=True) if old != new]
    return bool(changed) and all(
        any(words <= meaning for meaning in _MEANINGS) for words in changed
    )


def _is_accident(before: str, after: str) -> bool:
    """Whether a known replacement fired inside a longer word.

    Source: the authors' table.
    """
    return any(
        old != before and old in before and before.replace(old, new) == after
        for new, olds in ATTRIBUTE_SUBSTITUTIONS.items()
        if new in after
        for old in olds
    )


def _is_accident_in_negative(caption: str, hard_negative: str) -> bool:
    """Whether the negative is the caption with a word replaced wherever its letters stand.

    Source: the texts alone. Some word or words of the caption, replaced at every place where their
    letters occur, give the negative to the letter, and one of the places is inside a longer word.
    """
    words = caption.split(" ")
    phrases = {
        " ".join(words[start:end])
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
    }
    return any(
        caption.count(phrase) > 1
        and _fired_inside(caption, phrase)
        and _replaced(caption, phrase, hard_negative)
        for phrase in phrases
        if phrase.strip()
    )


def _fired_inside(text: str, phrase: str) -> bool:
    return bool(re.search(rf"\S{re.escape(phrase)}|{re.escape(phrase)}\S", text))


def _replaced(text: str, phrase: str, result: str) -> bool:
    """Whether `text.replace(phrase, X) == result` for some X."""
    pieces = text.split(phrase)
    rest = len(result) - sum(map(len, pieces))
    length, remainder = divmod(rest, len(pieces) - 1)
    if remainder or length < 0:
        return False
    new = result[len(pieces[0]) : len(pieces[0]) + length]
    return new != phrase and new.join(pieces) == result


def _is_relation_named_twice(caption: str, hard_positive: str) -> bool:
    """Whether the caption has the words that were replaced more than once.

    Source: the texts alone. Then positive and negative name two relations, or one beside its own
    synonym. (Two things of one colour are no such case, so this is asked of relations only.)
    """
    return any(_count(before, caption) > 1 for before, _ in changes(caption, hard_positive))


def _count(words: str, text: str) -> int:
    return len(re.findall(rf"(?<!\S){re.escape(words)}(?!\S)", text))


@dataclass(frozen=True)
class Doubt:
    """A kind of row that a reader may think should not count.

    Attributes:
        says: what is doubtful, in words.
        holds: whether a row's caption, hard positive and hard negative are of the kind.
    """

    says: str
    holds: Callable[[str, str, str], bool]


def doubts_of(caption: str, hard_positive: str, hard_negative: str) -> list[str]:
    """The names in `DOUBTS` that hold for one row.

    Examples:
        >>> doubts_of("cat by a pot", "cat near a pot", "cat nearby pot")
        ['nearby_for_beside', 'article_lost_by_negative']
    """
    texts = (said(caption), said(hard_positive), said(hard_negative))
    return [name for name, doubt in DOUBTS.items() if doubt.holds(*texts)]


def _edit(caption: str, other: str) -> tuple[str, str]:
    """The first to the last word that changed, and what they became."""
    before, after = caption.split(), other.split()
    start = _shared(before, after)
    end = min(min(len(before), len(after)) - start, _shared(before[::-1], after[::-1]))
    return " ".join(before[start : len(before) - end]), " ".join(after[start : len(after) - end])


def _positive(*edits: str) -> Callable[[str, str, str], bool]:
    pairs = {tuple(edit.split(" > ")) for edit in edits}
    return lambda caption, positive, _: any(
        change in pairs for change in changes(caption, positive)
    )


def _negative(*edits: str) -> Callable[[str, str, str], bool]:
    pairs = {tuple(edit.split(" > ")) for edit in edits}
    return lambda caption, _, negative: _edit(caption, negative) in pairs


def _both(*rules: Callable[[str, str, str], bool]) -> Callable[[str, str, str], bool]:
    return lambda *texts: all(rule(*texts) for rule in rules)


def _positive_has(pattern: str) -> Callable[[str, str, str], bool]:
    compiled = re.compile(rf"\b(?:{pattern})(?!\S)")
    return lambda _, positive, __: bool(compiled.search(positive))


def _is_nearby(_: str, __: str, negative: str) -> bool:
    return "nearby" in negative.split()


_beside = _positive("next to > near", "by > near", "near > next to")


def _loses_article(caption: str, positive: str, negative: str) -> bool:
    articles = [sum(word in ("a", "an") for word in text.split()) for text in (caption, positive)]
    return articles[0] == articles[1] > sum(word in ("a", "an") for word in negative.split())


def _names_itself(caption: str, _: str, negative: str) -> bool:
    relation, _ = _edit(caption, negative)
    first, _, second = caption.partition(f" {relation} ")
    things = [
        [word for word in thing.split() if word not in ("a", "an", "the", "another", "other")]
        for thing in (first, second)
    ]
    return bool(relation and second) and things[0] == things[1]


_CLOTHES = (
    "shirt|shirts|t-shirt|polo|sweater|sweatshirt|jersey|coat|jacket|vest|suit|wetsuit|snowsuit|"
    "jumpsuit|uniform|outfit|dress|skirt|pants|pant|jeans|shorts|hat|cap|helmet|glasses|goggles|"
    "tie|shoe|sneaker|bikini|clothes|clothing|black|white|blue|orange|green"
)
_ACCESSORIES = (
    "ring|ski|skis|collar|backpack|necklace|bracelet|bracelets|braclet|earring|earrings|watch|"
    "wristwatch|wristband|band|belt|purse|harness|lanyard|badge|tag|medal|leash|bridle|lipstick|"
    "makeup|ponytail|hair|polish|pad|pads|guard|guards|kneepad|glove|mitt"
)
_PEOPLE = "person|people|man|woman|men|women|boy|girl|child|kid|lady|guy"

DOUBTS = {
    "nearby_for_beside": Doubt(
        "the negative says nearby of what is next to it", _both(_is_nearby, _beside)
    ),
    "nearby_for_in_under_on": Doubt(
        "the negative says nearby of what is in, under, on, above or behind it",
        lambda *texts: _is_nearby(*texts) and not _beside(*texts),
    ),
    "negative_may_hold": Doubt(
        "the negative may be true as well (big, giant; clear, sunny; holding, grabbing)",
        _negative(
            *("big > giant", "large > giant", "clear > sunny"),
            *("sitting > resting", "standing > resting"),
            *("holding > grabbing", "holding > carrying", "holding > touching", "holding > using"),
        ),
    ),
    "near_colour": Doubt(
        "the negative's colour is hard to tell from the caption's",
        _negative(
            *("white > beige", "white > cream colored", "blue > teal", "green > teal"),
            *("red > maroon", "red > orange", "brown > beige", "brown > tan", "silver > gray"),
        ),
    ),
    "article_lost_by_negative": Doubt(
        "the negative alone has lost an article, which gives it away", _loses_article
    ),
    "thing_beside_itself": Doubt("both things have one name (tree in tree)", _names_itself),
    "on_top_of_for_above": Doubt(
        "above became on top of (lights on top of chairs)", _positive("above > on top of")
    ),
    "within_front_of": Doubt(
        "in front of became within front of, and the like",
        _positive_has("within (?:front|back|rear|middle|side|top) of"),
    ),
    "within_clothes": Doubt(
        "somebody in clothes is now within them",
        _both(_positive("in > within"), _positive_has(rf"within (?:\S+ )*(?:{_CLOTHES})$")),
    ),
    "in_for_wearing_accessories": Doubt(
        "wearing a ring, skis or a backpack became in it",
        _both(
            _positive("wearing > in", "wears > in"),
            _positive_has(rf"in (?:\S+ )*(?:{_ACCESSORIES})$"),
        ),
    ),
    "unclouded_for_clear": Doubt(
        "clear became unclouded, of what is not a sky",
        lambda caption, *texts: (
            _positive("clear > unclouded")(caption, *texts) and "sky" not in caption.split()
        ),
    ),
    "ivory_or_ebony_people": Doubt(
        "white or black people became ivory or ebony",
        _positive_has(rf"(?:ivory|ebony) (?:{_PEOPLE})"),
    ),
    "wrong_article": Doubt(
        "the article no longer fits (a upright)",
        _positive_has("a (?:aged|ebony|emerald|ingesting|ivory|unclouded|upright)"),
    ),
    "next_to_to": Doubt("near to became next to to", _positive_has("next to to")),
}
SEVERAL_NEGATIVES = "several_negatives"  # the doubt that shows only beside the other rows


def count_doubts(triples: list[Triple]) -> dict[str, int]:
    """Count the rows of `replace` that are doubtful and have no flaw, by kind.

    A row may be of several kinds. Of rows that share image, caption and hard positive, those beyond
    the first count as `several_negatives`: one answer of a model counts again.
    """
    counts, asked = Counter(), set()
    for triple in triples:
        if triple.flaws:
            continue
        counts.update(doubts_of(triple.caption, triple.hard_positive, triple.hard_negative))
        positives = (triple.image_path, triple.bbox, triple.caption, triple.hard_positive)
        counts[SEVERAL_NEGATIVES] += positives in asked
        asked.add(positives)
    return {name: counts[name] for name in (*DOUBTS, SEVERAL_NEGATIVES)}
