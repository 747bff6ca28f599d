"""Measuring: frozen features of the test images against their landmarks, and what lies beside each number."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lead_ray import features, storage
from lead_ray.artefacts import atomic, plain
from lead_ray.evaluation.details import Arrays
from lead_ray.evaluation.judging import Judge, Score
from lead_ray.evaluation.matching import match_pairs
from lead_ray.evaluation.settings import REDUCTIONS, Evaluate, features_name, reduction_name
from lead_ray.images import shards
from lead_ray.models import reduce, weights
from lead_ray.models.baselines import ColourPatches, untrained
from lead_ray.readouts import regression
from lead_ray.readouts.annotated import Draw, annotate
from lead_ray.stage import pick_device

Measured = tuple[int, dict[str, Any], Arrays]
"""Which of the settings, the numbers, and what lies beside them."""


class Part(NamedTuple):
    """Some images."""

    images: shards.Images
    blocks: Callable[[], list[Tensor]]
    """Their features."""


def make_encoder(settings: Evaluate, margin: int) -> nn.Module:
    """What gives the features that are measured, in evaluation mode.

    Raises: ValueError if hypercolumns are to be reduced and the run is not of stage 1.
    """
    device = pick_device(settings.device)
    if settings.features in REDUCTIONS:
        return _reduced(settings, margin, device)
    card = weights.read_card(settings.run)
    learned, floor = partial(weights.load, settings.run), partial(untrained, card)
    return {"learned": learned, "untrained": floor, "colour": ColourPatches}[settings.features]().eval().to(device)


def _reduced(settings: Evaluate, margin: int, device: torch.device) -> nn.Module:
    """Stage 1 under a reduction fitted to its features of images without landmarks, which is kept, and read again."""
    kept = settings.folder / "features" / reduction_name(settings, margin)
    if not storage.exists(kept):
        how = settings.reduce
        trunk = weights.load_trunk(settings.run).to(device)
        images = shards.load(how.data or settings.data, how.split).pixels
        chosen = regression.annotations(min(how.images, len(images)), len(images), how.seed)
        batches = (features.crops(images[some].to(device), margin=margin) for some in chosen.split(64))
        method = reduce.ReductionSettings(method=REDUCTIONS[settings.features], dim=how.dim)
        fitted = reduce.fit(trunk, batches, method, seed=how.seed)
        with atomic(kept) as temporary:
            weights.save(temporary, fitted, {"reduced": plain(how), "images": len(chosen)})
    return weights.load(kept).to(device)


def held_out(images: shards.Images, share: float) -> np.ndarray:
    """Mask [n] of the images that a hash of the person, or of the image where it is not known, puts aside.

    Raises: ValueError if that leaves none on one side.
    """
    names = [who or image for who, image in zip(images.identity, images.ids, strict=True)]
    held = np.array([zlib.crc32(name.encode()) < share * 2**32 for name in names])
    if held.all() or not held.any():
        raise ValueError(f"validation={share} puts {held.sum()} of {len(held)} images aside: choose another share")
    return held


def _take(images: shards.Images, rows: np.ndarray | slice) -> shards.Images:
    def taken(values: Any) -> Any:
        one_by_one = isinstance(values, list) and not isinstance(rows, slice)
        return [values[row] for row in rows] if one_by_one else values[rows]

    return shards.Images(**{each.name: taken(getattr(images, each.name)) for each in fields(images)})


def _parts(settings: Evaluate, encoder: nn.Module, margin: int) -> tuple[Part | None, Part]:
    """Images to learn from, which matching has no use for, and to measure on."""
    device = pick_device(settings.device)

    def features_of(images: shards.Images, split: str) -> list[Tensor]:
        name = features_name(settings, split, len(images.ids), margin)
        return features.cached(settings.folder / "features" / name, encoder, images.pixels.to(device), margin=margin)

    def part(images: shards.Images, split: str) -> Part:
        return Part(images, partial(features_of, images, split))

    if not settings.validation:
        test = part(_first(settings, shards.load(settings.data, settings.test_split)), settings.test_split)
        if settings.task == "matching":
            return None, test
        return part(shards.load(settings.data, settings.train_split), settings.train_split), test
    images = shards.load(settings.data, settings.train_split)
    held = held_out(images, settings.validation)

    def some(rows: np.ndarray) -> Part:
        places = torch.from_numpy(rows).to(device)
        whole = partial(features_of, images, settings.train_split)
        return Part(_take(images, rows), lambda: [block[places] for block in whole()])

    rest, aside = (~held).nonzero()[0], held.nonzero()[0]
    return some(rest), some(aside[: len(_first(settings, _take(images, aside)).ids)])


def _first(settings: Evaluate, images: shards.Images) -> shards.Images:
    if images.landmarks.shape[1] == 0:
        raise ValueError(f"data={settings.data} has no landmarks: prepare it with --landmarks")
    count = settings.limit or len(images.ids)
    if count > len(images.ids):
        where = settings.train_split if settings.validation else settings.test_split
        raise ValueError(f"limit must be at most the {len(images.ids)} images of {where}, got {count}")
    return _take(images, slice(count))


def matchings(several: Sequence[Evaluate]) -> Iterator[Measured]:
    """The one result of matching, its repeats the seeds."""
    (settings,) = several
    device, margin = pick_device(settings.device), settings.margin_of(shards.read_manifest(settings.data).size)
    encoder = make_encoder(settings, margin)
    images = _parts(settings, encoder, margin)[1].images
    eyes = settings.eyes_among(images.landmarks.shape[1])
    even = len(images.ids) // 2 * 2
    pixels = images.pixels[:even].to(device)
    points, visible = (torch.from_numpy(marks[:even]).to(device) for marks in (images.landmarks, images.visible))
    runs, columns = [], []
    for seed in settings.seeds:
        how = replace(settings.matching, seed=seed, margin=margin)
        found = match_pairs(pixels, points, encoder, how, eyes=eyes, visible=visible)
        runs.append(found.summary())
        columns.append(found.arrays())
    means = {name: fmean(run[name] for run in runs) for name in runs[0]}
    beside = {
        "task": np.array("matching"),
        "ids": np.array(images.ids[:even]).reshape(-1, 2),
        "points": images.landmarks[0:even:2],
        "truth": images.landmarks[1:even:2],
        "visible": images.visible[0:even:2] & images.visible[1:even:2],
        "seeds": np.array(settings.seeds),
        **{name: np.stack([column[name] for column in columns]) for name in columns[0]},
    }
    errors = [run["cl_diff_error"] for run in runs]
    yield 0, {"pairs": even // 2, **means, "errors": errors, "runs": runs}, beside


def regressions(several: Sequence[Evaluate]) -> Iterator[Measured]:
    """Settings that differ in their annotations and copies; each as soon as its last repeat is fitted."""
    settings = several[0]
    device, margin = pick_device(settings.device), settings.margin_of(shards.read_manifest(settings.data).size)
    encoder = make_encoder(settings, margin)
    train, test = _parts(settings, encoder, margin)
    counts = [single.annotations or len(train.images.ids) for single in several]
    pairs = list(zip(counts, several, strict=True))
    draws = [Draw(count, single.copies, seed) for count, single in pairs for seed in settings.seeds]
    judge = Judge(settings, train.images, test.images, test.blocks(), margin)
    given = annotate(draws, train.images, encoder, device, train.blocks, margin=margin)
    repeats, begin = len(settings.seeds), 0
    scores: dict[int, Score] = {}
    for blocks, sets in given:
        for place, fitted in regression.fit_each(blocks, sets, settings.regressor()):
            scores[begin + place] = judge(fitted, sets[place])
            which = (begin + place) // repeats
            own = [scores[each] for each in range(which * repeats, (which + 1) * repeats) if each in scores]
            if len(own) == repeats:
                yield which, *judge.summary(counts[which], own)
        begin += len(sets)
