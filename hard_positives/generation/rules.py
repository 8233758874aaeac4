"""Hard positives and hard negatives by rule: fast, free of a model server, the same on every run.

A caption is tagged, words that the lexicon knows are replaced, and what stands around an "and" or
beside a noun is swapped. Replacing happens token by token, so "covered" never becomes
"covecrimson"; the new word takes the old one's number, tense and case, and "a" becomes "an" where
it must (`grammar.py`).

The lexicon is `lexicon.tsv` beside this file: the authors' published substitutions, widened by
pairs out of WordNet 3.0 and our own. WordNet is not looked up while running: even where two words
are each other's first sense it gives "cat > true cat" and "lettuce > moolah", so its pairs for the
words of 20,000 captions were read first, and few of them kept.

This file knows nothing of images, rows or files.
"""

import csv
import functools
import hashlib
import itertools
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hard_positives.generation.grammar import (
    DETERMINERS,
    Chunk,
    Span,
    Token,
    analyse,
    article_for,
    chunks_beside,
    chunks_of,
    exchange,
    head_after,
    in_case_of,
    inflect_like,
    lemma_of,
    whole_phrases,
)
from hard_positives.generation.run import TASKS, Edit, Task, changed_words, words_of

LEXICON = Path(__file__).parent / "lexicon.tsv"
# In this share of captions, "man" and other words of every third caption are replaced only where
# nothing else can be: else ten substitutions would make a third of all edits.
SPARED = 0.7


@dataclass(frozen=True)
class Slot:
    """Tokens `start` to `end` (exclusive) that can be replaced, and by what."""

    start: int
    end: int
    category: str
    hard_positive: tuple[str, ...]
    hard_negative: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """Edits captions by lexicon and grammar; see `hard_positives.generation.run.Editor`.

    Which of several possible edits is made depends on `seed` and the caption alone, never on the
    other captions or on their order. A replaced hard positive and hard negative change the same
    word wherever one word allows both, as the benchmark's rows do; but "man" and other words of
    every third caption are spared in most captions that have another word to replace.

    Args:
        seed: Another seed makes other choices.

    Examples:
        >>> from hard_positives.generation.run import TASKS
        >>> for task in TASKS:
        ...     print(Rules().edit("A red car and a small blue bus.", task).caption)
        A red automobile and a small blue bus.
        A red truck and a small blue bus.
        A small blue bus and a red car.
        A blue car and a small red bus.
    """

    seed: int = 0
    chunk_size = 20_000
    workers = os.cpu_count() or 1

    @property
    def settings(self) -> dict:
        """What decides the output besides the captions."""
        return {"editor": "rules", "seed": self.seed, "lexicon_sha256": _lexicon_hash()}

    def prepare(self) -> None:
        """Load what the rules know, once for all processes that are forked from this one.

        Raises:
            ImportError: The extra `generation` is not installed.
        """
        self.edit("A cat and two black dogs sit on an old sofa.", TASKS[0])

    def edit_batch(self, captions: Sequence[str], task: Task) -> list[Edit]:
        """Edit each caption; the i-th result belongs to the i-th caption."""
        return [self.edit(caption, task) for caption in captions]

    def edit(self, caption: str, task: Task) -> Edit:
        """Edit one caption, or say that no rule applies."""
        candidates = self.candidates(caption, task)
        return candidates[0] if candidates else Edit(reason="no_rule_applies")

    def candidates(self, caption: str, task: Task) -> list[Edit]:
        """All edits that the rules can make of one caption, none twice.

        The first is the one that `edit` makes. The others follow in an order that depends on
        `seed` and the caption alone: first those of words that allow both a hard positive and a
        hard negative.

        Returns:
            An empty list where no rule applies.

        Examples:
            >>> from hard_positives.generation.run import TASKS
            >>> for edit in Rules().candidates("A photo of a sofa", TASKS[0]):
            ...     print(edit.caption)
            A photo of a couch
            A photograph of a sofa
        """
        chance = random.Random(f"{self.seed}/{caption}")
        if task.kind == "replace":
            edits = _replaced(caption, task.column, chance)
        else:
            swaps = _swaps_around_and if task.column == "hard_positive" else _false_swaps
            spans = swaps(analyse(caption), chance)
            edits = [Edit(exchange(caption, *pair), "swap") for pair in spans]
        seen = {tuple(words_of(caption))}
        return [edit for edit in edits if not _seen(edit, seen)]


