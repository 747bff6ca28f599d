"""What every study does: say what it would do, do it, and leave its tables."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from lead_ray import storage
from lead_ray.artefacts import write_json
from lead_ray.machine import environment
from lead_ray.reporting import report
from lead_ray.reporting.latex import latex
from lead_ray.reporting.report import Page, Section
from lead_ray.reporting.tables import Table
from presets import House, Paper, Quick
from recipes import Stage1
from sweep.agenda import Agenda, Source
from sweep.conduct import Place, in_process, on_ray
from sweep.fill import Entries, Entry, Filled, Sheet, fill, leader, sheets
from sweep.pace import Paces
from sweep.preset import Preset
from sweep.watch import Screen, Watcher, loggers, print_plan


@dataclass(frozen=True, kw_only=True)
class Study:
    """What every study is told."""

    preset: Literal["paper", "house", "quick"] = "paper"
    """paper: the whole grid at the paper's settings; house: small networks on real faces; quick: synthetic faces."""
    data: Path = Path("data")
    """Holds the prepared folders: celeba, mafl, aflw-m, ...; quick draws its own here."""
    out: Path = Path("runs")
    """Receives runs. All studies share it: what is trained is trained once."""
    results: Path | None = None
    """Receives the tables; OUT/studies/<name> if not given."""
    seeds: tuple[int, ...] | None = None
    """Of the networks, in place of the preset's."""
    given: dict[Stage1, Path] = field(default_factory=dict)
    """House: finished stage-1 runs to begin from, such as `contrast runs/stage1-...`."""
    workers: int = 1
    """Ray Train workers of each training; 0: this process, one task after another, without Ray."""
    at_once: int | None = None
    """Trainings at a time; if not given as many as the cluster has GPUs for, and one on CPUs."""
    readout_gpus: float = 0.25
    """GPUs that the measurements of one encoder ask for."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where there are some, else CPUs."""
    dry_run: bool = False
    """Print the plan: what is done, what is left and how long it should take."""
    tflops: float = 30.0
    """10^12 operations a second that a device reaches, for estimates of what was never measured here."""
    watch: tuple[Watcher, ...] = ()
    """Beside TensorBoard, whose files are in OUT/studies/logs."""

    def chosen(self) -> Preset:
        """The preset, told where things are."""
        data, out = storage.absolute(self.data), storage.absolute(self.out)  # trials stand in folders of their own
        common = {"data": data, "out": out, "workers": self.workers, "device": self.device}
        if self.given and self.preset != "house":
            raise ValueError(f"given is of --preset house, got {self.given} with {self.preset}")
        if self.preset == "house":
            return House(given={name: storage.absolute(path) for name, path in self.given.items()}, **common)
        return {"paper": Paper, "quick": Quick}[self.preset](**common)

    @property
    def network_seeds(self) -> tuple[int, ...]:
        return self.chosen().seeds if self.seeds is None else self.seeds

    @property
    def notes(self) -> Path:
        """Failures, durations, journals, TensorBoard's files."""
        return storage.absolute(self.out) / "studies"


def paces(study: Study) -> Paces:
    """How long its tasks should take."""
    return Paces(study.out, study.notes, tflops=study.tflops, sizes=study.chosen().sizes)


def carry_out(study: Study, name: str, entries: Sequence[Entry], *, source: Source | None = None) -> bool:
    """Measure, and train, what is not done yet; False if only the plan was asked for."""
    callbacks = loggers(study.watch, name, workers=study.workers)
    preset = study.chosen()
    if not study.dry_run:
        preset.prepare()
    agenda = Agenda([entry.measure for entry in entries], notes=study.notes, source=source)
    if study.dry_run:
        print_plan(f"{name}, preset {study.preset}", agenda, paces(study))
        return False
    logs = study.notes / "logs" / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    place = Place(study.workers, study.device, study.readout_gpus, logs, study.at_once)
    best = source.said if source is not None else lambda: leader(entries)
    with Screen(name, agenda, paces(study), best, live=study.workers > 0) as screen:
        if study.workers:
            on_ray(agenda, place, screen.show, callbacks)
        else:
            in_process(agenda, place, screen.show)
    return True


def publish(
    study: Study,
    name: str,
    entries: Entries,
    *,
    extra: dict[str, Sheet] | None = None,
    only: Sequence[str] | None = None,
    figures: Mapping[str, Section] | None = None,
) -> dict[str, Table]:
    """Write the tables that entries name, as Markdown, CSV and LaTeX, with a record of every value, and one page.

    Nothing that is written says where this machine keeps its files: paths begin with DATA and OUT.

    Args:
        extra: tables that the paper does not have.
        only: the tables to write; if not given those that entries name.
        figures: what else the page shows, and PNG files of these names.
    """
    folder = storage.absolute(study.results or study.notes / name)
    known = sheets() | (extra or {})
    within = not storage.is_remote(folder) and folder.is_relative_to(storage.absolute(study.out))
    places = {str(storage.absolute(study.data)): "DATA", str(storage.absolute(study.out)): "OUT"}
    filled: dict[str, Filled] = {}
    for number in only or dict.fromkeys(entry.table for entry in entries):
        own = [entry for entry in entries if entry.table == number]
        caption = study.chosen().caption if any(isinstance(entry, Entry) for entry in own) else ""
        beside = folder if within else None
        filled[number] = fill(known[number], own, study.notes, caption=caption, beside=beside, places=places)
    tables = {number: each.table for number, each in filled.items()}
    for number, each in filled.items():
        path = folder / f"table-{number}"
        texts = {"md": each.table.markdown(), "csv": each.table.csv(), "tex": latex(each.table)}
        for suffix, text in texts.items():
            storage.write_bytes(path.with_suffix(f".{suffix}"), text.encode())
        write_json(path.with_suffix(".json"), {"title": each.table.title, "values": each.record})
        each.table.show()
    sections = [Section(table.title, content=replace(table, title="")) for table in tables.values()]
    for picture, section in (figures or {}).items():
        sections.append(section)
        _picture(section.content, folder / f"{picture}.png")
    facts = [
        ("preset", study.preset),
        ("written", f"{datetime.now():%Y-%m-%d}"),
        ("commit", (environment()["commit"] or "unknown")[:12]),
    ]
    lead = "What was measured, beside what the paper printed. Below a method are the runs that its numbers came from."
    report.write(Page(f"LEAD: {name}", lead, facts, sections), folder / "report.html")
    print(f"{name}: {folder}")
    return tables


def _picture(figure: Figure, path: Path) -> None:
    """The same bytes of the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
    storage.write_bytes(path, out.getvalue())
