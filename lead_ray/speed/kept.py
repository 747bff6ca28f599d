"""Markdown of measurements that were kept."""

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import tyro

HEAD = "| work | by | ms an image ↓ | times faster ↑ | peak MB ↓ |\n| --- | --- | ---: | ---: | ---: |"
WORKERS_HEAD = "| workers | images/s ↑ | images/s a worker ↑ |\n| ---: | ---: | ---: |"

JUDGED_HEAD = (
    "| data; network | labels | mean shape ↓ | error ↓ | cross-validated | said / was near, % | calibration error ↓ |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)
MODEL_HEAD = (
    "| network | points | MB ↓ | one image, ms ↓ | in a batch ↓ | ONNX, MB ↓ | one, ms ↓ | px apart ↓ | refit, s ↓ |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Tables of what other measurements wrote with --out, for README.md. Nothing is measured."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files, in the order wanted."""
    out: Path | None = None
    """Markdown file that receives what is printed."""

    def run(self) -> str:
        found = markdown([json.loads(path.read_text()) for path in self.files])
        print(found)
        if self.out is not None:
            self.out.write_text(f"{found}\n")
        return found


def markdown(kept: list[dict[str, Any]]) -> str:
    """One table of all timings; another for each weak scaling; two of all landmark models."""
    models = [one for one in kept if "landmarks" in one]
    kept = [one for one in kept if "landmarks" not in one]
    timings = [one for one in kept if "workers" not in one["settings"]]
    tables = ["\n".join([HEAD, *chain.from_iterable(map(_timings, timings))])] if timings else []
    tables += ["\n".join([WORKERS_HEAD, *map(_workers, one["found"])]) for one in kept if "workers" in one["settings"]]
    if judged := [one for one in models if "error" in one["found"][0][0]]:
        tables.append("\n".join([JUDGED_HEAD, *chain.from_iterable(map(_judged, judged))]))
    if models:
        tables.append("\n".join([MODEL_HEAD, *map(_model, models)]))
    return "\n\n".join(tables)


def _timings(one: dict[str, Any]) -> list[str]:
    """A line for each candidate, the work named on the first."""
    lines = []
    for number, row in enumerate(one["found"]):
        peak = f"{row['peak_megabytes']:,.0f}" if row["peak_megabytes"] else ""
        title = one["title"] if number == 0 else ""
        lines.append(
            f"| {title} | {row['name']} | {_digits(row['milliseconds'])} | {_digits(row['times_faster'])} | {peak} |"
        )
    return lines


def _workers(row: dict[str, Any]) -> str:
    rate, workers = row["images_per_second"], int(row["workers"])
    return f"| {workers or 'none: one process, no Ray'} | {rate:,.0f} | {rate / max(1, workers):,.0f} |"


def _judged(one: dict[str, Any]) -> list[str]:
    """A line for each number of annotated images: mean and standard deviation over the seeds."""
    title = f"{one['data']}, {one['landmarks']} points; {one['network']}; {one['unit']}"
    lines = []
    for number, each in enumerate(one["found"]):
        cells = [_over(each, name, ".1f") for name in ("mean_shape", "error", "cross_validated")]
        near = " / ".join(f"{100 * fmean(row[name] for row in each):.0f}" for name in ("said", "near"))
        cells += [near, _over(each, "calibration_error", ".3f")]
        lines.append(f"| {title if number == 0 else ''} | {each[0]['annotations']} | {' | '.join(cells)} |")
    return lines


def _model(one: dict[str, Any]) -> str:
    size, last = one["size"], one["found"][-1]
    cells = [_digits(size["megabytes"]), *(_digits(size[name]["processor"]) for name in ("one", "batch"))]
    cells += [""] * 3
    if onnx := size.get("onnx"):
        cells[3:] = _digits(onnx["megabytes"]), _digits(onnx["one"]["processor"]), f"{onnx['pixels_apart']:.0e}"
    cells.append(_digits(min(each["refit"]["processor"] for each in last)))
    return f"| {one['network']} | {one['landmarks']} | {' | '.join(cells)} |"


def _over(each: list[dict[str, Any]], name: str, how: str) -> str:
    values = [row[name] for row in each if row[name] is not None]
    if not values:
        return ""
    return f"{fmean(values):{how}}" + (f" ± {stdev(values):{how}}" if len(values) > 1 else "")


def _digits(value: float) -> str:
    """Three significant digits, written out."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
