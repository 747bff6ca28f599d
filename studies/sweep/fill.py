"""Tables from what was measured: every cell a mean over seeds beside what the paper printed, and where it came from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lead_ray import storage
from lead_ray.artefacts import read_json
from lead_ray.reporting.cells import Cell, Column, Failed, Link, Printed, Row
from lead_ray.reporting.tables import Table
from sweep.agenda import failure_of
from sweep.plan import Measure

PAPER = Path(__file__).parents[1] / "paper.json"
SPREAD = (
    "Values are over networks trained from different seeds, each the mean of its repeats; of a single network, over "
    "its repeats: other warps, other annotated images."
)


@dataclass(frozen=True)
class Entry:
    """Where a measured number goes: one of the values whose mean is a cell."""

    table: str
    """Its number in paper.json, or the name of a sheet."""
    row: str
    column: str
    measure: Measure
    read: str
    """Which number of the result: cl_diff_error, error, pck, or `zoom 1.2`, the bin that begins there."""
    annotations: int | None = None
    """Which of the measurement's numbers of annotated images."""
    group: str = ""
    """Of a row that the paper does not have."""

    def values(self) -> list[float]:
        """One number for each of the measurement's own repeats; none if it is not done, or does not have it."""
        results = self.measure.results()
        return [] if results is None else list(_read(results[self._which], self.read))

    def failure(self, notes: Path) -> str | None:
        """Why there is no value, if it was tried."""
        return failure_of(self.measure, notes)

    @property
    def run(self) -> Path | None:
        """The folder that it came from."""
        return self.measure.encoder.folder.path

    def record(self) -> dict[str, Any]:
        """The way back: the run, its settings, the result's file and the commit that measured it."""
        path = self.measure.paths[self._which]
        return {
            "run": self.run.name,
            "config": f"{self.run.name}/config.json",
            "result": f"{self.run.name}/{path.parent.name}/{path.name}",
            "commit": read_json(path)["environment"]["commit"],
        }

    @property
    def _which(self) -> int:
        counts = list(self.measure.settings.counts())
        return counts.index(self.annotations) if self.annotations in counts else 0


@dataclass(frozen=True)
class Kept:
    """A number that stands in a file of its own, such as a speed."""

    table: str
    row: str
    column: str
    file: Path
    value: float | None
    """None: the file is not there yet."""
    commit: str | None
    group: str = ""
    run = None

    def values(self) -> list[float]:
        return [] if self.value is None else [self.value]

    def failure(self, notes: Path) -> str | None:
        return None

    def record(self) -> dict[str, Any]:
        return {"result": self.file.name, "commit": self.commit}


Entries = Sequence[Entry | Kept]


def _read(result: dict[str, Any], name: str) -> Iterator[float]:
    """Of each repeat where the result has them."""
    if name.startswith("zoom "):
        start = float(name.removeprefix("zoom "))
        yield from (each["error"] for each in result.get("by_factor", ()) if each["from"] == start)
    elif "runs" in result:  # matching: means for each draw of the warps
        yield from (run[name] for run in result["runs"])
    elif f"{name}s" in result:
        yield from result[f"{name}s"]
    elif result.get(name) is not None:
        yield result[name]


@dataclass(frozen=True)
class Sheet:
    """A table before anything is measured."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, str]] = ()
    """Group and label."""
    printed: dict[tuple[str, str], Printed] | None = None
    """By row and column."""
    note: str = ""
    quoted: frozenset[str] = frozenset()
    """Rows that the paper took from other publications: nothing here fills them."""


def sheets() -> dict[str, Sheet]:
    """The paper's tables by number."""
    found = {}
    for number, table in read_json(PAPER)["tables"].items():
        printed = {
            (row["label"], column): Printed(*(value if isinstance(value, list) else [value]))
            for row in table["rows"]
            for column, value in row["cells"].items()
        }
        columns = [Column(name, table["unit"], table["better"]) for name in table["columns"]]
        rows = [(row["group"], row["label"]) for row in table["rows"]]
        quoted = [row["label"] for row in table["rows"] if row.get("quoted")]
        said = f"The paper quotes {', '.join(quoted)} from others." if quoted else ""
        note = " ".join(filter(None, (table["note"], said)))
        title = f"Table {number}. {table['title']}"
        found[number] = Sheet(title, columns, rows, printed, note, frozenset(quoted))
    return found


