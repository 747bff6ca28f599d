"""Markdown of measurements that were kept."""

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import tyro

HEAD = "| work | by | ms an image ↓ | times faster ↑ | peak MB ↓ |\n| --- | --- | ---: | ---: | ---: |"
WORKERS_HEAD = "| workers | images/s ↑ | images/s a worker ↑ |\n| ---: | ---: | ---: |"


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
    """One table of all timings; another for each weak scaling."""
    timings = [one for one in kept if "workers" not in one["settings"]]
    tables = ["\n".join([HEAD, *chain.from_iterable(map(_timings, timings))])] if timings else []
    tables += ["\n".join([WORKERS_HEAD, *map(_workers, one["found"])]) for one in kept if "workers" in one["settings"]]
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


def _digits(value: float) -> str:
    """Three significant digits, written out."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
