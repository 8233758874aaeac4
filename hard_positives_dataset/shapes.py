"""A small rendered world with the columns of the benchmark.

It stands in for Visual Genome where there is none. A scene is two or three shapes with a colour, a
size and a place; its captions are of the three kinds of the benchmark: one object with
attributes, two objects in a relation, two objects joined by "and". Everything follows from
`(seed, split, scene index)`, so that any row can be made alone and in parallel.

Captions are written from word tables (`ATTRIBUTES`, `RELATIONS`) and read back by `truth`, which
shares the tables with the writer but none of its code. This file does not write Parquet and needs
only pillow.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

# Each word the captions mostly use, with its synonyms; the published substitution comes first.
COLOURS = {
    "red": ("crimson", "scarlet"),
    "blue": ("sapphire", "azure"),
    "green": ("emerald", "jade"),
    "yellow": ("golden", "lemon"),
    "white": ("ivory", "snowy"),
    "black": ("ebony", "inky"),
}
SIZES = {"large": ("big", "huge"), "small": ("tiny", "little")}
ATTRIBUTES = {"size": SIZES, "colour": COLOURS}
RELATIONS = {
    "left of": ("to the left of", "leftward of"),
    "right of": ("to the right of", "rightward of"),
    "above": ("on top of", "over"),
    "under": ("beneath", "below"),
    "in": ("within", "inside"),
    "touching": ("against", "meeting"),
    "far from": ("distant from", "away from"),
}
# Relations that exclude each other. A false one is drawn from these, and all are told of equally
# often: so nobody guesses from the words alone which of two captions is false.
EXCLUSIVE = (("left of", "right of", "above", "under"), ("in", "touching", "far from"))
# In a world of habits things are mostly as they usually are; no shape is usually black.
USUAL_TRAITS = {
    "circle": {"size": "large", "colour": "yellow"},
    "square": {"size": "large", "colour": "red"},
    "triangle": {"size": "small", "colour": "green"},
    "star": {"size": "small", "colour": "white"},
    "cross": {"size": "small", "colour": "blue"},
}
SYNONYMS = {
    word: synonyms
    for table in (*ATTRIBUTES.values(), RELATIONS)
    for word, synonyms in table.items()
}

CELL = 24  # pixels; things stand near the middle of a cell, so that a tiny model can learn of them
IMAGE_SIZE = 3 * CELL
CAPTION_SYNONYM_RATE = 0.06  # of the words of training captions that have synonyms
READING_ORDER_RATE = 0.97  # of "A and B" captions name first the object that is further left
SPLIT_CATEGORIES = {
    "replace": ("attribute", "relation"),
    "swap": ("swap",),
    "train": ("attribute", "relation", "swap"),
}
ROWS_PER_CATEGORY = 2  # of each scene
SPLIT_SIZES = {"replace": 2000, "swap": 1000}
THING_COUNTS = (2, 2, 2, 3)
# Training scenes in a row that have the same shapes, colours and sizes, as photographs of an album
# do: in even families the same objects in other places, in odd ones dealt out anew.
FAMILY_SIZE = 8

_RGB = {
    "red": (214, 38, 42),
    "blue": (40, 80, 205),
    "green": (38, 148, 62),
    "yellow": (240, 205, 45),
    "white": (246, 246, 242),
    "black": (28, 28, 32),
}
_SUPERSAMPLING = 4


def _ring(radii: tuple[float, ...], turn: float = 0.0) -> tuple[tuple[float, float], ...]:
    """Points around the origin at equal angles, with these distances from it; the first is up."""
    angles = [2 * math.pi * i / len(radii) + turn for i in range(len(radii))]
    return tuple((r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True))


_ARM, _REACH = 0.42, 1.12
# Outlines for a radius of 1, of about the same area; y grows downwards.
SHAPES = {
    "circle": _ring((1.0,) * 32),
    "square": _ring((1.22,) * 4, math.pi / 4),
    "triangle": _ring((1.35,) * 3),
    "star": _ring((1.35, 0.62) * 5),
    "cross": tuple(
        (sx * x, sy * y)
        for sx, sy, corner in ((1, -1, 0), (1, 1, 1), (-1, 1, 0), (-1, -1, 1))
        for x, y in ((_ARM, _REACH), (_ARM, _ARM), (_REACH, _ARM))[:: -1 if corner else 1]
    ),
}


def _distance_to_segment(a: tuple[float, float], b: tuple[float, float]) -> float:
    """From the origin to the segment a-b."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = max(0.0, min(1.0, -(a[0] * dx + a[1] * dy) / (dx * dx + dy * dy)))
    return math.hypot(a[0] + t * dx, a[1] + t * dy)


