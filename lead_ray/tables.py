"""Tables of measured numbers, the same content for terminal, Markdown, HTML and CSV.

A cell that was not run is blank, never 0. The best of a column is bold only if it is ahead of the runner-up
by more than the standard deviation of either; where one of the two is unknown, nothing is bold.
"""

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import groupby
from typing import Literal

from rich import box
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

ARROWS = {"lower": "↓", "higher": "↑", None: ""}
BOLD_RULE = "Bold: best of its column, ahead of the runner-up by more than the standard deviation of either."


@dataclass(frozen=True)
class Cell:
    """A measured value.

    Raises: ValueError if a number is not finite, std is negative or n is below 1.
    """

    mean: float
    std: float | None = None
    """Standard deviation over the n values; None if it is not known."""
    n: int | None = None
    """Values, such as seeds, that the mean is over."""

    def __post_init__(self):
        if not math.isfinite(self.mean):
            raise ValueError(f"cell.mean must be finite, got {self.mean}; a cell that was not run is None")
        if self.std is not None and not 0 <= self.std < math.inf:
            raise ValueError(f"cell.std must be finite and >= 0, or None if unknown, got {self.std}")
        if self.n is not None and self.n < 1:
            raise ValueError(f"cell.n must be >= 1, or None if unknown, got {self.n}")


