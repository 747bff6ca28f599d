"""A landmark model as a person gets it: how far off it is, whether it knows, how large, how fast, and as ONNX."""

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import lead_ray
from lead_ray.artefacts import write_json
from lead_ray.export import Export, Network, export
from lead_ray.landmarks import fitting
from lead_ray.landmarks.calibration import reliability
from lead_ray.landmarks.labels import Labels
from lead_ray.landmarks.model import BATCH, LandmarkModel, framed, load, upright
from lead_ray.landmarks.prediction import View, held_out, normalised, truths
from lead_ray.landmarks.proposer import Proposer
from lead_ray.machine import environment
from lead_ray.models import weights
from lead_ray.models.fpn import DenseEncoder, Fpn, FpnSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.speed import kept, labelled
from lead_ray.speed.labelled import Photographs

CARRIED = Path(lead_ray.__file__).parent / "models" / "synthetic-faces.safetensors"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
REFITS = 3


@dataclass(frozen=True, kw_only=True)
class Model:
    """A landmark model: error, calibration, size, speed, ONNX. By default synthetic faces and the carried encoder."""

    encoder: Path = CARRIED
    """A finished run's folder, or a file of encoder weights."""
    untrained: int | None = None
    """Depth of a ResNet with stage 2 and random weights in its place: 18, 34 or 50. Sizes and times are those that it
    would have once trained; its errors say nothing and are left out."""
    data: Path | None = None
    """A prepared data set with landmarks; if neither this nor images is given, synthetic faces are drawn."""
    images: Path | None = None
    """A folder of annotated images, measured on those that nothing was learned from."""
    labels: Path | None = None
    """Their annotations, in any format that `lead-ray convert` knows."""
    name: str | None = None
    """What the table calls the data; if not given, the folder's name."""
    annotations: tuple[int, ...] = (10, 20, 50)
    """Numbers of annotated images."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Which images those are."""
    test: int = 200
    """Test images, at most."""
    rounds: int = 15
    """Times that what is timed is done; the median counts, after one that does not."""
    threads: int = 1
    """Of torch and onnxruntime; with one, processor time is that of a core and no matter of what else runs."""
    out: Path | None = None
    """JSON file that receives what is printed."""

    def __post_init__(self):
        if (self.images is None) != (self.labels is None) or (self.images and self.data):
            raise ValueError("name --images with their --labels, or --data, or neither")
        if not self.annotations or min(self.annotations) < fitting.LEAST:
            raise ValueError(f"annotations must be at least {fitting.LEAST} each, got {self.annotations}")

    def run(self) -> dict[str, Any]:
        torch.set_num_threads(self.threads)
        busy = [os.getloadavg()[0]]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            encoder = self.encoder if self.untrained is None else random(folder / "random.safetensors", self.untrained)
            card, fingerprint = weights.read_card(encoder), weights.fingerprint(encoder)[:8]
            photographs = self.photographs(folder / "images", card.view.margin)
            rows, model = self.learn(encoder, photographs)
            size = self.size(model, photographs, folder / "model")
        given = self.data or self.images
        found = {
            "data": self.name or (given.resolve().name if given else "synthetic faces"),
            "network": described(card),
            "landmarks": len(photographs.train.schema.names),
            "unit": f"% of {model.card.scale.words}",
            "radius": model.card.scale.share,
            "test_images": len(photographs.test.images),
            "found": rows,
            "size": size,
            "settings": {name: getattr(self, name) for name in ("annotations", "seeds", "test", "rounds", "threads")}
            | {"encoder": fingerprint},
            "load": [*busy, os.getloadavg()[0]],
            "hardware": environment(),
        }
        print(kept.markdown([found]))
        if self.out is not None:
            write_json(self.out, found)
        return found

    def photographs(self, folder: Path, margin: int) -> Photographs:
        """What is measured on."""
        folder.mkdir()
        amounts = {"train": 4 * max(self.annotations), "test": self.test, "seed": 0}
        if self.images is not None:
            return labelled.own(self.images, self.labels, **amounts)
        if self.data is not None:
            return labelled.prepared(folder, self.data, margin=margin, **amounts)
        return labelled.drawn(folder, **amounts)

    def learn(self, encoder: Path, photographs: Photographs) -> tuple[list[list[dict[str, Any]]], LandmarkModel]:
        """For every number of annotations what came of each seed; and the last model."""
        rows = []
        for count in self.annotations:
            each = []
            for seed in self.seeds:
                given = labelled.first(photographs.train, count, seed)
                began = time.perf_counter(), time.process_time()
                model = fitting.fit(encoder, given, photographs.folder, seed=seed)
                row = {"annotations": len(given.images), "fit": since(began)}
                row["refit"] = refit(encoder, given, photographs.folder)
                each.append(row | (judged(model, given, photographs) if self.untrained is None else {}))
            rows.append(each)
        return rows, model

    def size(self, model: LandmarkModel, photographs: Photographs, folder: Path) -> dict[str, Any]:
        """Of the folder on the disk; milliseconds of an image that is in memory, alone and as one of a batch."""
        model.save(folder)
        model = load(folder)
        images = photographs.test.images[:BATCH]
        pictures = [upright(photographs.folder / image.file) for image in images]
        boxes = [image.box for image in images]
        found = {
            "megabytes": sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
            "one": self.milliseconds(lambda: model.predict(pictures[:1], boxes[:1])),
            "batch": self.milliseconds(lambda: model.predict(pictures, boxes), len(images)),
            "batch_size": len(images),
        }
        if all(importlib.util.find_spec(name) for name in NEEDED):
            crops = [framed(*each, model.card.framing)[0] for each in zip(pictures, boxes, strict=True)]
            found["onnx"] = self.onnx(model, folder, np.stack(crops).transpose(0, 3, 1, 2).copy())
        return found

    def onnx(self, model: LandmarkModel, folder: Path, images: np.ndarray) -> dict[str, Any]:
        """The exported file in onnxruntime beside the same network in torch; the images are the network's inputs."""
        import onnxruntime

        path = folder / "model.onnx"
        export(Export(model=folder, out=path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            ours = Network(model).eval()(torch.from_numpy(images))
        apart = [
            np.abs(at - one.numpy()).max() for at, one in zip(session.run(None, {"images": images}), ours, strict=True)
        ]
        return {
            "megabytes": path.stat().st_size / 1e6,
            "pixels_apart": float(apart[0]),
            "confidence_apart": float(apart[1]),
            "one": self.milliseconds(lambda: session.run(None, {"images": images[:1]})),
            "batch": self.milliseconds(lambda: session.run(None, {"images": images}), len(images)),
        }

    def milliseconds(self, call: Callable[[], Any], images: int = 1) -> dict[str, float]:
        """An image's, median of the rounds after one that does not count."""
        call()
        clocks = []
        for _ in range(self.rounds):
            began = time.perf_counter(), time.process_time()
            call()
            clocks.append(since(began))
        return {name: 1e3 * median(clock[name] for clock in clocks) / images for name in ("seconds", "processor")}


def since(began: tuple[float, float]) -> dict[str, float]:
    """Seconds by the clock, and of processor time, which other people's work does not lengthen."""
    return {"seconds": time.perf_counter() - began[0], "processor": time.process_time() - began[1]}


def refit(encoder: Path, given: Labels, folder: Path) -> dict[str, float]:
    """What the page of lead-ray annotate waits for after an image: features are there already. The least of REFITS."""
    proposer = Proposer(encoder)
    proposer.add_many([(image.file, upright(folder / image.file), image.box) for image in given.images])
    clocks = []
    for _ in range(REFITS):
        began = time.perf_counter(), time.process_time()
        proposer.fit(given)
        clocks.append(since(began))
    return {name: min(clock[name] for clock in clocks) for name in clocks[0]}


def judged(model: LandmarkModel, given: Labels, photographs: Photographs) -> dict[str, Any]:
    """Errors in test images beside those of the mean shape of the annotated, and how true the confidences are."""
    test, scale = photographs.test.images, model.card.scale

    def views(images: Sequence[Any]) -> list[View]:
        return [View(scale.framing.frame(image.size, image.box), image.box is not None) for image in images]

    shown = views(test)
    truth, known = truths(test, shown), truths(given.images, views(given.images))
    lengths = scale.lengths(truth, shown)
    found = model.predict([photographs.folder / image.file for image in test], [image.box for image in test])
    points = [
        normalised(view.frame.to_input(one.points), view.frame.side) for one, view in zip(found, shown, strict=True)
    ]
    error, errors = held_out(np.stack(points), truth, lengths)
    there = np.array(model.card.placed)
    shape = np.where(there[:, None], known.points.sum(0) / known.visible.sum(0).clip(1)[:, None], np.nan)
    mean_shape, _ = held_out(np.broadcast_to(shape, truth.points.shape), truth, lengths)
    told = np.isfinite(errors)
    near, said = errors[told] < 100 * scale.share, np.stack([one.confidence for one in found])[told]
    return {
        "error": error.error,
        "mean_shape": mean_shape.error,
        "cross_validated": model.card.measured["error"],
        "said": float(said.mean()),
        "near": float(near.mean()),
        "calibrated": model.card.calibration is not None,
        "calibration_error": reliability(said, near).error,
    }


def random(path: Path, depth: int) -> Path:
    """A file of weights that nobody trained: stage 2 on a ResNet."""
    torch.manual_seed(0)
    trunk = Trunk(TrunkSettings(depth=depth))
    weights.save(path, DenseEncoder(trunk, Fpn(trunk.channels, FpnSettings())), {"steps": 0})
    return path


def described(card: weights.Card) -> str:
    """The network in a few words."""
    stage = {"trunk": "stage 1", "dense": f"stage 2, {card.fpn.dim} channels" if card.fpn else ""}.get(
        card.kind, card.kind
    )
    if card.trunk is None:
        return card.kind
    return f"ResNet-{card.trunk.depth}{'' if card.trunk.width == 1 else f' x {card.trunk.width:g}'}, {stage}"
