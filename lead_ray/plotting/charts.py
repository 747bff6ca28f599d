"""Charts of what evaluation, a search or a benchmark measured."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from matplotlib.figure import Figure

from lead_ray.artefacts import read_json
from lead_ray.figures import cost, curves, trials
from lead_ray.plotting.sources import Picture, Result, name_all, read_all, same_images
from lead_ray.speed.readout import FEATURES, Readout

Results = Annotated[tuple[Path, ...], tyro.conf.Positional]
BIRDS = "points found within 5 % of the crop's side, %"


@dataclass(frozen=True, kw_only=True)
class Distribution(Picture):
    """Cumulative distributions of images' errors, with the area below and the failures."""

    results: Results
    """Of regression on one data set, a curve each."""
    limit: float = 30.0
    """Largest error shown, in the results' unit; above it an image is a failure."""
    names: tuple[str, ...] = ()

    def figure(self) -> Figure:
        results = read_all(self.results, "regression")
        _one_set(results)
        named = zip(name_all(self.names, results), results, strict=True)
        systems = {name: torch.from_numpy(result.arrays["error"]) for name, result in named}
        title = f"{_images(results[0])}, {_annotations(results)}"
        return curves.distribution(systems, limit=self.limit, unit=results[0].unit, title=self.said(title))


@dataclass(frozen=True, kw_only=True)
class Zoom(Picture):
    """Error by zoom-out factor, in and beyond what training saw."""

    results: Results
    """Of regression on unaligned faces, such as mafl-unaligned, a line each."""
    names: tuple[str, ...] = ()

    def figure(self) -> Figure:
        results = read_all(self.results, "regression")
        same_images(results)
        first = results[0]
        if "factor" not in first.arrays:
            raise ValueError(f"{first.path}: its images were not cropped by a box; prepare mafl-unaligned")
        named = zip(name_all(self.names, results), results, strict=True)
        systems = {name: torch.from_numpy(result.arrays["error"]) for name, result in named}
        seen = tuple(first.arrays["train_factor"].tolist())
        title = f"{_images(first)}, {_annotations(results)}"
        factors = torch.from_numpy(first.arrays["factor"])
        return curves.zoom(systems, factors, seen=seen, unit=first.unit, title=self.said(title))


@dataclass(frozen=True, kw_only=True)
class Counts(Picture):
    """Error by number of annotated images, mean and standard deviation over seeds, a line a system."""

    results: Results
    """Of regression on one data set: several numbers of annotations of each system."""
    names: tuple[str, ...] = ()
    """Of the systems, in the order in which they come first."""

    def figure(self) -> Figure:
        results = read_all(self.results, "regression")
        _one_set(results)
        value, y = ("errors", f"error, {results[0].unit}") if "error" in results[0].content else ("pcks", BIRDS)
        by_system: dict[tuple[str, Path], list[Result]] = defaultdict(list)
        for result in results:
            by_system[result.content["features"], result.run].append(result)
        firsts = [group[0] for group in by_system.values()]
        series = []
        for name, group in zip(name_all(self.names, firsts), by_system.values(), strict=True):
            ordered = sorted(group, key=lambda result: result.annotated)
            values = [result.content[value] for result in ordered]
            series.append(curves.Series(name=name, places=[result.annotated for result in ordered], values=values))
        seeds = {len(values) for each in series for values in each.values}
        many = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        title = f"{_images(results[0])}, {many} seed{'s' * (seeds != {1})}"
        return curves.against(series, x="annotated images", y=y, title=self.said(title))


