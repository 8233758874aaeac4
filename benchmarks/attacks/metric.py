"""Feed the metric valid and malformed input of every kind, and judge what it makes of it.

Right are the figures of a plain loop over exact fractions, refused what must be, in a sentence.
Wrong are other figures, figures where an error was due, or the reverse; and errors of other types
or in other words.
"""

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import torch
from scipy import sparse

from attacks.trials import Attack, Attempt, Outcome, Trial, wrong
from hard_positive_metric import compute_metrics

Rows = list[list[Any]]
BIG = 2**53 + 1  # float64 holds 2**53 and 2**53 + 2


def with_entry(rows: Rows, place: random.Random, entry: Any) -> Rows:
    """Put an entry somewhere."""
    rows = [list(row) for row in rows]
    row = place.choice(rows)
    row[place.randrange(len(row))] = entry
    return rows


def masked(rows: Rows, place: random.Random) -> np.ma.MaskedArray:
    mask = with_entry([[False] * len(row) for row in rows], place, True)
    return np.ma.masked_array(rows, mask)


def longer(rows: Rows, place: random.Random) -> Rows:
    """A row and an entry more than the labels, or the logits, have."""
    rows = [list(row) for row in rows] + [[1.0] * len(rows[0])]
    rows[place.randrange(len(rows))].append(0.0)
    return rows


def unsigned(rows: Rows, place: random.Random) -> np.ndarray:
    """uint64 beyond what int64 holds, exactly as float64."""
    return np.array([[2**63 + 2**12 * int(2 * entry + 40) for entry in row] for row in rows], "u8")


def quantised(rows: Rows, place: random.Random) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.tensor(rows), 0.1, 0, torch.qint8)


