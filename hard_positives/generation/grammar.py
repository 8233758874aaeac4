"""What the rules know of English: words with tags, noun phrases, inflection, articles, case.

HanTa tags, lemminflect lemmatises and inflects, inflect chooses articles. They were chosen because
their models and tables come in their wheels: spaCy's and NLTK's must be fetched from elsewhere.
This file knows no lexicon and decides no edit.
"""

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

_TOKEN = re.compile("\\w+(?:['\u2019-]\\w+)*|[^\\w\\s]")
# HanTa's tags (the British National Corpus' C5 set) -> the Penn tags that lemminflect takes.
_INFLECTED = {"NN2": "NNS", "VVG": "VBG", "VVD": "VBD", "VVN": "VBN", "VVZ": "VBZ", "VVB": "VBP"}
DETERMINERS = ("AT0", "DT0", "DPS")
_NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS += ("eleven", "twelve", "dozen", "twenty", "thirty", "forty", "fifty", "hundred")
Span = tuple[int, int]  # tokens, the end exclusive


@dataclass(frozen=True)
class Token:
    """A word or mark of a caption: where it stands, its lemma and its C5 tag."""

    text: str
    start: int
    end: int
    lemma: str
    tag: str

    @property
    def word(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    @property
    def is_noun(self) -> bool:
        """Whether it is tagged as a noun or name."""
        return self.tag in ("NN0", "NN1", "NN2", "NP0")

    @property
    def is_adjective(self) -> bool:
        """Whether it is tagged as an adjective."""
        return self.tag.startswith("AJ")

    @property
    def is_verb(self) -> bool:
        """Whether it is tagged as a verb."""
        return self.tag[:2] in ("VV", "VB", "VH", "VD")


@functools.cache
def _tagger() -> Any:
    try:
        import inflect  # noqa: F401
        import lemminflect  # noqa: F401
        from HanTa.HanoverTagger import HanoverTagger
    except ImportError as error:
        raise ImportError(
            f"Expected the packages that know English to be installed, got {error}. Run: "
            "pip install 'hard-positives[generation]'"
        ) from error
    return HanoverTagger("morphmodel_en.pgz")


@functools.lru_cache(maxsize=4096)
def analyse(caption: str) -> tuple[Token, ...]:
    """The words and marks of a caption with their tags.

    Examples:
        >>> [(token.text, token.lemma, token.tag) for token in analyse("Two dogs sat.")]
        [('Two', 'two', 'CRD'), ('dogs', 'dog', 'NN2'), ('sat', 'sit', 'VVD'), ('.', '.', 'PUN')]
    """
    found = list(_TOKEN.finditer(caption))
    # Lower case: the tagger takes a capital for a name, and some captions shout.
    tags = _tagger().tag_sent([match[0].lower() for match in found], taglevel=0)
    tokens = [
        Token(match[0], match.start(), match.end(), lemma_of(match[0].lower(), tag), tag)
        for match, tag in zip(found, map(_checked_tag, found, tags), strict=True)
    ]
    for place, (token, after) in enumerate(itertools.pairwise(tokens)):
        if token.word.endswith("ing") and token.is_noun and after.tag in DETERMINERS:
            tokens[place] = _as_verb(token)  # "petting a yak"
        counts = token.tag == "CRD" and token.word not in ("one", "1")
        if counts and after.tag in ("NN0", "NN1") and _is_plural(after.word):
            tokens[place + 1] = replace(after, tag="NN2")  # "two sheep"
    return tuple(tokens)


def _as_verb(token: Token) -> Token:
    return replace(token, lemma=lemma_of(token.word, "VVG"), tag="VVG")


@functools.lru_cache(maxsize=100_000)
def lemma_of(word: str, tag: str) -> str:
    """The form of a word that dictionaries list, for a word of this tag."""
    from lemminflect import getLemma

    kinds = {"NN2": "NOUN", "NN0": "NOUN", "VV": "VERB", "VB": "VERB", "VH": "VERB", "VD": "VERB"}
    kind = kinds.get(tag) or kinds.get(tag[:2])
    return getLemma(word, upos=kind)[0] if kind else word


def _checked_tag(match: re.Match, tag: str) -> str:
    """The tagger's guess; but what it cannot place ("giraffe", "kiwi") is a noun in captions."""
    word = match[0].lower()
    if word in ("a", "an", "the"):
        return "AT0"
    if tag == "NN2" and not word.endswith("s"):
        return tag if _is_plural(word) else "NN1"
    if tag not in ("UNC", "CRD") or not word.isalpha() or word in _NUMBERS:
        return tag
    return "NN2" if word.endswith("s") else "NN1"


@functools.cache
def _is_plural(word: str) -> bool:
    """Whether a noun without an s is a plural: "men", "sheep"; "skateboarder" is none."""
    from lemminflect import getInflection, getLemma

    lemma = getLemma(word, upos="NOUN")[0]
    return lemma != word or word in getInflection(word, tag="NNS")


@dataclass(frozen=True)
class Chunk:
    """A noun phrase: tokens `start` to `end` (exclusive); `core` is where its determiner ends."""

    start: int
    core: int
    end: int


def chunks_of(tokens: Sequence[Token]) -> list[Chunk]:
    """The noun phrases of a caption, from left to right, none inside another."""
    chunks, place = [], 0
    while place < len(tokens):
        core = place
        while core < len(tokens) and tokens[core].tag in (*DETERMINERS, "CRD"):
            core += 1
        end = core
        while end < len(tokens) and (
            tokens[end].is_noun
            or tokens[end].is_adjective
            or (tokens[end].tag in ("VVG", "VVN") and core > place and end == core)
        ):
            end += 1
        while end > core and not tokens[end - 1].is_noun:
            end -= 1
        if end > core:
            chunks.append(Chunk(place, core, end))
        place = max(end, place + 1)
    return chunks


def whole_phrases(tokens: Sequence[Token]) -> list[Chunk]:
    """Chunks with what hangs on them by "of": "a cup of coffee" is one."""
    whole: list[Chunk] = []
    for chunk in chunks_of(tokens):
        last = whole[-1] if whole else None
        if last and chunk.start == last.end + 1 and tokens[last.end].word == "of":
            whole[-1] = Chunk(last.start, last.core, chunk.end)
        else:
            whole.append(chunk)
    return whole


def chunks_beside(tokens: Sequence[Token], place: int) -> tuple[Chunk, Chunk] | tuple[None, None]:
    """The noun phrases that end and begin at the word at `place`; both or neither."""
    chunks = whole_phrases(tokens)
    left = next((chunk for chunk in chunks if chunk.end == place), None)
    right = next((chunk for chunk in chunks if chunk.start == place + 1), None)
    return (left, right) if left and right else (None, None)


def head_after(tokens: Sequence[Token], start: int) -> Token | None:
    """The last noun of the noun phrase that begins at or includes `start`."""
    head = None
    for token in tokens[start:]:
        if token.is_noun:
            head = token
        elif head or not (token.is_adjective or token.tag in (*DETERMINERS, "CRD", "VVG", "VVN")):
            break
    return head


def inflect_like(other: str, token: Token, kind: str) -> str:
    """A lexicon word in the number or tense of the token that it replaces."""
    tag = _INFLECTED.get(token.tag)
    if tag is None or kind not in ("v", "n"):
        return other
    words = other.split()
    place = 0 if kind == "v" else -1  # "traveling on", "travel bags"
    words[place] = _inflected(words[place], tag)
    return " ".join(words)


@functools.cache
def _inflected(word: str, tag: str) -> str:
    from lemminflect import getInflection

    forms = getInflection(word, tag=tag) or (word,)
    return forms[-1] if tag == "NNS" and forms[0] == word else forms[0]


@functools.cache
def article_for(words: str) -> str:
    """The article, "a" or "an", as the first of these words needs it."""
    return _inflect_engine().a(words.split()[0].lower()).split()[0]


@functools.cache
def _inflect_engine() -> Any:
    import inflect

    return inflect.engine()


def in_case_of(old: str, new: str) -> str:
    """New words in capitals, with a capital or without, as the old ones are."""
    if old.isupper() and len(old) > 1:
        return new.lower() if old == "TV" else new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


def exchange(caption: str, first: Span, second: Span) -> str:
    """The caption with two spans of tokens exchanged; case and articles follow."""
    tokens = analyse(caption)
    (a, b), (c, d) = ((tokens[s].start, tokens[e - 1].end) for s, e in (first, second))
    left, right = caption[a:b], caption[c:d]
    if first[0] == 0 and left[:1].isupper() and not left.isupper():
        keeps_capital = tokens[first[0]].tag == "NP0"
        left = left if keeps_capital else left[0].lower() + left[1:]
        right = right[0].upper() + right[1:]
    edited = caption[:a] + right + caption[b:c] + left + caption[d:]
    # Only before a word that was not there: the caption's own articles are none of our business.
    return _ARTICLE.sub(
        lambda match: match[0] if match[0].lower() in caption.lower() else _agreeing(match), edited
    )


_ARTICLE = re.compile(r"\b(an?)( +)(\w+)", re.IGNORECASE)


def _agreeing(match: re.Match) -> str:
    return in_case_of(match[1], article_for(match[3])) + match[2] + match[3]
