"""The plan of many tables at once: every run that they need, each once, and what each table takes."""

from rich import box
from rich.console import Console
from rich.table import Table

from sweep.agenda import Agenda
from sweep.fill import Entries, Entry, Kept, Sheet
from sweep.pace import Paces
from sweep.plan import Task, closure
from sweep.watch import duration, print_plan

Cell = tuple[str, str, str]
"""Table, row and column."""
HEADS = ("cells", "stage 1", "stage 2", "read-outs", "done", "left", "unknown")


def tasks_of(entries: Entries) -> dict[str, Task]:
    """All that must be done for them, each once, by key."""
    return closure(entry.measure for entry in entries if isinstance(entry, Entry))


def filled(entries: Entries, known: dict[str, Sheet]) -> tuple[set[Cell], set[Cell]]:
    """The paper's cells that were its own runs, without those it quotes; and those of them that a run here fills."""
    own = {
        (number, *cell)
        for number, sheet in known.items()
        for cell in sheet.printed or ()
        if cell[0] not in sheet.quoted
    }
    return own, own & {(entry.table, entry.row, entry.column) for entry in entries}


def print_whole(title: str, entries: Entries, known: dict[str, Sheet], agenda: Agenda, paces: Paces) -> None:
    """Every task, then a line a table, and sums in which what tables share is counted once.

    Args:
        known: tables by number; those that have printed values are the paper's.
    """
    print_plan(title, agenda, paces)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("")
    for head in HEADS:
        grid.add_column(head, justify="right")
    for number, sheet in known.items():
        grid.add_row(sheet.title, *_line(entries, {number: sheet}, agenda, paces))
    grid.add_section()
    paper = {number: sheet for number, sheet in known.items() if sheet.printed}
    for name, some in (("The paper's tables, what they share once", paper), ("All of these", known)):
        grid.add_row(name, *_line(entries, some, agenda, paces), style="bold")
    Console(width=200).print(grid)  # in a file rich would break lines at 80
    quoted = sum(cell[0] in sheet.quoted for sheet in paper.values() for cell in sheet.printed)
    print(
        f"cells: of the paper's own, how many have a run here that fills them; it quotes {quoted} more from others. "
        "left: time on one device; unknown: tasks of unknown length. Table 10 is a measurement of minutes, on the "
        "machine in question. Searches, which fill no table of the paper, have plans of their own: --dry-run of "
        "ablate_temperature.py and search_recipe.py."
    )


def _line(entries: Entries, known: dict[str, Sheet], agenda: Agenda, paces: Paces) -> list[str]:
    """What HEADS names, of some tables together."""
    entries = [entry for entry in entries if entry.table in known]
    tasks, (own, have) = tasks_of(entries), filled(entries, known)
    kinds = [sum(task.kind == kind for task in tasks.values()) for kind in ("stage1", "stage2", "measure")]
    waiting = [task for key, task in tasks.items() if agenda.states[key] != "done"]
    seconds = [pace.seconds for task in waiting if (pace := paces.of(task))]
    kept = {entry.file: bool(entry.values()) for entry in entries if isinstance(entry, Kept)}
    return [
        f"{len(have)} of {len(own)}" if own else "",
        *(str(count) if count else "" for count in kinds),
        f"{len(tasks) - len(waiting) + sum(kept.values())} of {len(tasks) + len(kept)}",
        duration(sum(seconds)) if seconds else "",
        str(len(waiting) - len(seconds)) if len(waiting) > len(seconds) else "",
    ]
