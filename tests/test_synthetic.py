"""Synthetic faces: determinism, true landmarks, CelebA's folder layout."""

import dataclasses
import io
import json
import os
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lead_ray.data import _face, _paint, _render, synthetic

SIZES = {"images": 24, "identities": 8, "seed": 3, "mafl_train": 5, "mafl_test": 2}
numbers = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("faces") / "set", **SIZES)


def read(path, skip=0):
    return [line.split() for line in path.read_text().splitlines()[skip:]]


def test_render_is_a_pure_function_and_has_the_stated_form():
    first, again = (synthetic.render(seed=1, identity=2, index=3) for _ in range(2))
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    forms = {
        "pixels": (np.uint8, (218, 178, 3)),
        "box": (np.float32, (4,)),
        "landmarks_5": (np.float32, (5, 2)),
        "landmarks_68": (np.float32, (68, 2)),
        "visible_5": (bool, (5,)),
        "visible_68": (bool, (68,)),
    }
    for name, (kind, shape) in forms.items():
        assert (getattr(first, name).dtype, getattr(first, name).shape) == (kind, shape), name
    assert first.identity == 2


def test_index_changes_the_image_and_not_the_person():
    faces = [synthetic.render(seed=1, identity=2, index=index) for index in range(2)]
    assert np.abs(faces[0].pixels.astype(int) - faces[1].pixels).mean() > 5
    assert _face.draw_identity(seed=1, identity=2) == _face.draw_identity(seed=1, identity=2)
    views = [_render.pose(seed=1, identity=2, index=index) for index in range(2)]
    assert views[0][0] == views[1][0], "hair, skin and shape belong to the identity alone"
    assert views[0][1] != views[1][1]
    assert _face.draw_identity(seed=1, identity=3) != views[0][0] != _face.draw_identity(seed=2, identity=2)


def test_a_frontal_neutral_face_is_symmetric():
    who = _face.draw_identity(seed=0, identity=0)
    how = dataclasses.replace(
        _face.draw_nuisance(seed=0, identity=0, index=0), yaw=0.0, pitch=0.0, roll=0.0, scale=1.0, shift=(0.0, 0.0)
    )
    flat = _face.landmarks(_face.curves(who, how))
    points = _render.on_surface(flat, who, how)
    view = _paint.pose(how, points)
    seen = view(points)
    midline = [8, 27, 28, 29, 30, 33, 51, 57]
    assert seen[midline, 0] == pytest.approx(np.full(8, 89.0), abs=1e-9)
    for left, right in ((0, 16), (17, 26), (36, 45), (39, 42), (31, 35), (48, 54), (60, 64)):
        assert seen[left] * [-1, 1] + [178, 0] == pytest.approx(seen[right], abs=1e-9)
    assert _render.unoccluded(points, view, who, how)[17:].all()


def test_yaw_hides_the_far_jaw_and_keeps_the_near_one():
    who = _face.draw_identity(seed=0, identity=0)
    how = dataclasses.replace(_face.draw_nuisance(seed=0, identity=0, index=0), yaw=np.radians(35), pitch=0.0, roll=0.0)
    points = _render.on_surface(_face.landmarks(_face.curves(who, how)), who, how)
    view = _paint.pose(how, points)
    visible = _render.unoccluded(points, view, who, how)
    seen = view(points)
    assert seen[30, 0] > synthetic.five_points(seen)[:2, 0].mean(), "the nose turns to the right of the image"
    assert visible[:8].all() and not visible[14:17].any() and visible[30]


@settings(max_examples=60, deadline=None)
@given(seed=numbers, identity=numbers, index=st.integers(0, 10_000))
def test_landmarks_of_any_face(seed, identity, index):
    _, how, lines, view = _render.pose(seed=seed, identity=identity, index=index)
    points = view(_face.landmarks(lines))
    five = synthetic.five_points(points)
    assert np.isfinite(points).all()
    low, high = points.min(0), points.max(0)
    crop_low, crop_high = np.array([20, 20]) * 178 / 136 + [0, 30], np.array([115, 115]) * 178 / 136 + [0, 30]
    assert (low >= crop_low).all() and (high <= crop_high).all(), "outside CelebA's 96-pixel crop"
    degrees = np.degrees([how.yaw, how.pitch, how.roll])
    assert (np.abs(degrees) <= [40, 20, 20]).all()
    assert five[0, 0] + 10 < five[1, 0] and five[3, 0] < five[4, 0]  # left is left
    assert five[:2, 1].max() < five[3:, 1].min() and points[8, 1] > five[2, 1]  # eyes, mouth; nose, chin
    for eye, contour in ((five[0], points[36:42]), (five[1], points[42:48])):
        assert eye == pytest.approx(contour.mean(0), abs=1e-9)


@settings(max_examples=5, deadline=None)
@given(seed=numbers, identity=numbers)
def test_rendered_arrays_agree(seed, identity):
    face = synthetic.render(seed=seed, identity=identity, index=0)
    assert face.landmarks_5 == pytest.approx(synthetic.five_points(face.landmarks_68), abs=1e-4)
    assert face.visible_5[2] == face.visible_68[30] and face.visible_5[3] == face.visible_68[48]
    left, top, width, height = face.box
    inside = face.landmarks_5[face.visible_5]
    assert (inside >= [left - 2, top - 2]).all() and (inside <= [left + width + 2, top + height + 2]).all()
    assert face.pixels.std() > 10