# Rows of halves between -4 and 4, of any lengths -> the same figures in another form.
VALID_LISTS: dict[str, Callable[[Rows, random.Random], Any]] = {
    "lists": lambda rows, place: rows,
    "tuples": lambda rows, place: tuple(map(tuple, rows)),
    "fractions": lambda rows, place: [[Fraction(entry) for entry in row] for row in rows],
    "large ints": lambda rows, place: [[int(2 * entry) * 2**60 for entry in row] for row in rows],
    "huge ints": lambda rows, place: [[int(2 * entry) * 2**900 for entry in row] for row in rows],
    "rows of arrays": lambda rows, place: [np.array(row) for row in rows],
    "rows of tensors": lambda rows, place: [torch.tensor(row) for row in rows],
    "rows with nothing masked": lambda rows, place: [np.ma.array(row) for row in rows],
    "array of lists": lambda rows, place: np.fromiter(rows, dtype=object),
    "series of lists": lambda rows, place: pandas.Series(rows),
    "Arrow lists": lambda rows, place: pa.array(rows, pa.list_(pa.float32())),
    "large Arrow lists": lambda rows, place: pa.array(rows, pa.large_list(pa.float64()))[0:],
    "chunks of Arrow lists": lambda rows, place: pa.chunked_array([rows[:1], rows[1:]]),
}
VALID: dict[str, Callable[[Rows, random.Random], Any]] = {
    **VALID_LISTS,
    "Arrow lists of one size": lambda rows, place: pa.array(
        rows, pa.list_(pa.float32(), len(rows[0]))
    ),
    "float16": lambda rows, place: np.array(rows, np.float16),
    "float64": lambda rows, place: np.array(rows),
    "longdouble": lambda rows, place: np.array(rows, np.longdouble),
    "Fortran order": lambda rows, place: np.asfortranarray(rows),
    "big-endian": lambda rows, place: np.array(rows, ">f4"),
    "int8": lambda rows, place: (2 * np.array(rows)).astype(np.int8),
    "uint64": unsigned,
    "objects": lambda rows, place: np.array(rows, dtype=object),
    "tensor": lambda rows, place: torch.tensor(rows),
    "bfloat16": lambda rows, place: torch.tensor(rows, dtype=torch.bfloat16, requires_grad=True),
    "data frame": lambda rows, place: pandas.DataFrame(rows),
    "nullable data frame": lambda rows, place: pandas.DataFrame(rows, dtype="Float64"),
    "nothing masked": lambda rows, place: np.ma.masked_array(rows, False),
}
# What to do to valid rows of any lengths so that they must be refused.
MALFORMED_LISTS: dict[str, Callable[[Rows, random.Random], Any]] = {
    **{
        f"entry {entry!r}"[:40]: lambda rows, place, entry=entry: with_entry(rows, place, entry)
        for entry in (
            *(None, "1", b"1", "", [1.0], {}, object(), 1j, Decimal(1), float("nan"), float("inf")),
            *(pandas.NA, pandas.NaT, np.ma.masked, np.datetime64(1, "ns"), np.timedelta64(1, "ns")),
            *(BIG, -BIG, 10**400, -(10**400), Fraction(1, 3), Fraction(10**400), 2**63 + 1),
            *(np.uint64(2**64 - 1), np.int64(BIG), np.longdouble(1) / 3, torch.tensor(1j)),
        )
    },
    "Arrow lists with a null": lambda rows, place: pa.array(with_entry(rows, place, None)),
    "Arrow lists with NaN": lambda rows, place: pa.array(with_entry(rows, place, float("nan"))),
    "Arrow lists and a null": lambda rows, place: pa.array([*rows, None]),
    "Arrow lists and an empty one": lambda rows, place: pa.array([*rows, []]),
    "Arrow lists of str": lambda rows, place: pa.array([[*map(str, row)] for row in rows]),
    "Arrow numbers": lambda rows, place: pa.array(rows[0]),
    "longer": longer,
    "longer arrays": lambda rows, place: [np.array(row) for row in longer(rows, place)],
    "longer Arrow lists": lambda rows, place: pa.array(longer(rows, place)),
    "empty row": lambda rows, place: [*rows[1:], []],
}
MALFORMED: dict[str, Callable[[Rows, random.Random], Any]] = {
    **MALFORMED_LISTS,
    "int64 beyond": lambda rows, place: np.array(with_entry([[0] * 3] * 4, place, BIG)),
    "uint64 beyond": lambda rows, place: np.array(
        with_entry([[0] * 3] * 4, place, 2**64 - 1), "u8"
    ),
    "tensor beyond": lambda rows, place: torch.tensor(with_entry([[0] * 3] * 4, place, -BIG)),
    "frame beyond": lambda rows, place: pandas.DataFrame(with_entry([[0] * 3] * 4, place, BIG)),
    "masked": masked,
    "masked ints": lambda rows, place: masked([[3, 2, 1]] * 4, place),
    "masked rows": lambda rows, place: list(masked(rows, place)),
    "masked objects": lambda rows, place: masked(rows, place).astype(object),
    "no rows": lambda rows, place: place.choice([[], (), np.zeros((0, 3)), torch.zeros(0, 3)]),
    "no columns": lambda rows, place: [[] for _ in rows],
    "flat": lambda rows, place: place.choice([rows[0], np.array(rows[0]), torch.tensor(rows[0])]),
    "deep": lambda rows, place: place.choice([[rows], np.array([rows]), torch.tensor([rows])]),
    "no array": lambda rows, place: place.choice(
        [None, 7, "3 2 1", b"321", {"a": rows}, {1, 2}, object(), iter(rows), np.array(5.0)]
    ),
    "complex": lambda rows, place: np.array(rows, dtype=complex),
    "complex tensor": lambda rows, place: torch.tensor(rows, dtype=torch.complex64),
    "times": lambda rows, place: np.array(
        [[3, 2, 1]] * 4, place.choice(["m8[ns]", "M8[ns]", "M8[D]"])
    ),
    "strings": lambda rows, place: np.array(rows).astype(str),
    "sparse": lambda rows, place: torch.tensor(rows).to_sparse(),
    "sparse rows": lambda rows, place: torch.tensor(rows).to_sparse_csr(),
    "rows of sparse": lambda rows, place: [torch.tensor(row).to_sparse() for row in rows],
    "scipy sparse": lambda rows, place: sparse.csr_matrix(rows),
    "quantised": quantised,
    "meta": lambda rows, place: torch.tensor(rows, device="meta"),
    "rows of meta": lambda rows, place: [torch.tensor(row, device="meta") for row in rows],
    "nested": lambda rows, place: torch.nested.nested_tensor([torch.tensor(row) for row in rows]),
    "nullable data frame with NA": lambda rows, place: pandas.DataFrame(
        with_entry(rows, place, None), dtype="Float64"
    ),
}
BAD_LABELS: dict[str, Callable[[list, random.Random], Any]] = {
    **{
        f"label {label!r}"[:40]: lambda labels, place, label=label: [*labels[1:], label]
        for label in (None, float("nan"), pandas.NA, 1.5, True, [1], object(), b"a", 1j)
    },
    "one too few": lambda labels, place: labels[1:],
    "set": lambda labels, place: set(range(len(labels))),
    "dict": lambda labels, place: dict.fromkeys(range(len(labels))),
    "str": lambda labels, place: "a" * len(labels),
    "iterator": lambda labels, place: iter(labels),
    "number": lambda labels, place: place.choice([7, np.array(7), torch.tensor(7)]),
    "deep": lambda labels, place: np.ones((len(labels), 1), dtype=int),
    "data frame": lambda labels, place: pandas.DataFrame([labels]),
    "masked": lambda labels, place: np.ma.masked_array([1] * len(labels), True),
    "sparse": lambda labels, place: torch.ones(len(labels)).to_sparse(),
    "meta": lambda labels, place: torch.ones(len(labels), device="meta"),
}


