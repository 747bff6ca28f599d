"""What the quickstart shows at its end: one table, one page."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lead_ray import features, geometry
from lead_ray.artefacts import RunFolder
from lead_ray.evaluation.matching import Matching, match_pairs
from lead_ray.figures import correspondence, curves, faces
from lead_ray.images import shards
from lead_ray.models import weights
from lead_ray.readouts import regression
from lead_ray.reporting import report
from lead_ray.reporting.report import Page, Section
from lead_ray.reporting.tables import Cell, Column, Row, Table

LABELS = {
    "stage 2": ("LEAD stage 2, 64-d map", "LEAD"),
    "stage 1": ("LEAD stage 1, hypercolumn", "LEAD"),
    "untrained": ("the same network, untrained", "floors"),
    "colour": ("raw colour patches", "floors"),
}
READOUT = regression.RegressionSettings(grid=24)
"""Of the table and of the picture."""
POINTS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")


def make_table(summary: dict[str, Any]) -> Table:
    """Matching and regression errors of all systems and floors."""
    columns = [
        Column("matching, other identity", "px", better="lower"),
        Column("matching, same image", "px", better="lower"),
        Column("regression, 10 annotations", "% IOD", better="lower"),
    ]
    rows = []
    for system, (label, group) in LABELS.items():
        matching, regressed = summary["systems"][system]["matching"], summary["systems"][system]["regression"]
        cells = [
            _cell([run["cl_diff_error"] for run in matching["runs"]]),
            _cell([run["cl_same_error"] for run in matching["runs"]]),
            _cell(regressed["errors"]),
        ]
        rows.append(Row(label, group, cells))
    matching, regressed = summary["systems"]["stage 2"]["matching"], summary["systems"]["stage 2"]["regression"]
    floor = [
        _cell([run["cl_diff_baseline"] for run in matching["runs"]]),
        _cell([run["cl_same_baseline"] for run in matching["runs"]]),
        _cell(regressed["mean_faces"]),
    ]
    rows.append(Row("the same position; the mean face", "floors", floor))
    caption = (
        f"Synthetic faces of people that no training saw: {matching['pairs']} pairs, {regressed['images']} test "
        "images; seeds change the warps and which images are annotated. Pixels as the papers publish them, those of "
        "a 70 px face. The read-out is the same in all rows. One network of each kind was trained."
    )
    return Table("Does it find the same part in another face?", columns, rows, caption)


def _cell(values: list[float]) -> Cell:
    found = torch.tensor(values, dtype=torch.float64)
    return Cell(found.mean().item(), found.std().item() if len(values) > 1 else None, len(values))


def make_page(path: Path, summary: dict[str, Any], runs: dict[str, RunFolder], data: Path, annotations: int) -> None:
    """Write the page: table, heat maps, arrows, landmarks, loss curves; the table also as Markdown, arrows as PNG."""
    train, test = shards.load(data, "train"), shards.load(data, "test")
    encoders = {stage: weights.load(folder.path) for stage, folder in runs.items()}
    seconds = sum(summary["seconds"].values())
    hardware = summary["hardware"]
    start = "random weights"
    if (carried := summary["start"]) is not None:
        start = f"the carried encoder ({carried['objective']}, {carried['steps']:,} steps on other synthetic faces)"
    facts = [
        ("images", f"{len(train.ids)} to learn from, {len(test.ids)} to test on"),
        ("stage 1", f"BYOL, {summary['stages']['stage 1']['steps']} steps from {start}"),
        ("stage 2", f"LEAD, {summary['stages']['stage 2']['steps']} steps; two views of an image, centred teacher"),
        ("time", f"{seconds:.0f} s on {hardware['cores']} cores of {hardware['processor']}"),
    ]
    table, arrows = make_table(summary), _arrows(encoders["stage 2"], test)
    sections = [
        Section("Errors", content=table),
        Section("Where else is this part?", content=_heat_maps(encoders["stage 2"], test),
                caption="Similarity of the stage-2 map to the dot in the first face, in eight other faces. Cross: the "
                "best place; ring: where the part truly is."),
        Section("The same landmarks in another face", content=arrows,
                caption="Landmarks of the left face found in the right one by similarity alone; rings: the truth."),
        Section(f"Landmarks from {annotations} annotated faces", content=_landmarks(encoders["stage 2"], train, test,
                annotations), caption="From the best to the worst of the test faces, evenly spaced. Dots: predicted; "
                "rings: true; below: error in % of the distance between the eyes."),
        Section("Losses", content=curves.loss_curves({stage: f.metrics() for stage, f in runs.items()}),
                caption="Stage 2's loss cannot fall below the teacher's entropy."),
    ]  # fmt: skip
    lead = (
        "Two networks learned from faces without a single annotation: stage 1 tells images apart, stage 2 turns its "
        "features into a dense map whose descriptors match between faces."
    )
    report.write(Page("LEAD quickstart", lead, facts, sections), path)
    path.with_suffix(".md").write_text(table.markdown())
    arrows.savefig(path.with_suffix(".png"), dpi=110)


def _chosen(images: shards.Images, count: int) -> tuple[Tensor, Tensor]:
    """Crops and landmarks of evenly spaced images."""
    index = torch.linspace(0, len(images.ids) - 1, count).round().long()
    crops = geometry.crop_images(images.pixels[index], margin=features.MARGIN)
    return crops, geometry.crop_points(torch.from_numpy(images.landmarks)[index], margin=features.MARGIN)


def _heat_maps(encoder: nn.Module, test: shards.Images):
    crops, points = _chosen(test, 9)
    blocks = [block.float() for block in features.extract(encoder, crops, cropped=True)]
    shown = [0, 2, 4]
    return correspondence.heat_maps(
        crops, blocks, 0, points[0, shown], names=[POINTS[i] for i in shown], truth=points[:, shown]
    )


def _arrows(encoder: nn.Module, test: shards.Images):
    count = 12
    index = torch.linspace(0, len(test.ids) - 1, count).round().long()
    matches = match_pairs(
        test.pixels[index], torch.from_numpy(test.landmarks)[index], encoder, Matching(warper=geometry.still())
    )
    crops = geometry.crop_images(test.pixels[index], margin=features.MARGIN)
    return faces.matching_arrows(crops[0::2], crops[1::2], matches.source, matches.cl_diff.predicted, matches.diff)


def _landmarks(encoder: nn.Module, train: shards.Images, test: shards.Images, annotations: int):
    generator = torch.Generator().manual_seed(0)
    chosen = regression.annotations(annotations, len(train.ids), 0)
    blocks = features.extract(encoder, train.pixels[chosen])
    points = features.normalised_landmarks(train)[chosen]
    fitted = regression.fit(blocks, points, READOUT, generator)
    predicted = fitted.predict(features.extract(encoder, test.pixels))
    truth = features.normalised_landmarks(test)
    errors = regression.evaluate(predicted, truth).per_image
    index = faces.spread(errors, 12)
    side = test.pixels.shape[2] - 2 * features.MARGIN
    crops = geometry.crop_images(test.pixels[index], margin=features.MARGIN)
    predicted, truth = (geometry.pixels(p[index], height=side, width=side) for p in (predicted, truth))
    labels = ["best", *[""] * (len(index) - 2), "worst"]
    return faces.landmarks(crops, predicted, truth, errors[index], labels=labels)