@dataclass(frozen=True, kw_only=True)
class Sweep(Picture):
    """A measured value by one setting that runs differ in, such as a temperature."""

    results: Results
    """Of runs that differ in the setting."""
    setting: str = "objective.temperature"
    """Its path in the runs' config.json."""
    value: str = "cl_diff_error"
    """Its name in the results; `error` of regression."""
    unit: str = "px"
    log: bool = True
    """Whether the setting's axis is logarithmic."""

    def figure(self) -> Figure:
        found: dict[float, list[float]] = defaultdict(list)
        for result in read_all(self.results):
            settings: Any = read_json(result.run / "config.json")
            for part in self.setting.split("."):
                if not isinstance(settings, dict) or part not in settings:
                    raise ValueError(f"setting={self.setting} is not in {result.run / 'config.json'} (at {part!r})")
                settings = settings[part]
            runs = result.content.get("runs", [])
            seeds = [run[self.value] for run in runs if self.value in run] or result.content.get(f"{self.value}s")
            if not seeds:
                raise ValueError(f"value={self.value} is not in {result.path}; there are {', '.join(result.content)}")
            found[float(settings)] += seeds
        places = sorted(found)
        series = [curves.Series(name="", places=places, values=[found[place] for place in places])]
        names = {"x": self.setting, "y": f"{self.value}, {self.unit}", "title": self.said("")}
        return curves.against(series, log_x=self.log, from_zero=False, **names)


@dataclass(frozen=True, kw_only=True)
class Trials(Picture):
    """Two aims of a search's trials against each other, the Pareto front marked."""

    file: Annotated[Path, tyro.conf.Positional]
    """JSON: a list of trials, each an object; or an object that holds one under "trials"."""
    x: str
    """Name of the first aim in the trials."""
    y: str
    kind: str | None = None
    """Name of the word that colours a trial."""
    label: str | None = None
    """Name of what is written beside those on the front."""
    higher: tuple[bool, bool] = (False, False)
    """Whether more is better, of both aims."""

    def figure(self) -> Figure:
        rows = read_json(self.file)
        rows = rows.get("trials") if isinstance(rows, dict) else rows
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
            raise ValueError(f"{self.file} holds no list of trials")
        if missing := [name for name in (self.x, self.y) if not any(name in row for row in rows)]:
            raise ValueError(f"no trial of {self.file} has {missing[0]!r}; there are {', '.join(rows[0])}")
        given = [[row.get(name) for name in (self.x, self.y)] for row in rows]
        values = torch.tensor([[torch.nan if value is None else float(value) for value in row] for row in given])
        words = {name: [str(row.get(key, "")) for row in rows] for name, key in
                 (("kinds", self.kind), ("labels", self.label)) if key}  # fmt: skip
        title = self.said(f"{int((~values.isnan().any(1)).sum())} trials")
        return trials.scatter(values, x=self.x, y=self.y, higher=self.higher, title=title, **words)


@dataclass(frozen=True, kw_only=True)
class Cost(Picture):
    """Time of a step of the read-out, and operations of its forward pass, by the features' channels."""

    file: Annotated[Path, tyro.conf.Positional]
    """What `lead-ray bench readout --out FILE` wrote."""

    def figure(self) -> Figure:
        return cost.drawn(self.rows(), title=self.said(read_json(self.file)["title"]))

    def rows(self) -> list[cost.Cost]:
        """What was measured, and the operations of the convolution that go with it.

        Raises: ValueError if the file holds no read-outs.
        """
        content, rows = read_json(self.file), []
        for entry in content.get("found", []):
            parts = re.fullmatch(r"(\d+)-d, (.*)", entry["name"])
            if parts and (kind := FEATURES.get(f"{parts[1]}-d")):
                sizes = {name: content["settings"][name] for name in ("grid", "marks", "points")}
                work = Readout(**sizes).work(kind)
                needs = (work.built if "built" in parts[2] else work.ours) / 1e9
                numbers = {"milliseconds": entry["milliseconds"], "gflops": needs}
                rows.append(cost.Cost(system=parts[2], dim=int(parts[1]), **numbers))
        if not rows:
            raise ValueError(f"{self.file} holds no read-outs: write it with lead-ray bench readout --out {self.file}")
        return rows


def _one_set(results: list[Result]) -> None:
    """Raises: ValueError if results are of different data, or of different numbers of images."""
    sets = {_images(result) for result in results}
    if len(sets) > 1:
        raise ValueError(f"results are of {' and of '.join(sorted(sets))}: give those of one data set")


def _images(result: Result) -> str:
    return f"{result.content['data']}, {result.content['images']:,} test images"


def _annotations(results: list[Result]) -> str:
    counts = sorted({result.annotated for result in results})
    return " and ".join(f"{count:,}" for count in counts) + f" annotated image{'s' * (counts[-1] > 1)}"
