"""Do images that the program chooses teach more than images chosen by chance?

$ lead-ray prepare synthetic --raw drawn --images 1500 --seed 1 --test-share 0.4 --out synthetic
$ lead-ray prepare 300w --raw 300W --boxes cropped --out faces
$ python studies/choose_images.py --sets synthetic synthetic --results studies/results/choose_images_synthetic \\
    --models synthetic lead_ray/models/synthetic-faces.safetensors
$ python studies/choose_images.py --sets faces faces --results studies/results/choose_images_faces \\
    --models faces runs/stage2-... --test 100 --candidates 40
$ python studies/choose_images.py ... --counts 5 6 --seeds 0 1 --pool 20 --test 10    # smoke

Plays through what a person does with `lead-ray annotate`, true landmarks in the person's place. Of a pool of unlabelled
images each rule picks the next ones; the read-out of `lead-ray annotate` is fitted to what is picked; its error is
measured on other images, from which nobody picks. For each seed all rules see the same pool.

- chance: in random order.
- coverage: greedy k-medoids on embeddings of whole images; see lead_ray.annotating.choose.covering.
- farthest: the image that is farthest from all labelled ones.
- disagreement: from the first count on, images about which the ensemble's members disagree most.
- both: from the first count on, coverage in which an image weighs as much as the members disagree about it.
The last two pick the first images by coverage, and later ones STEP at a time.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from lead_ray import features, metrics
from lead_ray.annotating.choose import covering, farthest
from lead_ray.artefacts import write_json
from lead_ray.errors import for_people
from lead_ray.images import shards
from lead_ray.machine import environment
from lead_ray.models import weights
from lead_ray.readouts import ensemble, regression
from lead_ray.reporting.cells import Cell, Column, Row
from lead_ray.reporting.tables import Table

RULES = ("chance", "coverage", "farthest", "disagreement", "both")
STEP = 5  # images picked between two fits
EYES = {5: metrics.EYE_CENTRES, 68: metrics.OUTER_EYE_CORNERS}
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Which rule picks the images from which the read-out learns most."""

    sets: dict[str, Path]
    """Prepared folders with 5 or 68 landmarks, splits train and test, by name."""
    models: dict[str, Path]
    """The encoder of each: a run's folder or a file of weights."""
    counts: tuple[int, ...] = (5, 10, 20)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    pool: int = 300
    """Training images that can be picked, drawn anew for each seed."""
    test: int = 200
    """Test images, the same for all."""
    candidates: int = 60
    """Of the pool, chosen by coverage, about which the members' disagreement is asked."""
    responses: int = 100
    """Virtual points of a landmark times landmarks, at most, but 4 a landmark: what read-outs cost."""
    results: Path = RESULTS / "choose_images"
    """Receives .json and .md."""

    def __post_init__(self):
        if self.sets.keys() != self.models.keys():
            raise ValueError(f"models must be those of the sets {sorted(self.sets)}, got {sorted(self.models)}")
        if list(self.counts) != sorted(set(self.counts)) or self.counts[0] < 2 or self.counts[-1] > self.pool:
            raise ValueError(f"counts must rise from at least 2 to at most pool={self.pool}, got {self.counts}")


@dataclass(frozen=True)
class Images:
    """Features and landmarks of some images; all tensors hold as many."""

    blocks: list[Tensor]
    landmarks: Tensor
    visible: Tensor
    embeddings: np.ndarray

    def at(self, places: np.ndarray) -> "Images":
        chosen = torch.from_numpy(np.asarray(places, np.int64))
        blocks = [block[chosen].contiguous(memory_format=torch.channels_last) for block in self.blocks]
        return Images(blocks, self.landmarks[chosen], self.visible[chosen], self.embeddings[places])


def read(data: Path, model: Path, split: str, limit: int | None = None) -> Images:
    """Images of a split, at most `limit` of them, drawn by chance."""
    images = shards.load(data, split)
    if images.landmarks.shape[1] not in EYES:
        raise ValueError(f"{data} has {images.landmarks.shape[1]} landmarks: this study knows the eyes of 5 and of 68")
    places = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(images.ids))[:limit]))
    blocks = features.extract(weights.load(model), images.pixels[places])
    # As Proposer.embeddings: each block's mean, of length 1 before they are joined.
    means = [torch.nn.functional.normalize(block.float().mean((2, 3)), dim=1) for block in blocks]
    embeddings = (torch.cat(means, dim=1) / len(means) ** 0.5).numpy()
    landmarks, visible = features.normalised_landmarks(images)[places], torch.from_numpy(images.visible)[places]
    return Images(blocks, landmarks, visible, embeddings)


