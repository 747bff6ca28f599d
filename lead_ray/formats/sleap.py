"""SLEAP's .slp: HDF5 with the images as one "video" that lists their files; a pixel's centre is at integers.

What a person labelled are SLEAP's user instances, what a model placed its predicted ones, with their scores. Not held:
colours, normaliser, boxes, and whether a point is occluded. Sizes come from the images, on reading.
Needs h5py (`pip install lead-ray[sleap]`). Source: sleap-io, docs on the .slp format; its format_id 1.2.
"""

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lead_ray.artefacts import atomic
from lead_ray.formats.sizes import Sizes
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema, palette

FORMAT_ID = 1.2
USER, PREDICTED = 0, 1
EDGE = 1  # the other kind of link is a symmetry
FRAMES = [
    ("frame_id", "u8"),
    ("video", "u4"),
    ("frame_idx", "u8"),
    ("instance_id_start", "u8"),
    ("instance_id_end", "u8"),
]
INSTANCES = [
    ("instance_id", "i8"), ("instance_type", "u1"), ("frame_id", "u8"), ("skeleton", "u4"), ("track", "i4"),
    ("from_predicted", "i8"), ("score", "f4"), ("point_id_start", "u8"), ("point_id_end", "u8"),
    ("tracking_score", "f4"),
]  # fmt: skip
POINTS = [("x", "f8"), ("y", "f8"), ("visible", "?"), ("complete", "?")]


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise ValueError("format='sleap' needs h5py: install it with uv pip install h5py") from None


def write(schema: Schema, images: Iterable[LabelledImage], path: Path) -> None:
    h5py = _h5py()
    files: dict[str, int] = {}
    frames: dict[int, list[LabelledImage]] = {}
    for image in images:
        frames.setdefault(files.setdefault(image.file, len(files)), []).append(image)
    tables: dict[str, list] = {"frames": [], "instances": [], "points": [], "pred_points": []}
    for frame, objects in frames.items():
        begin = len(tables["instances"])
        for image in objects:
            _add(tables, image, frame)
        tables["frames"].append((frame, 0, frame, begin, len(tables["instances"])))
    names = list(files)
    first = names[0] if names else ""
    video = {"filename": first, "backend": {"type": "ImageVideo", "filename": first, "filenames": names}}
    types = {"frames": FRAMES, "instances": INSTANCES, "points": POINTS, "pred_points": [*POINTS, ("score", "f8")]}
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        metadata = file.create_group("metadata")
        metadata.attrs["format_id"] = FORMAT_ID
        metadata.attrs["json"] = np.bytes_(json.dumps(_metadata(schema)))
        for name, rows in tables.items():
            file.create_dataset(name, data=np.array(rows, types[name]))
        text = h5py.special_dtype(vlen=bytes)
        for name, rows in (
            ("videos_json", [json.dumps(video).encode()] if names else []),
            ("tracks_json", []),
            ("suggestions_json", []),
        ):
            file.create_dataset(name, data=np.array(rows, object), dtype=text, maxshape=(None,))


def _add(tables: dict[str, list], image: LabelledImage, frame: int) -> None:
    """One object: its instance and points."""
    predicted = image.confidence is not None
    points = tables["pred_points" if predicted else "points"]
    begin = len(points)
    for place, ((x, y), mark) in enumerate(zip(image.points.astype(float), image.marks, strict=True)):
        row = (x, y, mark != Mark.MISSING, False)
        points.append((*row, float(image.confidence[place])) if predicted else row)
    score = float(image.confidence.mean()) if predicted else 0.0
    kind, number = (PREDICTED if predicted else USER), len(tables["instances"])
    tables["instances"].append((number, kind, frame, 0, -1, -1, score, begin, len(points), 0.0))