def reference(rows: Rows, labels: Rows) -> Counter:
    """Count by plain loops."""
    counts, num_pairs = Counter(num_examples=len(rows)), 0
    for row, row_labels in zip(rows, labels, strict=True):
        true, false = apart(row, row_labels)
        counts["num_original_correct"] += all(true[0] > n for n in false)
        counts["num_augmented_correct"] += has_all_right(row, row_labels)
        counts["num_brittle"] += any(a < n < b for a in true for b in true for n in false)
        counts["num_tied"] += max(false) in (true[0], min(true[1:] or true))
        num_pairs += len(true) > 1
    if not num_pairs:
        del counts["num_brittle"]
    return counts


def apart(row: list, labels: list) -> tuple[list[Fraction], list[Fraction]]:
    """The scores of the true captions and those of the false ones."""
    pairs = [(Fraction(entry), label) for entry, label in zip(row, labels, strict=True)]
    true, false = ([entry for entry, label in pairs if label == kind] for kind in (1, 0))
    return true, false


def has_all_right(row: list, labels: list) -> bool:
    true, false = apart(row, labels)
    return min(true) > max(false)


def count_sets(rows: Rows, labels: Rows, sets: list) -> dict[str, int]:
    wrong_sets = {
        s for row, of, s in zip(rows, labels, sets, strict=True) if not has_all_right(row, of)
    }
    return {"num_sets": len(set(sets)), "num_sets_correct": len(set(sets) - wrong_sets)}


def random_rows(seed: random.Random) -> tuple[Rows, Rows, bool]:
    """Draw rows, their labels, and whether their lengths may differ."""
    is_ragged, num_rows = seed.random() < 0.4, seed.randint(2, 9)
    width = seed.choice([2, 3, 3, 3, 4])
    widths = [seed.randint(2, 7) if is_ragged else width for _ in range(num_rows)]
    rows = [[seed.randint(-8, 8) / 2 for _ in range(width)] for width in widths]
    labels = [seed.sample([1, 0] + [seed.randint(0, 1)] * (width - 2), width) for width in widths]
    if not is_ragged and seed.random() < 0.5:
        labels = labels[:1] * num_rows
    return rows, labels, is_ragged