@dataclass(frozen=True)
class _Entry:
    others: tuple[str, ...]
    condition: tuple[str, ...]


@dataclass(frozen=True)
class _Lexicon:
    entries: dict[tuple[str, str, str], list[_Entry]]
    known: dict[tuple[str, str], str]
    classes: dict[str, frozenset[str]]
    compounds: frozenset[tuple[str, ...]]
    exchanges: dict[str, frozenset[str]]
    longest: int

    def find(self, relation: str, kind: str, word: str) -> list[_Entry]:
        return self.entries.get((relation, kind, word), [])


def _words(name: str) -> frozenset[str]:
    return _lexicon().classes[name]


@functools.cache
def _lexicon() -> _Lexicon:
    entries, known, classes, compounds, exchanges = {}, {}, {}, set(), {}
    lines = [line for line in LEXICON.read_text("utf-8").splitlines() if line[:1] != "#"]
    for row in csv.DictReader(lines, delimiter="\t"):
        others = tuple(row["others"].split("|"))
        if row["relation"] == "class":
            classes[row["word"]] = frozenset(others)
        elif row["relation"] == "exchange":
            exchanges[row["word"]] = frozenset(others)
        elif row["relation"] == "compound":
            compounds.add(tuple(row["word"].split()))
        else:
            known |= {(row["word"], other): row["relation"] for other in others}
            if row["condition"] != "?":
                key = (row["relation"], row["kind"], row["word"])
                entries.setdefault(key, []).append(_Entry(others, tuple(row["condition"].split())))
    longest = max(len(word.split()) for _, kind, word in entries if kind == "p")
    return _Lexicon(entries, known, classes, frozenset(compounds), exchanges, longest)


def _lexicon_hash() -> str:
    return hashlib.sha256(LEXICON.read_bytes()).hexdigest()


# --- replacing ------------------------------------------------------------------------------------


def _replaced(caption: str, column: str, chance: random.Random) -> list[Edit]:
    """Every offer of every slot: those that allow both edits first, those to be spared last."""
    tokens = analyse(caption)
    places = list(slots(caption))
    chance.shuffle(places)  # before the column is asked for, so that both edits take one word
    sparing = chance.random() < SPARED  # before the column, too
    places.sort(
        key=lambda slot: (
            sparing and tokens[slot.start].lemma in _words("frequent"),
            not (slot.hard_positive and slot.hard_negative),
        )
    )
    edits = []
    for slot in places:
        offers = list(getattr(slot, column))
        chance.shuffle(offers)
        edits += [Edit(substitute(caption, slot, offer), slot.category) for offer in offers]
    return edits


def _seen(edit: Edit, seen: set[tuple[str, ...]]) -> bool:
    words = tuple(words_of(edit.caption or ""))
    known = words in seen
    seen.add(words)
    return known


@functools.lru_cache(maxsize=4096)
def slots(caption: str) -> tuple[Slot, ...]:
    """All places of a caption where the lexicon offers another word, and what it offers.

    Examples:
        >>> [(slot.hard_positive, slot.hard_negative) for slot in slots("a covered wagon")]
        []
        >>> slots("man behind a tree")[1].hard_positive
        ('in back of',)
    """
    tokens = analyse(caption)
    words = [token.word for token in tokens]
    fixed = _fixed(words)
    found, start = [], 0
    while start < len(tokens):
        slot = _phrase_slot(tokens, words, start) or _word_slot(tokens, words, start, fixed)
        if slot:
            found.append(slot)
        start = slot.end if slot else start + 1
    return tuple(found)