def _metadata(schema: Schema) -> dict[str, Any]:
    kind: dict[str, Any] = {"py/reduce": [{"py/type": "sleap.skeleton.EdgeType"}, {"py/tuple": [1]}]}
    links = [
        {"edge_insert_idx": place, "key": 0, "source": first, "target": second, "type": {"py/id": 1} if place else kind}
        for place, (first, second) in enumerate(schema.skeleton)
    ]
    skeleton = {
        "directed": True,
        "graph": {"name": schema.category, "num_edges_inserted": len(links)},
        "links": links,
        "multigraph": True,
        "nodes": [{"id": place} for place in range(len(schema.names))],
    }
    empty = {"videos": [], "tracks": [], "suggestions": [], "negative_anchors": {}, "provenance": {}}
    nodes = [{"name": name, "weight": 1.0} for name in schema.names]
    return {"version": "2.0.0", "skeletons": [skeleton], "nodes": nodes, **empty}


def read(path: Path, schema: Schema | None, size_of: Sizes) -> Labels:
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            metadata = json.loads(bytes(file["metadata"].attrs["json"]))
            shift = 0.5 if float(file["metadata"].attrs["format_id"]) < 1.1 else 0.0  # once from the pixel's corner
            tables = {name: file[name][:] for name in ("frames", "instances", "points", "pred_points")}
            videos = [json.loads(text) for text in file["videos_json"][:]]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a .slp file of SLEAP: {error}") from None
    schema = _skeleton(path, metadata)
    images = []
    for frame in tables["frames"]:
        name = _image_file(path, videos[int(frame["video"])], int(frame["frame_idx"]))
        objects = tables["instances"][int(frame["instance_id_start"]) : int(frame["instance_id_end"])]
        given = [one for one in objects if one["instance_type"] == USER]
        for one in given or objects:  # a person's corrections stand for the predictions that they correct
            images.append(_image(one, tables, shift, name, size_of(name)))
    return Labels(schema=schema, images=tuple(images))


def _skeleton(path: Path, metadata: dict[str, Any]) -> Schema:
    """Of the points of every instance, in their order."""
    if len(metadata["skeletons"]) != 1:
        raise ValueError(f"{path}: holds {len(metadata['skeletons'])} skeletons; one a file is wanted")
    skeleton = metadata["skeletons"][0]
    nodes = [node["id"] for node in skeleton["nodes"]]
    names = tuple(metadata["nodes"][node]["name"] for node in nodes)
    links, kinds = [], []
    for link in skeleton["links"]:
        if "py/reduce" in link.get("type", {}):
            kinds.append(link["type"]["py/reduce"][1]["py/tuple"][0])  # later links refer to it by its number
        reference = link.get("type", {}).get("py/id", len(kinds))
        if not kinds or kinds[reference - 1] == EDGE:
            links.append(
                (link.get("edge_insert_idx", len(links)), nodes.index(link["source"]), nodes.index(link["target"]))
            )
    return Schema(
        category=skeleton["graph"].get("name") or "object",
        names=names,
        colours=palette(len(names)),
        skeleton=tuple((first, second) for _, first, second in sorted(links)),
    )


def _image_file(path: Path, video: dict[str, Any], frame: int) -> str:
    named = video.get("backend", video)
    files = named.get("filenames") or named.get("image_filenames") or named.get("filename", video.get("filename"))
    if not isinstance(files, list):
        raise ValueError(f"{path}: labels frames of a video ({files}); export its frames as images first")
    return files[frame].replace("\\", "/")


def _image(one: Any, tables: dict, shift: float, name: str, size: tuple[int, int]) -> LabelledImage:
    predicted = one["instance_type"] == PREDICTED
    rows = tables["pred_points" if predicted else "points"][int(one["point_id_start"]) : int(one["point_id_end"])]
    points = np.stack([rows["x"], rows["y"]], axis=1).astype(np.float32) - np.float32(shift)
    seen = rows["visible"] & np.isfinite(points).all(1)
    return LabelledImage(
        file=name,
        size=size,
        points=np.where(seen[:, None], points, np.nan).astype(np.float32),
        marks=np.where(seen, Mark.VISIBLE, Mark.MISSING).astype(np.uint8),
        confidence=rows["score"].astype(np.float32) if predicted else None,
    )
