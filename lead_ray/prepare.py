"""Raw folder -> Parquet shards: `lead-ray prepare SET --raw DIR --out DIR`.

Each shard is one task: read, crop, resize and encode its images, write the file. Only a few numbers per
shard come back: pixels never pass through the driver. With Ray, tasks run on all cores (RAW and OUT must
then be on storage that every node sees); `--workers 0` runs the same functions in this process. An
interrupted run goes on with the same command.
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Annotated, Union

import tyro

from lead_ray import storage
from lead_ray.data.aflw_r import AflwR
from lead_ray.data.celeba import CelebA, Mafl
from lead_ray.data.celeba_wild import CelebAWild, MaflUnaligned, MaflWild
from lead_ray.data.cub import Cub
from lead_ray.data.folder import Folder
from lead_ray.data.inat import INatAves
from lead_ray.data.mtfl import AflwM, Mtfl
from lead_ray.data.rows import Reader
from lead_ray.data.synthetic import Synthetic
from lead_ray.data.w300 import W300
from lead_ray.errors import for_people
from lead_ray.images.packing import (
    Encoding,
    Packing,
    Plan,
    collect_splits,
    describe,
    make_shard,
    prepared,
    remove_leftovers,
    summary,
)
from lead_ray.images.shards import Manifest
from lead_ray.progress import phase
from lead_ray.usage import parsed

READERS: tuple[type[Reader], ...] = (
    CelebA,
    Mafl,
    CelebAWild,
    MaflWild,
    MaflUnaligned,
    Mtfl,
    AflwM,
    AflwR,
    W300,
    Cub,
    INatAves,
    Folder,
    Synthetic,
)  # a new data set: one file in lead_ray/data/ and one line here
TOLERATED = 10
AT_ONCE = 1024
"""Shards that Ray is given together, so that records of half a million images at most are in memory. Between two lots,
minutes of work each, tasks wait for the last one."""


def prepare(
    reader: Reader,
    out: Path | str,
    *,
    workers: int | None = None,
    encoding: Encoding = "jpeg",
    size: int = 136,
    max_bad: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Prepare a data set below `out`, or do nothing if that is done already; returns the manifest.

    workers: None: all cores, through Ray; n: that many tasks at a time; 0: this process, without Ray.
    encoding: "jpeg" is quality 95 with full colour resolution. size: side of the stored images in pixels.
    max_bad: images that may be set aside before the run stops; None: 1 % of them, but at least 10.
    Raises: ValueError for wrong annotations, other settings in the same folder, too many bad images; OSError
      when nothing can be written. Whatever was finished stays, and the same call goes on from there.
    """
    for name, value in (("workers", workers), ("max_bad", max_bad)):
        if value is not None and value < 0:
            raise ValueError(f"{name} must be >= 0 or None, got {value}")
    out = storage.absolute(Path(out))
    reader = dataclasses.replace(reader, raw=storage.absolute(Path(reader.raw)))
    crop = dataclasses.replace(reader.crop, size=size)
    packing = Packing(raw=reader.raw, out=out, crop=crop, encoding=encoding)
    with closing(Plan(reader, packing)) as plan:
        return _pack(plan, reader, packing, workers, max_bad, progress)


