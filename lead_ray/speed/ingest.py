"""Speed of ingest: encoded shards to images on the device, before the first step or beside the steps."""

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lead_ray.data.synthetic import Synthetic
from lead_ray.images import feed, shards
from lead_ray.images.feed import AHEAD, Source
from lead_ray.machine import cores
from lead_ray.prepare import prepare
from lead_ray.speed.measure import Candidate, Measured, compare, report
from lead_ray.speed.steps import Bench


@dataclass(frozen=True, kw_only=True)
class Ingest(Bench):
    """Images a second from prepared shards to pixels in memory: what resident needs once, and stream every epoch."""

    data: Path | None = None
    """Prepared folder; if not given, 2,000 synthetic faces are drawn and prepared first."""
    split: str = "train"
    rounds: int = 5

    def run(self) -> list[Measured]:
        device = self.start()
        with tempfile.TemporaryDirectory() as folder:
            data = self.data or self.drawn(Path(folder))
            source = Source.open(data, self.split)
            images = sum(shard.rows for shard in source.shards)
            candidates = [
                Candidate(name="one after another, Pillow", call=lambda: one_by_one(source)),
                Candidate(
                    name=f"lead_ray, {cores()} threads",
                    call=lambda: [
                        torch.from_numpy(pixels).to(device)
                        for pixels in feed.in_threads(source, range(len(source.shards)), AHEAD)
                    ],
                ),
            ]
            found = compare(candidates, images=images, rounds=self.rounds, device=device)
        report(f"{images:,} images of {source.manifest.size} px, decoded", found, self.out, self)
        return found

    @staticmethod
    def drawn(folder: Path) -> Path:
        faces = Synthetic(raw=folder / "faces", images=2000, identities=500, draw_workers=cores())
        prepare(faces, folder / "shards", workers=0, progress=False)
        return folder / "shards"


def one_by_one(source: Source) -> list[np.ndarray]:
    """What a data set's __getitem__ does: open each image, one after another; checksums included."""
    found = []
    for shard in source.shards:
        rows = shards.read_shard(source.folder, shard, command=source.manifest.command, columns=["image"])
        found += [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in rows["image"].to_pylist()]
    return found
