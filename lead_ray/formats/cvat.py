"""CVAT for images 1.1 (XML): an object is a `skeleton` of `points`, measured from the image's corner.

Reads besides: one `points` element a landmark, named by its label, and one `points` element with all landmarks.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from lead_ray.artefacts import atomic
from lead_ray.formats.sizes import Sizes
from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema, palette


def write(schema: Schema, images: Iterable[LabelledImage], path: Path) -> None:
    files = dict.fromkeys(image.file for image in images)
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        file.write(ElementTree.tostring(_meta(schema, len(files)), encoding="unicode") + "\n")
        element, number = None, -1
        for image in images:
            if element is None or element.get("name") != image.file:
                _close(file, element)
                number += 1
                sides = {"width": str(image.size[0]), "height": str(image.size[1])}
                element = Element("image", {"id": str(number), "name": _legal(image.file), **sides})
            _add(element, schema, image)
        _close(file, element)
        file.write("</annotations>\n")


def _close(file, element: Element | None) -> None:
    if element is not None:
        file.write(ElementTree.tostring(element, encoding="unicode") + "\n")


def _legal(text: str) -> str:
    """Raises: ValueError for what no XML file may hold."""
    if any((ord(letter) < 32 and letter not in "\t\n\r") or 0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise ValueError(f"XML cannot hold the name {text!r}: rename it, or use another format")
    return text


def _meta(schema: Schema, count: int) -> Element:
    meta = Element("meta")
    task = SubElement(meta, "task")
    for name, value in (("name", "lead_ray"), ("size", str(count)), ("mode", "annotation")):
        SubElement(task, name).text = value
    labels = SubElement(task, "labels")
    whole = SubElement(labels, "label")
    for name, value in (("name", schema.category), ("type", "skeleton"), ("attributes", ""), ("svg", _svg(schema))):
        SubElement(whole, name).text = _legal(value)
    for name, colour in zip(schema.names, schema.colours, strict=True):
        label = SubElement(labels, "label")
        parts = {"name": name, "color": colour, "type": "points", "attributes": "", "parent": schema.category}
        for part, value in parts.items():
            SubElement(label, part).text = _legal(value)
    return meta


def _svg(schema: Schema) -> str:
    """CVAT's template of a skeleton; landmarks on a circle, in % of its side."""
    count, parts = len(schema.names), []
    turns = (2 * math.pi * place / count for place in range(count))
    at = [(round(50 + 40 * math.sin(turn), 2), round(50 - 40 * math.cos(turn), 2)) for turn in turns]
    for first, second in schema.skeleton:
        (x1, y1), (x2, y2) = at[first], at[second]
        ends = {"data-type": "edge", "data-node-from": str(first + 1), "data-node-to": str(second + 1)}
        parts.append(Element("line", {"x1": str(x1), "y1": str(y1), "x2": str(x2), "y2": str(y2), **ends}))
    for place, (name, (x, y)) in enumerate(zip(schema.names, at, strict=True), start=1):
        node = {"data-type": "element node", "data-element-id": str(place), "data-node-id": str(place)}
        parts.append(Element("circle", {"r": "0.75", "cx": str(x), "cy": str(y), **node, "data-label-name": name}))
    return "".join(ElementTree.tostring(part, encoding="unicode") for part in parts)


def _add(element: Element, schema: Schema, image: LabelledImage) -> None:
    source = "manual" if image.confidence is None else "auto"
    if image.box is not None:
        left, top, width, height = image.box
        corners = {"xtl": left, "ytl": top, "xbr": left + width, "ybr": top + height}
        style = {"label": _legal(schema.category), "source": source, "occluded": "0"}
        SubElement(element, "box", {**style, **{name: str(value) for name, value in corners.items()}, "z_order": "0"})
    skeleton = SubElement(element, "skeleton", {"label": schema.category, "source": source, "z_order": "0"})
    for name, (x, y), mark in zip(schema.names, image.points.astype(float), image.marks, strict=True):
        place = "0.0,0.0" if mark == Mark.MISSING else f"{x + 0.5},{y + 0.5}"
        state = {"outside": str(int(mark == Mark.MISSING)), "occluded": str(int(mark == Mark.OCCLUDED))}
        SubElement(skeleton, "points", {"label": name, "source": source, **state, "points": place})