def random_input(seed: random.Random) -> tuple[dict[str, Any], Counter | None, str]:
    """Draw arguments, what they must give (None: an error), and a name."""
    rows, labels, is_ragged = random_rows(seed)
    is_default = not is_ragged and len(rows[0]) == 3  # fits references that are left out
    arguments: dict[str, Any] = {"predictions": rows, "references": labels}
    name = seed.choice(list(VALID_LISTS if is_ragged else VALID))
    arguments["predictions"] = VALID[name](rows, seed)
    if is_ragged and seed.random() < 0.5:
        arguments["references"] = pa.array(labels)
    for option in ("groups", "clusters", "sets"):
        if seed.random() < 0.5:
            arguments[option] = [seed.choice("abc") for _ in rows]
    if is_default and seed.random() < 0.3:
        arguments["references"], labels = None, [[1, 1, 0]] * len(rows)
    if seed.random() < 0.4:
        return arguments, truth_of(rows, labels, arguments), name

    where = seed.choice(["predictions", "predictions", "references", "groups", "clusters", "sets"])
    table = BAD_LABELS
    if where in ("predictions", "references"):
        table = MALFORMED_LISTS if is_ragged else MALFORMED
    name = seed.choice(list(table))
    valid = {
        "predictions": rows,
        "references": [[float(label) for label in row] for row in labels],
    }.get(where, ["a"] * len(rows))
    arguments[where] = table[name](valid, seed)
    # No references are those of the benchmark, which fit three columns.
    if where == "references" and arguments[where] is None and is_default:
        return arguments, truth_of(rows, [[1, 1, 0]] * len(rows), arguments), name
    return arguments, None, f"{where}: {name}"


def truth_of(rows: Rows, labels: Rows, arguments: dict[str, Any]) -> Counter | None:
    """Count, unless a set lies in several clusters."""
    sets, clusters = arguments.get("sets"), arguments.get("clusters")
    if sets and clusters and len({*zip(sets, clusters, strict=True)}) > len({*sets}):
        return None
    counts = reference(rows, labels)
    counts.update(count_sets(rows, labels, sets) if sets else {})
    return counts


TOLD = {
    *("num_examples", "num_original_correct", "num_augmented_correct", "num_brittle", "num_tied"),
    *("num_sets", "num_sets_correct"),
}


def verdict(arguments: dict[str, Any], truth: Counter | None) -> tuple[str, str]:
    """Say what became of one input, and details."""
    try:
        metrics = compute_metrics(**arguments)
    except (TypeError, ValueError) as error:
        if not str(error).startswith("Expected "):
            return "untyped", repr(error)
        return ("refused" if truth is None else "wrong"), str(error)
    except Exception as error:
        return "untyped", repr(error)
    if truth is None:
        return "wrong", "taken"
    found = {name: metrics[name] for name in metrics if name in TOLD}
    ends = [metrics[f"original_accuracy_ci_{end}"] for end in ("low", "high")]
    share = metrics["original_accuracy"]
    is_held = None in ends or 0 <= ends[0] <= share <= ends[1] <= 1
    is_right = (
        found == dict(truth)
        and is_held
        and share == found["num_original_correct"] / len(arguments["predictions"])
    )
    return ("right" if is_right else "wrong"), f"{found}, expected {dict(truth)}; {ends}"


def metric_inputs(small: int, full: int) -> Attack:
    """Feed the metric an input of any kind a trial."""

    @contextmanager
    def prepare(scratch: Path) -> Iterator[Attempt]:
        yield _feed

    return Attack("metric", prepare, small, full)


def _feed(trial: Trial) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what is a prototype
        arguments, truth, name = random_input(trial.random)
        found, details = verdict(arguments, truth)
    if found in ("right", "refused"):
        return Outcome(found)
    return wrong(f"{found}: {name}: {details}")