def fit(images: Images, responses: int) -> ensemble.Ensemble:
    points = min(20, max(4, responses // images.landmarks.shape[1]))
    return ensemble.fit_ensemble(images.blocks, images.landmarks, images.visible, points=points)[0]


def pick(rule: str, pool: Images, count: int, study: Study, seed: int) -> list[int]:
    """Places in the pool, in the order in which the rule wants them annotated."""
    everything = np.arange(len(pool.embeddings))
    if rule == "chance":
        return np.random.default_rng(seed).permutation(everything)[:count].tolist()
    nothing = pool.embeddings[:0]
    if rule == "farthest":
        return farthest(pool.embeddings, nothing, count).tolist()
    if rule == "coverage":
        return covering(pool.embeddings, nothing, count).tolist()
    chosen = covering(pool.embeddings, nothing, study.counts[0]).tolist()
    while len(chosen) < count:
        rest = np.setdiff1d(everything, chosen)
        asked = rest[covering(pool.embeddings[rest], nothing, study.candidates)]
        doubt = fit(pool.at(chosen), study.responses).read(pool.at(asked).blocks).spread.nanmean(1).numpy()
        more = min(STEP, count - len(chosen))
        if rule == "disagreement":
            best = np.argsort(-doubt, kind="stable")[:more]
        else:
            best = covering(pool.embeddings[asked], pool.embeddings[chosen], more, weights=doubt)
        chosen += asked[best].tolist()
    return chosen


def errors(study: Study, name: str) -> dict[str, dict[int, list[float]]]:
    """Rule -> count -> error of every seed, % of the inter-ocular distance."""
    data, model = study.sets[name], study.models[name]
    train, test = read(data, model, "train"), read(data, model, "test", study.test)
    eyes = EYES[test.landmarks.shape[1]]
    found: dict[str, dict[int, list[float]]] = {rule: {count: [] for count in study.counts} for rule in RULES}
    for seed in study.seeds:
        places = np.random.default_rng(1000 + seed).permutation(len(train.embeddings))[: study.pool]
        pool = train.at(places)
        for rule in RULES:
            chosen = pick(rule, pool, study.counts[-1], study, seed)
            for count in study.counts:
                predicted = fit(pool.at(chosen[:count]), study.responses).read(test.blocks).points
                error = regression.evaluate(predicted, test.landmarks, eyes=eyes, visible=test.visible).mean
                found[rule][count].append(error)
            print(f"{name}, seed {seed}, {rule}: " + ", ".join(f"{each[-1]:.2f}" for each in found[rule].values()))
    return found


def paired(found: dict[str, dict[int, list[float]]]) -> dict[str, dict[int, dict[str, float]]]:
    """Each rule's error less that of chance, seed by seed: mean and its standard error."""
    summary: dict[str, dict[int, dict[str, float]]] = {}
    for rule in RULES[1:]:
        summary[rule] = {}
        for count, own in found[rule].items():
            gaps = [mine - theirs for mine, theirs in zip(own, found["chance"][count], strict=True)]
            error = stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            summary[rule][count] = {"mean": fmean(gaps), "standard_error": error}
    return summary


def table(study: Study, found: dict[str, dict[str, dict[int, list[float]]]]) -> Table:
    """Mean and standard deviation over the seeds."""

    def cell(values: list[float]) -> Cell:
        return Cell(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    grid = [(name, count) for name in study.sets for count in study.counts]
    columns = [Column(f"{name}, {count} images", "% IOD", better="lower") for name, count in grid]
    rows = [
        Row(rule, "images picked by", tuple(cell(found[name][rule][count]) for name, count in grid)) for rule in RULES
    ]
    return Table("Which images to annotate", columns, rows)


def main(study: Study) -> None:
    found = {name: errors(study, name) for name in study.sets}
    result: dict[str, Any] = {
        "errors": found,
        "against_chance": {name: paired(each) for name, each in found.items()},
        "settings": {"pool": study.pool, "test": study.test, "candidates": study.candidates, "step": STEP},
        "models": {name: weights.fingerprint(path)[:8] for name, path in study.models.items()},
        "environment": environment(),
    }
    write_json(study.results.with_suffix(".json"), result)
    shown = table(study, found)
    study.results.with_suffix(".md").write_text(shown.markdown())
    shown.show()


if __name__ == "__main__":
    with for_people("choose_images.py"):
        main(tyro.cli(Study, description=__doc__))
