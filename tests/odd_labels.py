"""Labels to write and read back: odd names, missing and occluded points; and what makes two alike."""

import numpy as np
import pytest

from lead_ray.landmarks.labels import LabelledImage, Labels, Mark, Schema

SCHEMA = Schema(
    category="bird",
    names=("left eye", "right eye", "Schnabel, oben"),
    colours=("#ff0000", "#00ff00", "#0000ff"),
    skeleton=((0, 2), (1, 2)),
    normaliser=(0, 1),
)
ODD = ("a b.png", "wäldchen/ü.png", "line\nbreak.png")


def image(file: str, marks: tuple[int, ...] = (2, 2, 2), **more) -> LabelledImage:
    points = np.array([[10.25, 20.5], [30.125, 22.0], [20.75, 31.0]], np.float32)
    shown = np.array(marks, np.uint8)
    points[shown == 0] = np.nan
    return LabelledImage(file=file, size=(64, 48), points=points, marks=shown, **more)


def some(**more) -> Labels:
    images = (image(ODD[0]), image(ODD[1], (2, 1, 0)), image(ODD[2], **more))
    return Labels(schema=SCHEMA, images=images)


def assert_same(got: Labels, wanted: Labels, *, occlusion: bool = True, boxes: bool = True, confidence: bool = True):
    assert [one.file for one in got.images] == [one.file for one in wanted.images]
    for found, expected in zip(got.images, wanted.images, strict=True):
        assert found.size == expected.size
        np.testing.assert_allclose(found.points, expected.points, atol=1e-5)
        marks = expected.marks if occlusion else np.where(expected.marks > 0, Mark.VISIBLE, Mark.MISSING)
        np.testing.assert_array_equal(found.marks, marks)
        assert found.points.dtype == np.float32 and found.marks.dtype == np.uint8
        if boxes:
            assert (found.box is None) == (expected.box is None)
            assert found.box is None or found.box == pytest.approx(expected.box)
        if confidence and expected.confidence is not None:
            np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-6)
        elif confidence:
            assert found.confidence is None