def known_relation(caption: str, edited: str) -> str:
    """Whether the lexicon knows what `edited` puts in a place as a `synonym` or a `contrast`.

    Pairs that the rules do not offer, such as "red > crimson", are known, too.

    Returns:
        `synonym`, `contrast`, or an empty string where the lexicon does not know.

    Examples:
        >>> known_relation("a red car", "a blue car")
        'contrast'
        >>> known_relation("a red car", "a crimson car")
        'synonym'
    """
    target = words_of(edited)
    for slot in slots(caption):
        for relation, offers in (
            ("synonym", slot.hard_positive),
            ("contrast", slot.hard_negative),
        ):
            if any(words_of(substitute(caption, slot, offer)) == target for offer in offers):
                return relation
    changed = changed_words(words_of(caption), target)
    if all(words[:1] in (["a"], ["an"]) for words in changed):
        changed = (changed[0][1:], changed[1][1:])
    pairs = [tuple(" ".join(words) for words in changed)]
    pairs += [tuple(lemma_of(text, tag) for text in pairs[0]) for tag in ("NN2", "VVG")]
    return next((_lexicon().known[pair] for pair in pairs if pair in _lexicon().known), "")


def _fixed(words: Sequence[str]) -> set[int]:
    """The places of words that belong to a name, such as "teddy bear"."""
    compounds, fixed = _lexicon().compounds, set()
    for start in range(len(words)):
        for length in (2, 3):
            name = tuple(words[start : start + length])
            if name in compounds or (*name[:-1], name[-1].removesuffix("s")) in compounds:
                fixed.update(range(start, start + length))
    return fixed


def _is_name(tokens: Sequence[Token], place: int) -> bool:
    """Whether a capital marks a name: not at a sentence's start, nor where all words have one."""
    if place == 0 or not tokens[place].text.istitle() or tokens[place - 1].tag == "PUN":
        return False
    return any(token.text[0].islower() and len(token.text) > 3 for token in tokens)


def _phrase_slot(tokens: Sequence[Token], words: list[str], start: int) -> Slot | None:
    for length in range(min(_lexicon().longest, len(tokens) - start), 0, -1):
        phrase = " ".join(words[start : start + length])
        offers = _offers(tokens, start, start + length, "p", phrase)
        if any(offers):
            return Slot(start, start + length, _category(tokens[start]), *offers)
        if length > 1 and (
            _lexicon().find("synonym", "p", phrase) or _lexicon().find("contrast", "p", phrase)
        ):
            return None  # "on top of" that may not be replaced is no "on" either
    return None


def _category(token: Token) -> str:
    if token.is_noun:
        return "object"
    return "attribute" if token.is_adjective or token.tag in ("AT0", "CRD", "DT0") else "relation"


def _word_slot(
    tokens: Sequence[Token], words: list[str], place: int, fixed: set[int]
) -> Slot | None:
    token = tokens[place]
    if place in fixed or _is_name(tokens, place):
        return None
    kinds = []
    if _modifies(tokens, place):
        kinds.append(("a", token.word, "attribute"))
    if token.tag.startswith("VV"):
        kinds.append(("v", token.lemma, "relation"))
    if token.is_noun and not _in_compound(tokens, place):
        kinds.append(("n", token.lemma, "object"))
    for kind, key, category in kinds:
        offers = _offers(tokens, place, place + 1, kind, key)
        if any(offers):
            return Slot(place, place + 1, category, *offers)
    return None


def _modifies(tokens: Sequence[Token], place: int) -> bool:
    token = tokens[place]
    follows = tokens[place + 1] if place + 1 < len(tokens) else None
    before_noun = follows is not None and (follows.is_noun or follows.is_adjective)
    if token.word.endswith("ing"):  # "walking elephant", not "man walking dogs"
        before = tokens[place - 1] if place else None
        return before_noun and not (before and (before.is_noun or before.is_verb))
    return before_noun or token.is_adjective


