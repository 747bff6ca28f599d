"""Pictures of what a network's features know: correspondence, clusters, parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from lead_ray import clusters, parts
from lead_ray.artefacts import RunFolder
from lead_ray.figures import clusters as cluster_figures
from lead_ray.figures import correspondence, curves
from lead_ray.figures import parts as part_figures
from lead_ray.plotting.sources import Picture, Sample, named, stage

Run = Annotated[Path, tyro.conf.Positional]
Runs = Annotated[tuple[Path, ...], tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class HeatMaps(Picture):
    """Where landmarks of one face are found in others, by one system or by several, such as stage 1 and stage 2."""

    runs: Runs
    """Finished runs or files of weights, a row each."""
    data: Path
    """Prepared folder with landmarks."""
    split: str = "test"
    images: int = 7
    """Evenly spaced ones of the split, the reference first."""
    reference: int = 0
    """Which of them is the reference."""
    landmarks: tuple[int, ...] = (0, 2, 4)
    names: tuple[str, ...] = ()
    """Of the systems, if not the stages'."""
    words: tuple[str, ...] = ()
    """Names of the landmarks."""
    temperature: float = 0.05
    """Of the softmax that makes the heat."""

    def figure(self) -> Figure:
        if self.words and len(self.words) != len(self.landmarks):
            raise ValueError(f"words must name the {len(self.landmarks)} landmarks, got {list(self.words)}")
        if not 0 <= self.reference < self.images:
            raise ValueError(f"reference must be in 0..{self.images - 1}, one of the images, got {self.reference}")
        sample, shown = Sample.read(self.data, self.split, self.images), list(self.landmarks)
        if not shown or not all(0 <= each < sample.points.shape[1] for each in shown):
            raise ValueError(f"landmarks must be in 0..{sample.points.shape[1] - 1}, those of {self.data}, got {shown}")
        start = sample.points[self.reference, shown]
        if start.isnan().any():
            raise ValueError(f"a landmark of {shown} is not visible in the reference: choose another --reference")
        names = named(self.names, [stage(run) for run in self.runs], [run.name for run in self.runs])
        systems = {name: sample.blocks(run) for name, run in zip(names, self.runs, strict=True)}
        how = {"names": self.words or None, "truth": sample.points[:, shown], "temperature": self.temperature}
        return correspondence.stages(sample.crops, systems, self.reference, start, **how)


@dataclass(frozen=True, kw_only=True)
class Clusters(Picture):
    """Clusters of the locations of one block, in t-SNE's plane, in images and as patches."""

    run: Run
    """Finished run or file of weights."""
    data: Path
    """Prepared folder; landmarks are not needed."""
    split: str = "test"
    images: int = 300
    clusters: int = 9
    block: int = -1
    """Which block, finest first; -1: the last, 3 x 3 cells of a ResNet on 96 px."""
    points: int = 2000
    """At most so many locations, random ones, are laid out by t-SNE."""
    patches: int = 8
    """Of each cluster."""
    seed: int = 0

    def figure(self) -> Figure:
        sample = Sample.read(self.data, self.split, self.images)
        blocks = sample.blocks(self.run)
        if not -len(blocks) <= self.block < len(blocks):
            raise ValueError(f"block must be in {-len(blocks)}..{len(blocks) - 1}, the network's, got {self.block}")
        block = blocks[self.block]
        found = clusters.find(block, self.clusters, seed=self.seed)
        rows, labels = clusters.descriptors(block), found.labels.flatten()
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))[: self.points]
        plane = clusters.plane(rows[chosen], seed=self.seed, perplexity=min(30.0, len(chosen) / 4))
        nearest = [_patches(sample.crops, places, block) for places in clusters.exemplars(block, found, self.patches)]
        height, width = block.shape[2:]
        title = (
            f"{self.clusters} clusters of the {height} x {width} cells of {self.images} images, {stage(self.run)}; "
            f"{found.by_position:.0f} % of cells are in the cluster most frequent at their place"
        )
        step = torch.linspace(0, len(sample.crops) - 1, min(9, len(sample.crops))).round().long()
        shown = (sample.crops[step], found.labels[step])
        return cluster_figures.clusters(plane, labels[chosen], *shown, nearest, title=self.said(title))


@dataclass(frozen=True, kw_only=True)
class Parts(Picture):
    """Parts discovered in the images by non-negative factors of the features."""

    run: Run
    """Finished run or file of weights."""
    data: Path
    """Prepared folder; where it has landmarks, how well they agree with the parts is printed."""
    split: str = "test"
    images: int = 200
    """Factorised together."""
    shown: int = 8
    parts: int = 5
    seed: int = 0

    def figure(self) -> Figure:
        if not 1 <= self.shown <= self.images:
            raise ValueError(f"shown must be in 1..{self.images}, the images, got {self.shown}")
        sample = Sample.read(self.data, self.split, self.images)
        found = parts.factorise(parts.non_negative(sample.blocks(self.run)), self.parts, seed=self.seed)
        step = torch.linspace(0, self.images - 1, self.shown).round().long()
        if sample.points.shape[1]:
            _tell(sample, found)
        most = part_figures.strongest(found.presence).tolist()
        return part_figures.overlay(sample.crops[step], found.presence[step], most=most)


@dataclass(frozen=True, kw_only=True)
class Losses(Picture):
    """The loss of finished or unfinished runs by step."""

    runs: Runs
    """Their folders."""

    def figure(self) -> Figure:
        histories = {run.name: RunFolder(run).metrics() for run in self.runs}
        if empty := [name for name, history in histories.items() if not history]:
            raise ValueError(f"runs without metrics.jsonl, or an empty one: {', '.join(empty)}; give runs' folders")
        return curves.loss_curves(histories)


def _tell(sample: Sample, found: parts.Parts) -> None:
    visible = ~sample.points.isnan().any(-1)
    agreed = parts.agreement(found.presence, sample.points.nan_to_num(), side=sample.crops.shape[3], visible=visible)
    print(f"residual {found.residuals[-1]:.3f} after {len(found.residuals)} rounds")
    print("landmark  part  images in which it lies there, %  by position alone, %")
    for number, (part, share, floor) in enumerate(zip(*(each.tolist() for each in agreed), strict=True)):
        print(f"{number:8}  {part + 1:4}  {share:33.1f}  {floor:20.1f}")


def _patches(crops: Tensor, places: Tensor, block: Tensor) -> Tensor:
    """Squares of twice a cell's side around the cells (image, row, column), moved inside of the image."""
    side = crops.shape[3]
    size = min(2 * max(side // block.shape[3], 8), side // 2)
    cut = []
    for image, row, column in places.tolist():
        centre = [(cell + 0.5) * side / cells for cell, cells in ((row, block.shape[2]), (column, block.shape[3]))]
        top, left = (round(min(max(middle - size / 2, 0), side - size)) for middle in centre)
        cut.append(crops[image, :, top : top + size, left : left + size])
    return torch.stack(cut) if cut else crops.new_zeros(0, 3, size, size)
