"""Regressors judged by the test images: the numbers of each repeat, of all together, and what lies beside them."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lead_ray import features, metrics
from lead_ray.evaluation import details, zoom
from lead_ray.evaluation.settings import Evaluate
from lead_ray.images import shards
from lead_ray.readouts import regression
from lead_ray.readouts.descent import Annotated
from lead_ray.readouts.regressor import Blocks
from lead_ray.readouts.settings import caution

FLOORS = {"error": "mean_face", "pck": "mean_shape", "pck_coded": "mean_shape_coded"}
"""Each measure, and what the mean of the annotated images' landmarks scores in it."""


class Score(NamedTuple):
    """How one repeat did; points in pixels of the stored images."""

    numbers: dict[str, float]
    predicted: Tensor
    mean_shape: Tensor


class Judge:
    """Measures regressors on the test images: % of the eyes' distance, or a bird's percentages of correct points."""

    def __init__(self, settings: Evaluate, train: shards.Images, test: shards.Images, blocks: Blocks, margin: int):
        self.settings, self.train, self.test, self.blocks, self.margin = settings, train, test, blocks, margin
        self.eyes = settings.eyes_among(test.landmarks.shape[1])
        self.size = test.pixels.shape[2]
        device = blocks[0].device
        self.truth = features.normalised_landmarks(test, margin=margin).to(device)
        self.visible = torch.from_numpy(test.visible).to(device)
        self.factor, self.trained = self._factors() if self.eyes is not None else (None, None)

    def _factors(self) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        """Zoom-out factors of the test images, and the range of the training images'; None without boxes."""
        settings = self.settings
        tested = settings.train_split if settings.validation else settings.test_split
        ours, theirs = (zoom.factors(settings.data, split) for split in (tested, settings.train_split))
        if ours is None or theirs is None:
            return None, None
        given = np.array([ours[name] for name in self.test.ids], np.float32)
        return given, zoom.spread(np.array([theirs[name] for name in self.train.ids]))

    def __call__(self, regressor: regression.Fitted, annotated: Annotated) -> Score:
        predicted = regressor.predict(self.blocks)
        shape = regression.mean_face(annotated.landmarks, len(self.truth), visible=annotated.visible)
        own, floor = (self._measured(points) for points in (predicted, shape))
        found, mean = (
            features.stored_pixels(each, size=self.size, margin=self.margin).cpu() for each in (predicted, shape)
        )
        return Score(own | {FLOORS[name]: value for name, value in floor.items()}, found, mean[0])

    def _measured(self, predicted: Tensor) -> dict[str, float]:
        if self.eyes is not None:
            return {"error": regression.evaluate(predicted, self.truth, eyes=self.eyes, visible=self.visible).mean}
        side = self.size - 2 * self.margin
        scores = metrics.bird_scores(predicted, self.truth, visible=self.visible, side=side)
        return {name: scores[name] for name in ("pck", "pck_coded")}

    def summary(self, count: int, scores: Sequence[Score]) -> tuple[dict[str, Any], details.Arrays]:
        """The result of so many annotated images, from all of its repeats; and its arrays."""
        arrays = self._arrays(count, scores)
        result: dict[str, Any] = {
            "images": len(self.test.ids),
            "skipped": int((~self._counted().any(axis=1)).sum()),
            "annotations": count,
        }
        for name, floor in FLOORS.items():
            own, floors = ([score.numbers[key] for score in scores if key in score.numbers] for key in (name, floor))
            if own:
                result |= {name: fmean(own), f"{name}_std": stdev(own) if len(own) > 1 else None, _all(name): own}
                result |= {floor: fmean(floors), _all(floor): floors}
        if "factor" in arrays:
            distances = np.linalg.norm(arrays["predicted"] - arrays["truth"], axis=-1) / arrays["normaliser"][:, None]
            errors = 100 * details.mean(np.where(self._counted(), distances, np.nan)).mean(axis=0)
            result |= zoom.by_factor(errors, arrays["factor"], arrays["train_factor"])
        if (said := caution(self.settings.regressor())) is not None:
            result["caution"] = said
        return result, arrays

    def _counted(self) -> np.ndarray:
        """Mask [n, k] of the points that count."""
        if self.eyes is None:
            return self.test.visible
        return metrics.with_eyes(torch.from_numpy(self.test.visible), self.eyes).numpy()

    def _arrays(self, count: int, scores: Sequence[Score]) -> details.Arrays:
        seeds = self.settings.seeds
        truth, visible = (torch.from_numpy(marks) for marks in (self.test.landmarks, self.test.visible))
        if self.eyes is None:
            unit = torch.full((len(truth),), float(self.size - 2 * self.margin))
        else:
            unit = metrics.inter_ocular_distance(truth, eyes=self.eyes, visible=visible)
        arrays = {
            "task": np.array("regression"),
            "ids": np.array(self.test.ids),
            "truth": self.test.landmarks,
            "visible": self.test.visible,
            "normaliser": unit.numpy(),
            "predicted": torch.stack([score.predicted for score in scores]).float().numpy(),
            "mean_shape": torch.stack([score.mean_shape for score in scores]).float().numpy(),
            "annotations": np.array(count),
            "seeds": np.array(seeds),
        }
        total = len(self.train.ids)
        if count < total:
            chosen = [regression.annotations(count, total, seed).tolist() for seed in seeds]
            arrays["annotated"] = np.array([[self.train.ids[row] for row in rows] for rows in chosen])
        if self.factor is not None:
            arrays |= {"factor": self.factor, "train_factor": self.trained}
        return arrays


def _all(name: str) -> str:
    """What the values of all repeats are called."""
    measured, coded, _ = name.partition("_coded")
    return f"{measured}s{coded}"