@dataclass(frozen=True)
class Filled:
    """A table and, for each of its measured cells, what stands behind it."""

    table: Table
    record: list[dict[str, Any]]


def fill(
    sheet: Sheet,
    entries: Entries,
    notes: Path,
    *,
    caption: str = "",
    beside: Path | None = None,
    places: Mapping[str, str] | None = None,
) -> Filled:
    """Put what is measured into a table; a cell of which nothing is measured is blank, or says why its trial failed.

    Args:
        notes: where failures are kept.
        beside: the folder that the table is written to, if links to the runs are wanted.
        places: words for folders, which take their place in reasons.
    """
    own = [(entry.group, entry.row) for entry in entries if entry.row not in {label for _, label in sheet.rows}]
    rows, record = [], []
    for group, label in [*sheet.rows, *dict.fromkeys(own)]:
        of_row = [entry for entry in entries if entry.row == label]
        values = []
        for column in sheet.columns:
            of_cell = [entry for entry in of_row if entry.column == column.name]
            values.append(_cell(of_cell, notes, places or {}))
            record += [_told(entry) for entry in of_cell if entry.values()]
        printed = [sheet.printed.get((label, column.name)) for column in sheet.columns] if sheet.printed else ()
        rows.append(Row(label, group, values, printed=printed, links=_links(of_row, beside)))
    said = " ".join(filter(None, (caption, sheet.note, SPREAD if any("run" in each for each in record) else "")))
    return Filled(Table(sheet.title, sheet.columns, rows, said), record)


def cells(entries: Entries, row: str) -> dict[str, list[float]]:
    """The values that a row's cells are means of, by column: for figures."""
    columns = dict.fromkeys(entry.column for entry in entries if entry.row == row)
    found = {name: _values([e for e in entries if (e.row, e.column) == (row, name)]) for name in columns}
    return {name: values for name, values in found.items() if values}


def leader(entries: Entries) -> str:
    """The best mean so far of the column that is named first, in words; empty if nothing is measured."""
    known = sheets()
    first = next((entry for entry in entries if entry.table in known), None)
    if first is None:
        return ""
    column = next(each for each in known[first.table].columns if each.name == first.column)
    alike = [entry for entry in entries if (entry.table, entry.column) == (first.table, first.column)]
    found = {row: fmean(values) for row in {e.row for e in alike} for values in cells(alike, row).values()}
    if not found:
        return ""
    row = (max if column.better == "higher" else min)(found, key=found.__getitem__)
    return f"best so far, {column.name}: {found[row]:.2f} {column.unit} by {row}"


def _values(entries: Entries) -> list[float]:
    """One a trained network, each the mean of its repeats; of one network, its repeats."""
    groups = [values for entry in entries if (values := entry.values())]
    return groups[0] if len(groups) == 1 else [fmean(group) for group in groups]


def _cell(entries: Entries, notes: Path, places: Mapping[str, str]) -> Cell | Failed | None:
    if values := _values(entries):
        networks = sum(bool(entry.values()) for entry in entries)
        spread = stdev(values) if len(values) > 1 else None
        return Cell(fmean(values), spread, len(values), of_one=networks == 1)
    reasons = (entry.failure(notes) for entry in entries)
    reason = next((reason for reason in reasons if reason is not None), None)
    if reason is None:
        return None
    for folder, word in places.items():
        reason = reason.replace(folder, word)
    return Failed(reason)


def _told(entry: Entry | Kept) -> dict[str, Any]:
    where = {"table": entry.table, "row": entry.row, "column": entry.column}
    return where | {"values": entry.values()} | entry.record()


def _links(entries: Entries, beside: Path | None) -> list[Link]:
    """The runs that a row's values came from, by the end of their names."""
    folders = dict.fromkeys(entry.run for entry in entries if entry.values() and entry.run)

    def address(folder: Path) -> str | None:
        if beside is None:
            return None
        return storage.uri(folder) if storage.is_remote(folder) else relpath(folder, beside)

    return [Link(folder.name.rpartition("-")[2], address(folder)) for folder in folders]