def _pack(
    plan: Plan, reader: Reader, packing: Packing, workers: int | None, max_bad: int | None, progress: bool
) -> Manifest:
    out, made = packing.out, describe(reader, packing)
    if (done := prepared(out, made, plan.checksum)) is not None:
        if progress:
            _report(done, f"already prepared in {out}")
        return done
    for leftover in storage.listed(out, "*/.part-*.tmp"):
        storage.remove(leftover)
    total = sum(part["rows"] for part in plan.parts)
    limit = max(TOLERATED, total // 100) if max_bad is None else max_bad
    started = time.monotonic()
    with phase(f"preparing {reader.name}", total) if progress else nullcontext() as shown:
        results = {}
        for result in _checked(_run(plan, packing, workers), len(plan.parts), limit, out):
            results[result["file"]] = result
            if shown is not None:
                done = shown.done + result["rows"] + len(result["quarantined"])
                shown.update(done, f"{done / (time.monotonic() - started):,.0f} images/s")
    remove_leftovers(out, {part["file"] for part in plan.parts})
    ordered = [results[part["file"]] for part in plan.parts]
    manifest = Manifest(
        splits=collect_splits(ordered, plan.landmarks, out),
        quarantined=tuple(image for result in ordered for image in result["quarantined"]),
        source_checksum=plan.checksum,
        **made,
    )
    manifest.write(out)
    if progress:
        _report(manifest, f"prepared in {out}")
    return manifest


def _run(plan: Plan, packing: Packing, workers: int | None) -> Iterator[dict]:
    """Results in whatever order shards finish."""
    if workers == 0:
        yield from (make_shard(plan.item(part), packing) for part in plan.parts)
        return
    from lead_ray.ingest import connect

    connect(num_cpus=workers)
    import ray.data

    spread = ray.data.TaskPoolStrategy(size=workers)
    for first in range(0, len(plan.parts), AT_ONCE):
        parts = plan.parts[first : first + AT_ONCE]
        items = ray.data.from_items([plan.item(part) for part in parts], override_num_blocks=len(parts))
        for row in items.map(_task, fn_kwargs={"packing": packing}, compute=spread).iter_rows():
            yield json.loads(row["result"])


def _task(item: dict, packing: Packing) -> dict:
    return {"result": json.dumps(make_shard(item, packing))}  # text keeps Arrow from guessing types


def _checked(finished: Iterable[dict], shards: int, limit: int, out: Path) -> Iterator[dict]:
    """The results, until one tells of a disk error or there are more than `limit` bad images."""
    bad: list[dict] = []
    for ordinal, result in enumerate(finished):
        if result["error"]:
            raise OSError(
                f"out={storage.uri(out)!r}: {result['error']} (making {result['file']}). {ordinal} of {shards} shards "
                "are finished and stay: free some space, or wait for the store, and run the same command again."
            )
        bad += result["quarantined"]
        if len(bad) > limit:
            raise ValueError(
                f"more than max_bad={limit} images cannot be used. {summary(bad)}. Mend or remove them and "
                "run the same command again, or allow more with --max-bad."
            )
        yield result


def _report(manifest: Manifest, how: str) -> None:
    for name, split in manifest.splits.items():
        points = f"{split.landmarks} landmarks" if split.landmarks else "no landmarks"
        print(f"{manifest.dataset} {name}: {split.count:,} images, {points}, {len(split.shards)} shards")
    print(f"{how}; {summary(manifest.quarantined)}", flush=True)


Sets = Union[tuple(Annotated[reader, tyro.conf.subcommand(reader.name)] for reader in READERS)]  # noqa: UP007


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `lead-ray prepare`; exits with 1 and one line on stderr when data or disk is wrong."""

    def command(
        reader: Sets,
        out: Path,
        workers: int | None = None,
        encoding: Encoding = "jpeg",
        size: int = 136,
        max_bad: int | None = None,
    ) -> None:
        """Crop, resize and pack one data set into shards; doing it twice does nothing.

        Args:
            reader: The data set.
            out: Folder for the shards; manifest.json appears there last.
            workers: Tasks at a time through Ray; None: all cores; 0: this process, without Ray.
            encoding: How images are stored; jpeg is quality 95 with full colour resolution.
            size: Side of the stored images in pixels.
            max_bad: Unusable images to set aside before stopping; None: 1 % of all, but at least 10.
        """
        prepare(reader, out, workers=workers, encoding=encoding, size=size, max_bad=max_bad)

    options = (tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    with for_people("prepare"):
        parsed(command, arguments, None, "lead-ray prepare", config=options)


if __name__ == "__main__":
    main()
