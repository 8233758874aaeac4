"""Tables that fit the terminal: names stay whole, and columns are left out where there is no room.

rich alone shrinks whatever can be shrunk: at 60 columns of a terminal, names of rows were gone.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_UNLIMITED = 10_000
_SHORTEST_NAME = 12


class FittedTable(Table):
    """A rich table whose first column has names.

    Attributes:
        dispensable: Headers of columns that may be left out, the first of them first.
        wider: What is shown in its place where that has room.
    """

    dispensable: Sequence[str] = ()
    wider: Table | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render what fits, and say what does not."""
        if self.wider is not None and _width(self.wider, console, options) <= options.max_width:
            yield self.wider
            return
        shown = copy.copy(self)
        shown.columns = [replace(column) for column in self.columns]
        left_out: list[str] = []
        for header in self.dispensable:
            if _width(shown, console, options) <= options.max_width:
                break
            kept = [column for column in shown.columns if column.header != header]
            left_out += [header] if len(kept) < len(shown.columns) else []
            shown.columns = [replace(column, _index=place) for place, column in enumerate(kept)]
        if left_out:
            shown.caption = f"{self.caption or ''} No room for: {', '.join(left_out)}.".strip()
        missing = _width(shown, console, options) - options.max_width
        if missing > 0:  # the names are folded then, not the figures
            names = shown.columns[0]
            names.width = max(_SHORTEST_NAME, _width_of_names(shown, console, options) - missing)
            names._cells = list(map(_hanging, names._cells))
        yield from Table.__rich_console__(shown, console, options)


def _hanging(name: RenderableType) -> RenderableType:
    """Indent every line of a folded name as its first."""
    text = Text(name) if isinstance(name, str) else name
    if not isinstance(text, Text):
        return name
    indent = len(text.plain) - len(text.plain.lstrip())
    return Padding(text[indent:], (0, 0, 0, indent))


def _width(table: Table, console: Console, options: ConsoleOptions) -> int:
    return Measurement.get(console, options.update(max_width=_UNLIMITED), table).maximum


def _width_of_names(table: Table, console: Console, options: ConsoleOptions) -> int:
    wide = options.update(max_width=_UNLIMITED)
    cells = [Measurement.get(console, wide, cell).maximum for cell in table.columns[0].cells]
    return max(cells, default=0)