def read(path: Path, schema: Schema | None, size_of: Sizes) -> Labels:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from None
    if root.tag != "annotations" or root.find("track") is not None:
        raise ValueError(f"{path}: <annotations> with <image>s are wanted: export as 'CVAT for images 1.1'")
    found = schema if schema is not None else _schema(path, root)
    images = [labelled for element in root.findall("image") for labelled in _objects(path, element, found, size_of)]
    return Labels(schema=found, images=tuple(images))


def _schema(path: Path, root: Element) -> Schema:
    """From the labels' list; else, from the labels that points have."""
    listed = [{part.tag: part.text or "" for part in label} for label in root.iter("label")]
    parts = [label for label in listed if label.get("parent")]
    if parents := dict.fromkeys(label["parent"] for label in parts):
        category = next(iter(parents))
        if len(parents) > 1:
            raise ValueError(f"{path}: skeletons {list(parents)}; keep one a file")
        names = [label["name"] for label in parts]
        colours = [label.get("color") or usual for label, usual in zip(parts, palette(len(parts)), strict=True)]
        drawing = next((label.get("svg", "") for label in listed if label["name"] == category), "")
        return Schema(category=category, names=tuple(names), colours=tuple(colours), skeleton=_edges(drawing, names))
    names = list(dict.fromkeys(points.get("label", "") for points in root.iter("points")))
    counts = {len(points.get("points", "").split(";")) for points in root.iter("points")}
    if not names:
        raise ValueError(f"{path}: no points in any image")
    if len(names) == 1 and counts != {1}:
        return Schema(
            category=names[0], names=tuple(f"point {i + 1}" for i in range(max(counts))), colours=palette(max(counts))
        )
    return Schema(names=tuple(names), colours=palette(len(names)))


def _edges(drawing: str, names: list[str]) -> tuple[tuple[int, int], ...]:
    """Of a skeleton's template; nodes are known by their labels' names."""
    try:
        svg = ElementTree.fromstring(f"<svg>{drawing}</svg>")
    except ElementTree.ParseError:
        return ()
    named = {node.get("data-node-id"): node.get("data-label-name") for node in svg.iter("circle")}
    ends = [(named.get(line.get("data-node-from")), named.get(line.get("data-node-to"))) for line in svg.iter("line")]
    return tuple((names.index(a), names.index(b)) for a, b in ends if a in names and b in names)


def _objects(path: Path, element: Element, schema: Schema, size_of: Sizes) -> list[LabelledImage]:
    name = element.get("name", "")
    where = f"{path}: image {name!r}"
    sides = element.get("width"), element.get("height")
    size = tuple(int(side) for side in sides) if all(sides) else size_of(name)
    objects = [list(skeleton.findall("points")) for skeleton in element.findall("skeleton")]
    if loose := element.findall("points"):
        objects.append(loose)
    boxes: list = [_box(where, box) for box in element.findall("box")]
    if len(boxes) not in (0, len(objects)):
        raise ValueError(f"{where}: {len(boxes)} boxes and {len(objects)} sets of points do not pair up")
    boxes = boxes or [None] * len(objects)
    return [_object(where, name, size, box, points, schema) for box, points in zip(boxes, objects, strict=True)]


def _box(where: str, box: Element) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(box.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    except (KeyError, ValueError):
        raise ValueError(f"{where}: a box needs numbers xtl, ytl, xbr, ybr, has {box.attrib}") from None
    return left, top, right - left, bottom - top


def _object(where: str, name: str, size: tuple, box: tuple | None, elements: list, schema: Schema) -> LabelledImage:
    points = np.full((len(schema.names), 2), np.nan, np.float32)
    marks = np.zeros(len(schema.names), np.uint8)
    for element in elements:
        try:
            found = [[float(part) for part in pair.split(",")] for pair in element.get("points", "").split(";")]
            places = [schema.names.index(element.get("label"))] if len(found) == 1 else range(len(found))
            for place, (x, y) in zip(places, found, strict=True):
                if element.get("outside") != "1":
                    points[place] = x - 0.5, y - 0.5
                    marks[place] = Mark.OCCLUDED if element.get("occluded") == "1" else Mark.VISIBLE
        except (ValueError, IndexError):
            raise ValueError(f"{where}: {element.attrib} does not fit the landmarks {list(schema.names)}") from None
    return LabelledImage(file=name, size=size, points=points, marks=marks, box=box)