@dataclass(frozen=True)
class Column:
    """What a column holds."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    """Which values are good; None: neither, and no value is marked."""
    digits: int = 2
    """After the decimal point."""

    @property
    def scale(self) -> str:
        """Unit and an arrow that points to what is better."""
        return " ".join(filter(None, (self.unit, ARROWS[self.better])))


@dataclass(frozen=True)
class Row:
    """One method, or whatever is compared."""

    label: str
    group: str
    """Rows that follow each other in one group stand together, between rules."""
    values: Sequence[Cell | None]
    """One per column; None: not run."""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows and columns of cells.

    Raises: ValueError if a row has not one value per column.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str = ""

    def __post_init__(self):
        wanted = len(self.columns)
        for row in self.rows:
            if (given := len(row.values)) != wanted:
                raise ValueError(f"row {row.label!r} must have {wanted} values, None if not run, got {given}")

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """Runs of rows that share a group, in order."""
        return [(name, list(rows)) for name, rows in groupby(self.rows, key=lambda row: row.group)]

    @cached_property
    def best(self) -> dict[int, Row]:
        """Column index -> the row whose value is bold, for columns that have one."""
        found = {}
        for index, column in enumerate(self.columns):
            known = [row for row in self.rows if row.values[index]]
            if column.better is None or len(known) < 2:
                continue
            known.sort(key=lambda row: row.values[index].mean, reverse=column.better == "higher")
            first, second = (row.values[index] for row in known[:2])
            stds = (first.std, second.std)
            if None not in stds and abs(first.mean - second.mean) > max(stds):
                found[index] = known[0]
        return found

    @property
    def notes(self) -> str:
        """The caption, what stands in a cell and, where something is bold, why."""
        cells = [cell for row in self.rows for cell in row.values if cell]
        parts = [self.caption]
        spread = any(cell.std is not None for cell in cells)
        count = f"n = {self._count:,}" if self._count else ""
        if said := ", ".join(filter(None, ("Mean ± standard deviation" if spread else "", count))):
            parts.append(f"{said}.")
        if any(cell is None for row in self.rows for cell in row.values):
            parts.append("Blank: not run.")
        if self.best:
            parts.append(BOLD_RULE)
        return " ".join(filter(None, parts))

    @cached_property
    def _count(self) -> int | None:
        """The n that all cells with a standard deviation share; without any, all cells."""
        cells = [cell for row in self.rows for cell in row.values if cell]
        counts = {cell.n for cell in cells if cell.std is not None} or {cell.n for cell in cells}
        return counts.pop() if len(counts) == 1 else None

    def _parts(self, row: Row, index: int) -> tuple[str, str]:
        """Mean and what follows it: the standard deviation, and n where it is not what the notes say."""
        cell = row.values[index]
        if cell is None:
            return "", ""
        digits = self.columns[index].digits
        rest = f" ± {cell.std:.{digits}f}" if cell.std is not None else ""
        if cell.n and cell.n != self._count:
            rest += f" (n = {cell.n:,})"
        return f"{cell.mean:.{digits}f}", rest

    def _rest_width(self, index: int) -> int:
        return max((len(self._parts(row, index)[1]) for row in self.rows), default=0)

    def _text(self, row: Row, index: int) -> str:
        """The cell padded on its right, so that means stand under means in a right-aligned column."""
        mean, rest = self._parts(row, index)
        return mean and mean + rest.ljust(self._rest_width(index))

    def rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(
            title=Text(self.title, style="bold"),
            caption=Text(self.notes, style="dim"),
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("")
        widths = []
        for index, column in enumerate(self.columns):
            width = max((len(self._text(row, index)) for row in self.rows), default=0)
            lines = [*textwrap.wrap(column.name, max(width, 12), break_long_words=False), column.scale]
            widths.append(max(width, *map(len, lines)))
            table.add_column(Text("\n".join(lines)), justify="right", no_wrap=True)
        for group, rows in self.groups:
            if group:
                table.add_row(Text(group, style="dim italic"))
            for row in rows:
                label = Text(row.label).append(f"\n{row.note}" if row.note else "", style="dim")
                styles = ["bold" if self.best.get(index) is row else "" for index in range(len(widths))]
                texts = [self._text(row, index).rjust(width) for index, width in enumerate(widths)]
                # Left, or rich would strip the padding on the right.
                cells = [Text(*cell, justify="left") for cell in zip(texts, styles, strict=True)]
                table.add_row(Padding(label, (0, 0, 0, 2 if group else 0)), *cells)
            table.add_section()
        return table

    def markdown(self) -> str:
        """A GitHub table; groups are rows of their own."""

        def clean(text: str) -> str:
            for symbol in "\\|*_`<[":
                text = text.replace(symbol, f"\\{symbol}")
            return " ".join(text.split())

        extra = [""] if any(row.note for row in self.rows) else []

        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cells)} |"

        lines = [f"**{clean(self.title)}**", ""] if self.title else []
        heads = (", ".join(filter(None, (column.name, column.scale))) for column in self.columns)
        lines.append(line(["", *map(clean, heads), *extra]))
        lines.append(line(["---", *("---:" for _ in self.columns), *("---" for _ in extra)]))
        for group, rows in self.groups:
            if group:
                lines.append(line([f"*{clean(group)}*", *("" for _ in self.columns), *extra]))
            for row in rows:
                cells = ["".join(self._parts(row, index)) for index in range(len(self.columns))]
                cells = [f"**{cell}**" if self.best.get(i) is row else cell for i, cell in enumerate(cells)]
                lines.append(line([clean(row.label), *cells, *(clean(row.note) for _ in extra)]))
        return "\n".join([*lines, *(["", clean(self.notes)] if self.notes else []), ""])

    def html(self) -> str:
        """A <table> fragment, every text escaped."""
        heads = "".join(
            f'<th scope="col">{escape(column.name)}<small>{escape(column.scale)}</small></th>'
            for column in self.columns
        )
        caption = f"<caption>{escape(self.title)}</caption>" if self.title else ""
        bodies, span = [], len(self.columns) + 1
        for group, rows in self.groups:
            lines = [f'<tr class="group"><th scope="rowgroup" colspan="{span}">{escape(group)}</th></tr>']
            for row in rows:
                cells = "".join(self._html_cell(row, index) for index in range(len(self.columns)))
                note = f"<small>{escape(row.note)}</small>" if row.note else ""
                lines.append(f'<tr><th scope="row">{escape(row.label)}{note}</th>{cells}</tr>')
            bodies.append(f"<tbody>{''.join(lines if group else lines[1:])}</tbody>")
        return f"<table>{caption}<thead><tr><td></td>{heads}</tr></thead>{''.join(bodies)}</table>"

    def _html_cell(self, row: Row, index: int) -> str:
        mean, rest = self._parts(row, index)
        if not mean:
            return "<td></td>"
        mean = f"<strong>{mean}</strong>" if self.best.get(index) is row else mean
        width = self._rest_width(index) - 1.25  # spaces and points are narrower than digits
        # As wide everywhere, so that means stand under means.
        spread = f'<span class="std" style="min-width:{width}ch">{rest}</span>' if width > 0 else ""
        return f"<td>{mean}{spread}</td>"

    def csv(self) -> str:
        """Unrounded; three columns, mean, std and n, for each of the table's."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = [column.name + (f" ({column.unit})" if column.unit else "") for column in self.columns]
        parts = [f"{name} {part}".strip() for name in names for part in ("", "std", "n")]
        writer.writerow(["group", "label", *parts, "note"])
        for row in self.rows:
            cells = [(c.mean, c.std, c.n) if c else (None, None, None) for c in row.values]
            writer.writerow([row.group, row.label, *(value for cell in cells for value in cell), row.note])
        return out.getvalue()