def _in_compound(tokens: Sequence[Token], place: int) -> bool:
    return any(tokens[i].is_noun for i in (place - 1, place + 1) if 0 <= i < len(tokens))


def _contrasts_at(tokens: Sequence[Token], place: int, kind: str, key: str) -> set[str]:
    """All words that contradict the one at a place, whatever else the caption says."""
    return {
        other
        for entry in _lexicon().find("contrast", kind, key)
        if all(_holds(each, tokens, place, place + 1, kind, set()) for each in entry.condition)
        for other in entry.others
    }


def _offers(
    tokens: Sequence[Token], start: int, end: int, kind: str, key: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words for a hard positive and for a hard negative, inflected like the ones there."""
    found = [_lexicon().find(relation, kind, key) for relation in ("synonym", "contrast")]
    if not any(found):
        return (), ()
    others = {
        text for token in (*tokens[:start], *tokens[end:]) for text in (token.word, token.lemma)
    }
    barred = others
    if kind == "n" and start and tokens[start - 1].word in ("a", "an"):
        barred = others | _words("mass")  # no "a rice"
    offers = []
    for entries in found:
        words = [
            inflect_like(other, tokens[start], kind)
            for entry in entries
            if all(
                _holds(condition, tokens, start, end, kind, others) for condition in entry.condition
            )
            for other in entry.others
        ]
        offers.append(tuple(dict.fromkeys(word for word in words if word not in barred)))
    return offers[0], offers[1]


def _holds(
    condition: str, tokens: Sequence[Token], start: int, end: int, kind: str, others: set[str]
) -> bool:
    """Whether one condition of an entry is met; `lexicon.tsv` explains the signs."""
    sign, value = condition[0], condition[1:]
    listed = value.split(",")
    if sign in "+-":
        after = tokens[end].word if end < len(tokens) else ""
        return (after in listed) == (sign == "+")
    if sign in "*/":
        return others.isdisjoint(listed) == (sign == "/")
    if sign == "=":
        return tokens[start].tag == value
    if sign == "<":
        before = tokens[start - 1] if start else None
        return before is not None and (
            before.is_noun if value == "noun" else before.lemma in _words(value)
        )
    if sign == "~":
        nouns = [token for token in tokens[:start] if token.is_noun]
        return bool(nouns) and nouns[-1].lemma in _words(value)
    head = head_after(tokens, end if kind in "pv" else start)
    if sign == "^":
        return head is not None and head.tag in ("NN2", "NN0")
    if value == "*":
        return head is not None
    is_member = head is not None and bool({head.lemma, head.word} & _words(value))
    return is_member if sign == "@" else not is_member


def substitute(caption: str, slot: Slot, words: str) -> str:
    """The caption with the slot's words replaced, in their case, "a" or "an" put right.

    Examples:
        >>> place = slots("A white dog")[0]
        >>> substitute("A white dog", place, "orange")
        'An orange dog'
    """
    tokens = analyse(caption)
    start, end = tokens[slot.start].start, tokens[slot.end - 1].end
    old = caption[start:end]
    edited = caption[:start] + in_case_of(old, words) + caption[end:]
    before = tokens[slot.start - 1] if slot.start else None
    if before is None or before.word not in ("a", "an"):
        return edited
    article = in_case_of(before.text, article_for(words))
    return edited[: before.start] + article + edited[before.end :]


# --- swapping -------------------------------------------------------------------------------------


def _swaps_around_and(tokens: Sequence[Token], chance: random.Random) -> list[tuple[Span, Span]]:
    """What stands around an "and" and can change places so that the meaning stays."""
    places = [place for place, token in enumerate(tokens) if token.word == "and"]
    chance.shuffle(places)
    finders = (_adjectives_around, _noun_phrases_around, _clauses_around, _verbs_around)
    found = (find(tokens, place) for place in places for find in finders)
    return [spans for spans in found if spans]


def _adjectives_around(tokens: Sequence[Token], place: int) -> tuple[Span, Span] | None:
    if not 0 < place < len(tokens) - 2:
        return None
    before, after, follows = tokens[place - 1], tokens[place + 1], tokens[place + 2]
    alone = place < 2 or not (tokens[place - 2].is_adjective or tokens[place - 2].word == ",")
    known = all(_lexicon().find("contrast", "a", token.word) for token in (before, after))
    # "paper and black tiles": two things, not tiles of paper.
    known &= before.is_adjective or after.word in _contrasts_at(tokens, place - 1, "a", before.word)
    # Nobody says "a white and black photo".
    if known and alone and follows.is_noun and follows.lemma not in _words("picture"):
        return (place - 1, place), (place + 1, place + 2)
    return None


def _noun_phrases_around(tokens: Sequence[Token], place: int) -> tuple[Span, Span] | None:
    left, right = chunks_beside(tokens, place)
    if left is None or _points(tokens[left.start : right.end]):
        return None
    if _word_at(tokens, left.start - 1) == "and" or "no" in _texts(tokens, right):
        return None  # "a gray and black cat and a dog"; "blinds and no curtains"
    left = _part_beside(tokens, left, right)
    if left is None or not _stands_alone(tokens, left, right):
        return None
    before = tokens[left.start - 1] if left.start else None
    after = tokens[right.end] if right.end < len(tokens) else None
    if before is not None:
        has_determiner = right.core > right.start
        if (before.word in ("of", *_words("placing")) and has_determiner) or before.is_noun:
            return None
        if before.word == "," and left.start > 1 and tokens[left.start - 2].is_adjective:
            return None  # "a clear, shower door and a toilet"
        if after is not None and after.tag not in ("PUN", "PUQ") and after.word != "and":
            return None  # what follows may belong to the right one alone
    if left.core > left.start and right.core == right.start:  # "the knife and fork"
        return _share_determiner(tokens, left, right)
    return (left.start, left.end), (right.start, right.end)


def _part_beside(tokens: Sequence[Token], left: Chunk, right: Chunk) -> Chunk | None:
    """What of "a pile of dirt" belongs to the "and": "dirt" before "rocks", all before "a tree"."""
    if "of" not in _texts(tokens, left):
        return None if "of" in _texts(tokens, right) and right.core == right.start else left
    inner = next(chunk for chunk in chunks_of(tokens) if chunk.end == left.end)
    is_measure = any(token.lemma in _words("measure") for token in tokens[left.core : left.end])
    if inner.core > inner.start:
        return None  # "an image of a singer and a dancer": one image or two things?
    if right.core > right.start:
        return left if is_measure else None
    return None if is_measure else inner


def _stands_alone(tokens: Sequence[Token], left: Chunk, right: Chunk) -> bool:
    """Whether both are phrases for sure, and no word belongs to the other one or to a verb."""
    nouns = [token for token in tokens[right.core : right.end] if token.is_noun]
    several = len(nouns) > 1 and "of" not in _texts(tokens, right)
    known = _fixed([token.word for token in tokens]) >= {right.end - 2, right.end - 1}
    alive = [tokens[chunk.end - 1].lemma in _words("animate") for chunk in (left, right)]
    acts = right.end < len(tokens) and tokens[right.end].is_verb
    described = _word_at(tokens, right.end) in ("that", "which", "who")
    return (
        not described  # "a man and a kid that has a ball"
        and not (acts and alive[0] != alive[1])  # "buildings and people walking"
        and not any(
            token.word.endswith("ing") and before.is_noun  # "a man walking"
            for before, token in itertools.pairwise(tokens[left.start : right.end])
        )
        and not {token.lemma for token in tokens[left.start : left.end]} & _words("part")
        and not (several and not known and (right.core == right.start or left.start == 0))
    )


def _texts(tokens: Sequence[Token], chunk: Chunk) -> set[str]:
    return {token.word for token in tokens[chunk.start : chunk.end]}


def _share_determiner(
    tokens: Sequence[Token], left: Chunk, right: Chunk
) -> tuple[Span, Span] | None:
    if any(not token.is_noun for token in (*tokens[left.core : left.end], tokens[right.core])):
        return None  # "a red car and truck": is the truck red?
    head = tokens[right.end - 1]
    if tokens[left.start].word in ("a", "an") and (
        head.tag == "NN2" or head.lemma in _words("mass")
    ):
        return (left.start, left.end), (right.start, right.end)
    if tokens[left.start].tag == "CRD":
        return None
    return (left.core, left.end), (right.start, right.end)


def _clauses_around(tokens: Sequence[Token], place: int) -> tuple[Span, Span] | None:
    """The halves of "a man riding a horse and a woman walking", where both begin alike."""
    left, right = chunks_beside(tokens, place)
    if left is None or left.start == 0 or right.end >= len(tokens):
        return None
    first = whole_phrases(tokens)[0]
    link, after = tokens[first.end], tokens[right.end]
    end = len(tokens) - (tokens[-1].tag == "PUN")
    alike = link.tag == after.tag == "VVG" or link.word == after.word in ("in", "on")
    others = [*tokens[:place], *tokens[place + 1 : end]]
    if first.start or not alike or {",", "and", "while"} & {token.word for token in others}:
        return None
    if _points(tokens) or any(token.tag in ("VVB", "VVZ", "VVD", "VBB", "VBZ") for token in others):
        return None  # "... hold a knife": both do
    return (0, place), (place + 1, end)


def _verbs_around(tokens: Sequence[Token], place: int) -> tuple[Span, Span] | None:
    """The halves of "holding an umbrella and petting a yak": verbs of one form."""
    after = tokens[place + 1] if place + 1 < len(tokens) else None
    if after is None or after.tag not in ("VVG", "VVZ") or tokens[place - 1].tag == after.tag:
        return None  # "holding and dialing a phone"
    firsts = [i for i in range(place) if tokens[i].tag == after.tag]
    end = len(tokens) - (tokens[-1].tag == "PUN")
    words = {token.word for token in tokens[place + 1 : end]}
    if not firsts or words & {",", "and", "while", *_words("pointer")}:
        return None
    if any(token.word in ("and", ",") for token in tokens[firsts[-1] : place]):
        return None
    return (firsts[-1], place), (place + 1, end)


def _points(tokens: Sequence[Token]) -> bool:
    return any(token.word in _words("pointer") for token in tokens)


def _false_swaps(tokens: Sequence[Token], chance: random.Random) -> list[tuple[Span, Span]]:
    """Words that can change places so that the caption says something else that could be seen."""
    fixed = _fixed([token.word for token in tokens])
    chunks = [
        chunk for chunk in chunks_of(tokens) if not fixed & set(range(chunk.start, chunk.end))
    ]
    finders = (_attribute_spans, _number_spans, _object_spans, _subject_spans, _place_spans)
    spans = [pair for find in finders for pair in find(tokens, chunks)]
    chance.shuffle(spans)
    return spans


def _attribute_spans(tokens: Sequence[Token], chunks: Sequence[Chunk]) -> list[tuple[Span, Span]]:
    """Adjectives, each of which contradicts the other where it stands: "red" and "blue"."""
    described = [
        (place, tokens[chunk.end - 1].lemma, _contrasts_at(tokens, place, "a", tokens[place].word))
        for chunk in chunks
        for place in range(chunk.core, chunk.end - 1)
    ]
    return [
        ((place, place + 1), (other, other + 1))
        for (place, noun, offers), (other, other_noun, other_offers) in itertools.combinations(
            described, 2
        )
        if noun != other_noun
        and tokens[other].word in offers
        and tokens[place].word in other_offers
    ]


def _number_spans(tokens: Sequence[Token], chunks: Sequence[Chunk]) -> list[tuple[Span, Span]]:
    """The numbers of "two dogs and three cats"."""
    counted = [
        chunk
        for chunk in chunks
        if tokens[chunk.start].word in _words("number") and tokens[chunk.end - 1].tag == "NN2"
    ]
    return [
        ((left.start, left.start + 1), (right.start, right.start + 1))
        for left, right in itertools.combinations(counted, 2)
        if tokens[left.start].word != tokens[right.start].word
        and tokens[left.end - 1].lemma != tokens[right.end - 1].lemma
    ]


def _object_spans(tokens: Sequence[Token], chunks: Sequence[Chunk]) -> list[tuple[Span, Span]]:
    """Things of one kind, one of which does to the other what the other could do, too."""
    spans = []
    for left, right in itertools.pairwise(chunks):
        between = [token.lemma for token in tokens[left.end : right.start]]
        link = " ".join(lemma for lemma in between if lemma not in _words("posture"))
        if any(
            link in links and _are_alike(tokens, left, right, name)
            for name, links in _lexicon().exchanges.items()
        ):
            spans.append(((left.start, left.end), (right.start, right.end)))
    return spans


def _are_alike(tokens: Sequence[Token], left: Chunk, right: Chunk, name: str) -> bool:
    """Whether two phrases of one number name different things of a class and nothing hangs on."""
    heads = tokens[left.end - 1], tokens[right.end - 1]
    return (
        all(head.lemma in _words(name) for head in heads)
        and heads[0].lemma != heads[1].lemma
        and heads[0].tag == heads[1].tag
        and (left.core > left.start) == (right.core > right.start)
        and "of" not in (_word_at(tokens, left.start - 1), _word_at(tokens, right.end))
        and not _points(tokens)
    )


def _subject_spans(tokens: Sequence[Token], chunks: Sequence[Chunk]) -> list[tuple[Span, Span]]:
    """The subjects of "a man riding a horse and a woman walking a dog": each does its own."""
    if any(token.lemma in _words("gendered") for token in tokens):
        return []
    return [
        ((left.start, left.end), (right.start, right.end))
        for left, right in itertools.combinations(chunks, 2)
        if _has_its_own(tokens, left)
        and _word_at(tokens, right.start - 1) not in _words("together")
        and (_has_its_own(tokens, right) or tokens[left.end].tag in ("VVG", "VVZ"))
        and right.start > left.end + 2  # else what the left one holds, not another that acts
        and any(_are_alike(tokens, left, right, name) for name in ("adult", "animal"))
    ]


def _has_its_own(tokens: Sequence[Token], chunk: Chunk) -> bool:
    """Whether something hangs on the phrase: "riding a horse", "with a hat", "in a red shirt"."""
    after = tokens[chunk.end : chunk.end + 2]
    return len(after) == 2 and (
        (after[0].tag in ("VVG", "VVZ") or after[0].word in ("in", "with", "on"))
        and (after[1].tag in DETERMINERS or after[1].is_noun or after[1].is_adjective)
    )


def _place_spans(tokens: Sequence[Token], chunks: Sequence[Chunk]) -> list[tuple[Span, Span]]:
    """The places of "a cat on a chair next to a table": on the one, beside the other."""
    return [
        ((left.start, left.end), (right.start, right.end))
        for left, right in itertools.pairwise(chunks)
        if _word_at(tokens, left.start - 1) in ("in", "on", "under", "top", "of")
        and " ".join(token.word for token in tokens[left.end : right.start]) in _words("beside")
        and any(
            _are_alike(tokens, left, right, name)
            for name in ("furniture", "vehicle alike", "small thing")
        )
    ]


def _word_at(tokens: Sequence[Token], place: int) -> str:
    return tokens[place].word if 0 <= place < len(tokens) else ""