_OUTER = {name: max(math.hypot(*p) for p in points) for name, points in SHAPES.items()}
_INNER = {
    name: min(map(_distance_to_segment, points, points[1:] + points[:1]))
    for name, points in SHAPES.items()
}
_FAR = 12.0  # pixels between two things, from which they are far from each other
_JITTER = 2.5  # pixels from the middle of the cell, on both axes
_STEPS = {
    "left of": ((1, 0), (2, 0)),
    "right of": ((-1, 0), (-2, 0)),
    "above": ((0, 1), (0, 2)),
    "under": ((0, -1), (0, -2)),
    "far from": tuple(
        step for step in itertools.product(range(-2, 3), repeat=2) if 2 in map(abs, step)
    ),
}
_TRIES = 400  # of a family's traits, before a scene that they do not fit takes the next ones
_RADII = {"large": (9.0, 10.5), "small": (4.8, 5.6)}  # in pixels


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its attributes in base words, a shape, a place in pixels.

    `tint` shifts the colour a little, `rotation` is in radians.
    """

    colour: str
    size: str
    shape: str
    x: float
    y: float
    radius: float
    rotation: float
    tint: tuple[int, int, int]

    @property
    def outer(self) -> float:
        """Radius of the circle around the outline."""
        return self.radius * _OUTER[self.shape]

    @property
    def inner(self) -> float:
        """Radius of the circle within the outline."""
        return self.radius * _INNER[self.shape]


@dataclass(frozen=True)
class Scene:
    """Objects from back to front over a background that shades from one colour into another."""

    things: tuple[Thing, ...]
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    vertical: bool


# --- scenes ---------------------------------------------------------------------------------------


def make_scene(split: str, index: int, *, seed: int = 0, usual: float = 0.0) -> Scene:
    """The scene behind some rows of a split.

    Args:
        split: "replace", "swap" or "train"; scenes of different splits are drawn apart.
        index: Which scene, from 0.
        seed: Another seed is another world of the same kind.
        usual: As for `generate_rows`.

    Returns:
        A scene of two or three objects.
    """
    return _compose(split, index, seed, usual)[0]


def usual_place(first: str, second: str, relation: str) -> str:
    """Return how one shape usually stands to another: each pair has one direction, one nearness.

    Args:
        first: A shape.
        second: Another shape.
        relation: Any of the relations that the answer is to exclude or equal.

    Returns:
        A relation.

    Examples:
        >>> usual_place("circle", "square", "under"), usual_place("square", "circle", "under")
        ('left of', 'right of')
        >>> usual_place("circle", "star", "touching")
        'in'
    """
    directions, nearness = EXCLUSIVE
    a, b = (list(SHAPES).index(shape) for shape in (first, second))
    if relation in nearness:
        return nearness[(a + b) % len(nearness)]
    return directions[2 * ((a + b + 1) % 2) + (a > b)]


def _compose(
    split: str, index: int, seed: int, usual: float
) -> tuple[Scene, dict[str, list[_Triple]]]:
    """A scene that gives enough captions of every category of its split, and those captions."""
    rng = random.Random(f"shapes/{seed}/{split}/{index}")
    number = index // FAMILY_SIZE if split == "train" else index
    family = random.Random(f"shapes/{seed}/{split}/family {number}")
    drawn = relation = rng.choice(list(RELATIONS))
    is_in_usual_place = _is_drawn(rng, usual)
    attempt = 0
    while True:
        if attempt % _TRIES == 0:
            traits = _draw_traits(family)
            objects = _deal(family, traits, usual)
        if number % 2:
            objects = _deal(rng, traits, usual)
        attempt += 1
        in_order = _shuffled(rng, objects)
        if is_in_usual_place:
            relation = usual_place(in_order[0]["shape"], in_order[1]["shape"], drawn)
        scene = _draw_scene(rng, in_order, relation)
        if scene is None:
            continue
        triples = {}
        for category in SPLIT_CATEGORIES[split]:
            drafts = _DRAFTS[category](scene, relation, rng)
            written = _write(scene, category, drafts, rng, split == "train")
            triples[category] = list(itertools.islice(written, ROWS_PER_CATEGORY))
        if all(len(written) == ROWS_PER_CATEGORY for written in triples.values()):
            return scene, triples


def _draw_traits(rng: random.Random) -> dict[str, list[str]]:
    """What a family of scenes has in common: as many of each trait as there are objects."""
    count = rng.choice(THING_COUNTS)
    tables: dict[str, Iterable[str]] = {**ATTRIBUTES, "shape": SHAPES}
    traits = {
        kind: [rng.choice(list(table)) for _ in range(count)] for kind, table in tables.items()
    }
    # Two of each at least, or no caption could be told from its swap.
    for kind, table in tables.items():
        traits[kind][:2] = _shuffled(rng, table)[:2]
    return traits


def _deal(rng: random.Random, traits: dict[str, list[str]], usual: float) -> list[dict[str, str]]:
    """The traits of each object; a share of them the usual ones of its shape, not those dealt."""
    hands = {kind: _shuffled(rng, values) for kind, values in traits.items()}
    objects = [
        dict(zip(hands, values, strict=True)) for values in zip(*hands.values(), strict=True)
    ]
    for dealt in objects:
        habits = USUAL_TRAITS[dealt["shape"]]
        dealt.update({kind: word for kind, word in habits.items() if _is_drawn(rng, usual)})
    return objects


def _is_drawn(rng: random.Random, share: float) -> bool:
    """Draw nothing where the share is 0: the published world stays as it is, byte for byte."""
    return share > 0 and rng.random() < share


def _draw_scene(rng: random.Random, objects: list[dict[str, str]], relation: str) -> Scene | None:
    """Places for these objects, two of them in this relation; None where the draw does not fit."""
    first, second, *others = (_draw_thing(rng, traits) for traits in objects)
    placed = _place_pair(rng, first, second, relation)
    for thing in others:
        placed = placed and _place_apart(rng, placed, thing)
    if placed is None:
        return None
    grey = rng.randrange(120, 200)
    red, green, blue = (grey + rng.randrange(-18, 19) for _ in range(3))
    start = red, green, blue
    red, green, blue = (channel + rng.randrange(-14, 15) for channel in start)
    end = red, green, blue
    return Scene(tuple(placed), (start, end), rng.random() < 0.5)


def _draw_thing(rng: random.Random, traits: dict[str, str]) -> Thing:
    low, high = _RADII[traits["size"]]
    radius, rotation = rng.uniform(low, high), rng.uniform(-0.26, 0.26)
    red, green, blue = (rng.randrange(-18, 19) for _ in range(3))
    return Thing(
        **traits,
        x=0.0,
        y=0.0,
        radius=radius,
        rotation=rotation,
        tint=(red, green, blue),
    )


def _place_pair(
    rng: random.Random, first: Thing, second: Thing, relation: str
) -> list[Thing] | None:
    """Both with places, from back to front; None where this draw does not fit."""
    cell = rng.randrange(3), rng.randrange(3)
    first = _near_cell(rng, first, *cell)
    if relation in _STEPS:  # of the second, seen from the first
        step = rng.choice(_STEPS[relation])
        second = _near_cell(rng, second, cell[0] + step[0], cell[1] + step[1])
    elif first.colour == second.colour:
        return None  # one could not be told from the other
    else:
        inner = first.inner + second.inner
        spread = (0.8 * inner, 0.9 * inner) if relation == "touching" else (0.0, first.inner / 2)
        distance, angle = rng.uniform(*spread), rng.uniform(0, 2 * math.pi)
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        second = _move(second, first.x + x, first.y + y)
    subject, other = (second, first) if relation == "in" else (first, second)
    if _fits(first) and _fits(second) and _HOLDS[relation](subject, other):
        return [first, second]
    return None


def _place_apart(rng: random.Random, placed: list[Thing], thing: Thing) -> list[Thing] | None:
    """`placed` and one more that meets none of them; None after too many tries."""
    for _ in range(20):
        thing = _near_cell(rng, thing, rng.randrange(3), rng.randrange(3))
        if _fits(thing) and all(_gap(thing, other) > 1.0 for other in placed):
            return [*placed, thing]
    return None


def _near_cell(rng: random.Random, thing: Thing, column: int, row: int) -> Thing:
    x, y = (CELL * (i + 0.5) + rng.uniform(-_JITTER, _JITTER) for i in (column, row))
    return _move(thing, x, y)


def _move(thing: Thing, x: float, y: float) -> Thing:
    return dataclasses.replace(thing, x=x, y=y)


def _fits(thing: Thing) -> bool:
    low, high = thing.outer, IMAGE_SIZE - thing.outer
    return low <= thing.x <= high and low <= thing.y <= high


# --- pictures -------------------------------------------------------------------------------------


def render_scene(scene: Scene) -> Image.Image:
    """The picture of a scene.

    Returns:
        An RGB image of `IMAGE_SIZE` x `IMAGE_SIZE` pixels.
    """
    size = IMAGE_SIZE * _SUPERSAMPLING
    shade = Image.linear_gradient("L").resize((size, size))
    start, end = (Image.new("RGB", (size, size), colour) for colour in scene.background)
    canvas = Image.composite(end, start, shade if scene.vertical else shade.rotate(90))
    for thing in scene.things:
        _paint(canvas, thing)
    return canvas.reduce(_SUPERSAMPLING)


def _paint(canvas: Image.Image, thing: Thing) -> None:
    half = math.ceil(thing.outer * _SUPERSAMPLING)
    cos, sin = math.cos(thing.rotation), math.sin(thing.rotation)
    scale = thing.radius * _SUPERSAMPLING
    outline = [
        (half + scale * (x * cos - y * sin), half + scale * (x * sin + y * cos))
        for x, y in SHAPES[thing.shape]
    ]
    fill = tuple(
        max(0, min(255, c + t)) for c, t in zip(_RGB[thing.colour], thing.tint, strict=True)
    )
    tile = Image.new("RGB", (2 * half, 2 * half), fill)
    edge = tuple(int(c * 0.6) for c in fill)
    ImageDraw.Draw(tile).line([*outline, outline[0]], fill=edge, width=_SUPERSAMPLING)
    mask = Image.new("1", tile.size)
    ImageDraw.Draw(mask).polygon(outline, fill=1)
    corner = (round(thing.x * _SUPERSAMPLING) - half, round(thing.y * _SUPERSAMPLING) - half)
    canvas.paste(tile, corner, mask)


def _png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    render_scene(scene).save(buffer, format="PNG")
    return buffer.getvalue()


# --- captions -------------------------------------------------------------------------------------

_MENTIONED = {"size": 0.3, "colour": 0.7}  # how often, of a thing in a relation
_Terms = tuple[str, ...]  # a caption as base words; a relation is one term


@dataclass(frozen=True)
class _Triple:
    caption: str
    hard_positive: str
    hard_negative: str
    substitution: str


def _write(
    scene: Scene,
    category: str,
    drafts: Iterator[tuple[_Terms, int]],
    rng: random.Random,
    is_train: bool,
) -> Iterator[_Triple]:
    """Triples of one category in the order of their drafts, no caption twice."""
    make = _swap if category == "swap" else _replace
    written = set()
    for terms, slot in drafts:
        triple = make(scene, terms, slot, rng, is_train)
        if triple and triple.caption not in written:
            written.add(triple.caption)
            yield triple


def _shuffled(rng: random.Random, items: Iterable) -> list:
    items = list(items)
    rng.shuffle(items)
    return items


def _attribute_drafts(
    scene: Scene, relation: str, rng: random.Random
) -> Iterator[tuple[_Terms, int]]:
    for thing, kind in _shuffled(rng, itertools.product(scene.things, ATTRIBUTES)):
        also = rng.choice(("colour", "colour", None))
        kinds = [k for k in ATTRIBUTES if k in (kind, also)]
        yield (*(getattr(thing, k) for k in kinds), thing.shape), kinds.index(kind)


def _relation_drafts(
    scene: Scene, relation: str, rng: random.Random
) -> Iterator[tuple[_Terms, int]]:
    pairs = list(itertools.permutations(scene.things, 2)) * 4  # each in several wordings
    for a, b in _shuffled(rng, pairs):
        if a.shape != b.shape and _HOLDS[relation](a, b):
            before, after = (
                tuple(getattr(t, k) for k, p in _MENTIONED.items() if rng.random() < p)
                for t in (a, b)
            )
            yield (*before, a.shape, relation, *after, b.shape), len(before) + 1


def _swap_drafts(scene: Scene, relation: str, rng: random.Random) -> Iterator[tuple[_Terms, int]]:
    pairs = itertools.combinations(scene.things, 2)
    for (a, b), kind_a in _shuffled(rng, itertools.product(pairs, ATTRIBUTES)):
        in_reading_order = rng.random() < READING_ORDER_RATE
        if (a.x < b.x) != in_reading_order:
            a, b = b, a
        kind_b = rng.choice((kind_a, "colour"))
        yield ("the", getattr(a, kind_a), a.shape, "and", "the", getattr(b, kind_b), b.shape), 3


_DRAFTS = {"attribute": _attribute_drafts, "relation": _relation_drafts, "swap": _swap_drafts}


def _word(terms: _Terms, rng: random.Random, is_train: bool) -> list[str]:
    """Terms as the words of a caption: in training some are synonyms, else all are base words."""
    rate = CAPTION_SYNONYM_RATE if is_train else 0.0
    return [
        rng.choice(SYNONYMS[term]) if term in SYNONYMS and rng.random() < rate else term
        for term in terms
    ]


def _replace(
    scene: Scene, terms: _Terms, slot: int, rng: random.Random, is_train: bool
) -> _Triple | None:
    table = next(t for t in (*ATTRIBUTES.values(), *EXCLUSIVE) if terms[slot] in t)

    def phrase(word: str) -> str:
        return " ".join([*words[:slot], word, *words[slot + 1 :]])

    words = _word(terms, rng, is_train)
    false = [t for t in table if truth(scene, phrase(t)) is False]
    if not false:
        return None
    present = [t for t in false if any(t in (o.colour, o.size) for o in scene.things)]
    other = rng.choice(present if present and rng.random() < 0.5 else false)
    if is_train:  # generators of hard negatives draw from more words than captions use
        other = rng.choice((other, *SYNONYMS[other]))
    synonym = rng.choice(SYNONYMS[terms[slot]]) if words[slot] == terms[slot] else terms[slot]
    return _Triple(
        phrase(words[slot]), phrase(synonym), phrase(other), f"{words[slot]} > {synonym}"
    )


def _swap(
    scene: Scene, terms: _Terms, slot: int, rng: random.Random, is_train: bool
) -> _Triple | None:
    words = _word(terms, rng, is_train)
    first, second = words[:slot], words[slot + 1 :]
    if first[-1] == second[-1]:
        return None
    negative = f"the {second[1]} {first[2]} and the {first[1]} {second[2]}"
    if is_train and rng.random() < 0.5:  # generators exchange nouns as often as attributes
        negative = f"the {first[1]} {second[2]} and the {second[1]} {first[2]}"
    if truth(scene, negative) is not False:
        return None
    return _Triple(" ".join(words), " ".join([*second, "and", *first]), negative, "")


# --- truth ----------------------------------------------------------------------------------------


def truth(scene: Scene, caption: str) -> bool | None:
    """Whether a caption is true of a scene, read from its words alone.

    "red circle" is true where there is one. A place between two relations, which people would call
    by either name, is neither true nor false.

    Args:
        scene: The scene.
        caption: A caption in the words of `ATTRIBUTES`, `RELATIONS` and `SHAPES`.

    Returns:
        True, False, or None where people could disagree.

    Raises:
        ValueError: The caption has other words or another form.
    """
    phrases, relation = _parse(caption)
    matches = [[o for o in scene.things if words <= _described(o)] for words in phrases]
    if relation is None:
        return all(matches)
    answers = {_HOLDS[relation](a, b) for a in matches[0] for b in matches[1] if a is not b}
    return True if True in answers else None if None in answers else False


def _described(thing: Thing) -> set[str]:
    return {thing.colour, thing.size, thing.shape}


_BASE = {word: base for base, synonyms in SYNONYMS.items() for word in (base, *synonyms)}
_RELATION_PATTERN = re.compile(
    " ("
    + "|".join(sorted((w for w, base in _BASE.items() if base in RELATIONS), key=len, reverse=True))
    + ") "
)


@functools.cache
def _parse(caption: str) -> tuple[list[set[str]], str | None]:
    """The words that describe each object, and the relation between two."""
    found = _RELATION_PATTERN.search(caption)
    relation = _BASE[found[1]] if found else None
    parts = re.split(_RELATION_PATTERN.pattern if found else " and ", caption)
    described = parts[::2] if found else parts
    phrases = [{_BASE.get(w, w) for w in part.split() if w != "the"} for part in described]
    known = {*SHAPES, *itertools.chain(*ATTRIBUTES.values())}
    if not all(p and p <= known and len(p & set(SHAPES)) == 1 for p in phrases):
        raise ValueError(
            f"Expected a caption in the words of this world, got {caption!r}. See ATTRIBUTES, "
            "RELATIONS and SHAPES for the words."
        )
    return phrases, relation


def _gap(a: Thing, b: Thing) -> float:
    return math.hypot(a.x - b.x, a.y - b.y) - a.outer - b.outer


def _towards(dx: int, dy: int, a: Thing, b: Thing) -> bool | None:
    """Whether a lies from b in this direction: clearly, clearly not, or between."""
    along = (a.x - b.x) * dx + (a.y - b.y) * dy
    across = abs((a.x - b.x) * dy) + abs((a.y - b.y) * dx)
    if along <= across / 2 or _contains(a, b) or _contains(b, a):
        return False
    return True if along >= 2 * across and _gap(a, b) > 0 else None


def _contains(b: Thing, a: Thing) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) + a.outer <= b.inner + 1e-6


def _in(a: Thing, b: Thing) -> bool | None:
    if _contains(b, a):
        return True
    is_outside = math.hypot(a.x - b.x, a.y - b.y) > b.inner
    return False if is_outside or a.outer > b.outer else None


def _touching(a: Thing, b: Thing) -> bool | None:
    """Whether their edges meet; not where one lies within the other."""
    if _contains(a, b) or _contains(b, a):
        return False
    apart = math.hypot(a.x - b.x, a.y - b.y)
    return True if apart <= a.inner + b.inner else False if _gap(a, b) > 0 else None


def _far(a: Thing, b: Thing) -> bool | None:
    gap = _gap(a, b)
    return True if gap >= _FAR else False if gap < _FAR / 2 else None


_HOLDS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": functools.partial(_towards, -1, 0),
    "right of": functools.partial(_towards, 1, 0),
    "above": functools.partial(_towards, 0, -1),
    "under": functools.partial(_towards, 0, 1),
    "in": _in,
    "touching": _touching,
    "far from": _far,
}


# --- rows -----------------------------------------------------------------------------------------


def generate_rows(
    split: str,
    num_rows: int | None = None,
    *,
    seed: int = 0,
    start: int = 0,
    usual: float = 0.0,
) -> Iterator[dict]:
    """Rows of a split, in order; rows of one image stand together.

    In `train` some words of the captions are synonyms, and the hard negatives draw on synonyms far
    more often and exchange nouns too, as generators of hard negatives do. In `replace` and `swap`
    captions and hard negatives are in base words.

    Args:
        split: "replace", "swap" or "train".
        num_rows: How many; `SPLIT_SIZES[split]` where left out, and `train` has no such size.
        seed: Another seed is another world of the same kind.
        start: The first row to make; those before it cost nothing.
        usual: A share in [0, 1] of colours, sizes and relations that are as usual for their shapes
            (`USUAL_TRAITS`, `usual_place`); the others are drawn from all, usual ones among them.
            In such a world hard negatives are less usual as text than captions, as in real
            benchmarks. With 0, the published world, no word tells which caption is false.

    Returns:
        Dicts with the columns of the benchmark. `image` is `{"bytes": PNG, "path": None}`.

    Raises:
        ValueError: Unknown split, `train` without `num_rows`, or `usual` out of range.

    Examples:
        >>> row = next(generate_rows("swap"))
        >>> sorted(row["caption"].split()) == sorted(row["hard_negative"].split())
        True
    """
    if split not in SPLIT_CATEGORIES:
        raise ValueError(
            f"Expected split to be one of {', '.join(SPLIT_CATEGORIES)}, got {split!r}."
        )
    if num_rows is None and split not in SPLIT_SIZES:
        raise ValueError(f"Expected num_rows for {split}, got None. Say how many rows to make.")
    if not 0 <= usual <= 1:
        raise ValueError(f"Expected usual to be between 0 and 1, got {usual}. Give a share.")
    num_rows = SPLIT_SIZES[split] if num_rows is None else num_rows
    per_scene = ROWS_PER_CATEGORY * len(SPLIT_CATEGORIES[split])
    index, skip = divmod(start, per_scene)
    rows = itertools.chain.from_iterable(
        _scene_rows(split, index, seed, usual) for index in itertools.count(index)
    )
    return itertools.islice(rows, skip, skip + num_rows)


def _scene_rows(split: str, index: int, seed: int, usual: float) -> Iterator[dict]:
    scene, triples = _compose(split, index, seed, usual)
    image = {"bytes": _png(scene), "path": None}
    for category, written in triples.items():
        name = split if split == category else f"{split}-{category}"
        for i, triple in enumerate(written, start=index * ROWS_PER_CATEGORY):
            yield {
                "id": f"{name}-{i:05d}",
                "image": image,
                **triple.__dict__,
                "category": category,
                "image_id": f"{split}-{index:05d}",
                "bbox": None,
                "flaws": [],
            }
