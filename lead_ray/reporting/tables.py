"""Tables of measured numbers, the same content for terminal, Markdown, HTML and CSV; `latex` has one more.

A cell that was not run is blank, never 0. The best of a column is bold only if its seeds tell it apart from every
other value there: see `cells`.
"""

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import groupby

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from lead_ray.reporting.cells import Cell, Column, Failed, Link, Row, ahead

BOLD_RULE = "Bold: best of its column, and apart from every other value of it (Welch's t-test at 5 %)."
WIDEST = 1000  # characters of a line
PRINTED_RULE = "In brackets: what the paper printed, and the difference from it."


@dataclass(frozen=True)
class Table:
    """Rows and columns of cells.

    Raises: ValueError if a row has not one value per column, or neither one nor no printed one.
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
            if row.printed and (given := len(row.printed)) != wanted:
                raise ValueError(f"row {row.label!r} must have {wanted} printed values or none, got {given}")

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """Runs of rows that share a group, in order."""
        return [(name, list(rows)) for name, rows in groupby(self.rows, key=lambda row: row.group)]

    @cached_property
    def best(self) -> dict[int, Row]:
        """Column index -> the row whose value is bold, for columns that have one."""
        found = {}
        for index, column in enumerate(self.columns):
            cells = [row.cell(index) for row in self.rows]
            if column.better is not None and (place := ahead(cells, column.better)) is not None:
                found[index] = self.rows[place]
        return found

    @property
    def notes(self) -> str:
        """The caption, what stands in a cell and, where something is bold, why."""
        parts = [self.caption]
        spread = any(cell.std is not None for cell in self._cells)
        count = f"n = {self._count:,}" if self._count else ""
        if said := ", ".join(filter(None, ("Mean ± standard deviation" if spread else "", count))):
            parts.append(f"{said}.")
        if self._has_printed:
            parts.append(PRINTED_RULE)
        if any(value is None for row in self.rows for value in row.values):
            parts.append("Blank: not run.")
        parts += [f"Failed: {where}: {failed.reason.rstrip('.')}." for where, failed in self._failures]
        if self.best:
            parts.append(BOLD_RULE)
        return " ".join(filter(None, parts))

    @property
    def _cells(self) -> list[Cell]:
        return [value for row in self.rows for value in row.values if isinstance(value, Cell)]

    @property
    def _failures(self) -> list[tuple[str, Failed]]:
        pairs = [
            (row, column, value) for row in self.rows for column, value in zip(self.columns, row.values, strict=True)
        ]
        return [(f"{row.label}, {column.name}", value) for row, column, value in pairs if isinstance(value, Failed)]

    @property
    def _has_printed(self) -> bool:
        return any(printed is not None for row in self.rows for printed in row.printed)

    @cached_property
    def _count(self) -> int | None:
        """The n that all cells with a standard deviation share; without any, all cells."""
        counts = {cell.n for cell in self._cells if cell.std is not None} or {cell.n for cell in self._cells}
        return counts.pop() if len(counts) == 1 else None

    def parts(self, row: Row, index: int) -> tuple[str, str]:
        """Mean and what follows it: the standard deviation, and n where it is not what the notes say."""
        value = row.values[index]
        if not isinstance(value, Cell):
            return ("", "") if value is None else ("failed", "")
        digits = self.columns[index].digits
        rest = f" ± {value.std:.{digits}f}" if value.std is not None else ""
        if value.n and value.n != self._count:
            rest += f" (n = {value.n:,})"
        return f"{value.mean:.{digits}f}", rest

    def compared(self, row: Row, index: int) -> str:
        """What was printed in a cell's place and, of a measured cell, how far it is from that."""
        if (printed := row.beside(index)) is None:
            return ""
        digits, cell = self.columns[index].digits, row.cell(index)
        said = f"{printed.mean:.{digits}f}" + (f" ± {printed.std:.{digits}f}" if printed.std is not None else "")
        return said if cell is None else f"{said}, {cell.mean - printed.mean:+.{digits}f}"

    def _whole(self, row: Row, index: int) -> str:
        compared = self.compared(row, index)
        return " ".join(filter(None, ("".join(self.parts(row, index)), compared and f"[{compared}]")))

    def _rest_width(self, index: int) -> int:
        return max((len(self.parts(row, index)[1]) for row in self.rows), default=0)

    def _text(self, row: Row, index: int) -> str:
        """The cell padded on its right, so that means stand under means in a right-aligned column."""
        if self._has_printed:
            return self._whole(row, index)
        mean, rest = self.parts(row, index)
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

    def show(self) -> None:
        """Print it as wide as it is: a narrow terminal breaks lines, where rich would leave out names."""
        table = self.rich()
        needed = Console(width=WIDEST).measure(table).maximum
        Console(width=max(Console().width, needed)).print(table)

    def markdown(self) -> str:
        """A GitHub table; groups are rows of their own."""

        def clean(text: str) -> str:
            for symbol in "\\|*_`<[":
                text = text.replace(symbol, f"\\{symbol}")
            return " ".join(text.split())

        extra = [""] if any(row.note or row.links for row in self.rows) else []

        def note(row: Row) -> str:
            links = (f"[{clean(link.text)}](<{link.address}>)" if link.address else link.text for link in row.links)
            return " ".join(filter(None, (clean(row.note), *links)))

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
                cells = ["".join(self.parts(row, index)) for index in range(len(self.columns))]
                cells = [f"**{cell}**" if self.best.get(i) is row else cell for i, cell in enumerate(cells)]
                compared = [self.compared(row, index) for index in range(len(cells))]
                pairs = zip(cells, compared, strict=True)
                cells = [" ".join(filter(None, (cell, beside and f"[{beside}]"))) for cell, beside in pairs]
                lines.append(line([clean(row.label), *cells, *(note(row) for _ in extra)]))
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
                note += f"<small>{' '.join(map(_anchor, row.links))}</small>" if row.links else ""
                lines.append(f'<tr><th scope="row">{escape(row.label)}{note}</th>{cells}</tr>')
            bodies.append(f"<tbody>{''.join(lines if group else lines[1:])}</tbody>")
        return f"<table>{caption}<thead><tr><td></td>{heads}</tr></thead>{''.join(bodies)}</table>"

    def _html_cell(self, row: Row, index: int) -> str:
        mean, rest = self.parts(row, index)
        compared = self.compared(row, index)
        below = f'<small class="printed">[{compared}]</small>' if compared else ""
        if not mean:
            return f"<td>{below}</td>"
        mean = f"<strong>{mean}</strong>" if self.best.get(index) is row else mean
        width = self._rest_width(index) - 1.25  # spaces and points are narrower than digits
        # As wide everywhere, so that means stand under means.
        spread = f'<span class="std" style="min-width:{width}ch">{rest}</span>' if width > 0 else ""
        return f"<td>{mean}{spread}{below}</td>"

    def csv(self) -> str:
        """Unrounded; three columns, mean, std and n, for each of the table's; beside printed values three more."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = [column.name + (f" ({column.unit})" if column.unit else "") for column in self.columns]
        ends = ["", "std", "n", *(["paper", "paper std", "difference"] if self._has_printed else [])]
        linked = any(row.links for row in self.rows)
        heads = [f"{name} {end}".strip() for name in names for end in ends]
        writer.writerow(["group", "label", *heads, "note", *(["runs"] if linked else [])])
        for row in self.rows:
            values = [value for index in range(len(names)) for value in row.numbers(index)[: len(ends)]]
            runs = [" ".join(link.text for link in row.links)] if linked else []
            writer.writerow([row.group, row.label, *values, row.note, *runs])
        return out.getvalue()


def _anchor(link: Link) -> str:
    text = escape(link.text)
    return f'<a href="{escape(link.address, quote=True)}">{text}</a>' if link.address else text