def test_eyes_are_drawn_where_the_landmarks_say():
    """The pupil is darker than the sclera beside it, on average over open-eyed frontal faces."""
    gaps = []
    for identity in range(40):
        who, how, lines, view = _render.pose(seed=5, identity=identity, index=0)
        if how.closure > 0.5 or abs(how.yaw) > 0.35 or who.glasses == "dark" or how.blur > 0.6:
            continue
        pixels = synthetic.render(seed=5, identity=identity, index=0).pixels.mean(-1)
        column, row = np.rint(view(lines["left_iris"])[0]).astype(int)
        cheek_x, cheek_y = np.rint(view(lines["left_lower_lid"])[6] + [0, 12]).astype(int)
        gaps.append(pixels[cheek_y, cheek_x] - pixels[row, column])
    assert len(gaps) > 8 and np.median(gaps) > 15


def test_layout_lists_agree(layout):
    images = sorted(path.name for path in (layout / "Img/img_align_celeba").iterdir())
    assert images == [f"{number:06d}.jpg" for number in range(1, 25)]
    for name, columns in (
        ("list_landmarks_align_celeba", 11),
        ("list_landmarks_68", 1 + 3 * 68),
        ("list_bbox_celeba", 5),
    ):
        path = layout / f"Anno/{name}.txt"
        assert read(path)[0] == ["24"]
        assert [row[0] for row in read(path, 2)] == images
        assert {len(row) for row in read(path, 2)} == {columns}
    assert read(layout / "Anno/list_landmarks_align_celeba.txt")[1][:4] == [
        "lefteye_x",
        "lefteye_y",
        "righteye_x",
        "righteye_y",
    ]
    assert [row[0] for row in read(layout / "Anno/identity_CelebA.txt")] == images
    assert [row[0] for row in read(layout / "Eval/list_eval_partition.txt")] == images
    assert not (layout / "synthetic.part.json").exists()


def test_partitions_split_no_identity_and_mafl_keeps_to_them(layout):
    partition = dict(read(layout / "Eval/list_eval_partition.txt"))
    identity = dict(read(layout / "Anno/identity_CelebA.txt"))
    people = [{identity[name] for name in partition if partition[name] == part} for part in "012"]
    assert [len(group) for group in people] == [6, 1, 1] and len(set.union(*people)) == 8
    training, testing = ([row[0] for row in read(layout / f"MAFL/{name}.txt")] for name in ("training", "testing"))
    assert (len(training), len(testing)) == (5, 2)
    assert {partition[name] for name in training} == {"0"} and {partition[name] for name in testing} == {"2"}


def test_files_hold_what_render_returns(layout):
    face = synthetic.render(seed=3, identity=2, index=1)  # image 10 of 8 people in turn
    stored = np.asarray(Image.open(io.BytesIO((layout / "Img/img_align_celeba/000010.jpg").read_bytes())))
    np.testing.assert_array_equal(stored, face.pixels)
    row = read(layout / "Anno/list_landmarks_align_celeba.txt", 2)[9]
    assert np.array(row[1:], float) == pytest.approx(face.landmarks_5.ravel(), abs=0.0051)
    row = read(layout / "Anno/list_landmarks_68.txt", 2)[9]
    assert [int(seen) for seen in row[-68:]] == face.visible_68.astype(int).tolist()


def test_second_call_is_a_no_op_and_other_settings_clash(layout):
    image = layout / "Img/img_align_celeba/000001.jpg"
    before = image.stat().st_mtime_ns
    assert synthetic.write(layout, **SIZES) == layout
    assert image.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match=r"seed=3, now 4.*delete that folder"):
        synthetic.write(layout, **(SIZES | {"seed": 4}))


def test_interrupted_set_is_drawn_again(tmp_path):
    sizes = {"images": 4, "identities": 3, "seed": 0, "mafl_train": 1, "mafl_test": 1}
    folder = tmp_path / "Img/img_align_celeba"
    folder.mkdir(parents=True)
    (tmp_path / "Anno").mkdir()
    (folder / "999999.jpg").write_bytes(b"stale")
    (tmp_path / "synthetic.part.json").write_text("{}")
    synthetic.write(tmp_path, **sizes)
    assert len(list(folder.iterdir())) == 4
    assert json.loads((tmp_path / "synthetic.json").read_text())["images"] == 4


def test_processes_draw_the_same_set(layout, tmp_path):
    synthetic.write(tmp_path, **SIZES, workers=2)
    files = [path.relative_to(layout) for path in layout.rglob("*") if path.is_file()]
    assert len(files) == SIZES["images"] + 8
    assert all((tmp_path / file).read_bytes() == (layout / file).read_bytes() for file in files)


def die(task, *, folder, seed):
    """In place of _store: a drawing process that is killed."""
    os._exit(1)


def test_a_process_that_dies_stops_the_drawing(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_store", die)
    with pytest.raises(BrokenProcessPool):
        synthetic.write(tmp_path, **SIZES, workers=2)
    assert not (tmp_path / "synthetic.json").exists()


def test_a_real_data_set_is_never_overwritten(tmp_path):
    (tmp_path / "Anno").mkdir()
    with pytest.raises(FileExistsError, match="not synthetic"):
        synthetic.write(tmp_path, **SIZES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "images must be >= 1, got 0"),
        ({"workers": 0}, "workers must be >= 1"),
        ({"images": 7}, "images=7 must be >= identities=8"),
        ({"mafl_test": 4}, r"mafl_test must be in 0\.\.3"),
        ({"identities": 2}, "at least 3 identities"),
    ],
)
def test_impossible_sizes_name_the_field(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        synthetic.write(tmp_path / "set", **(SIZES | change))
    assert not (tmp_path / "set").exists()
