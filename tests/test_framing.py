"""Photograph -> network input and back: nothing is cut, points map back exactly."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from lead_ray.data.crops import BadImage
from lead_ray.landmarks.framing import Frame, Framing, cut

sides = st.integers(1, 3000)


@st.composite
def framed(draw):
    """A size, a box or none, and its frame."""
    size = draw(sides), draw(sides)
    box = None
    if draw(st.booleans()):
        width, height = (draw(st.floats(0.5, 1.5 * side)) for side in size)
        left, top = (
            draw(st.floats(-0.9 * extent, 0.99 * side)) for side, extent in zip(size, (width, height), strict=True)
        )
        assume(left + width > 0 and top + height > 0)
        box = left, top, width, height
    framing = Framing(side=draw(st.sampled_from([70, 96, 160])), box_factor=draw(st.floats(1, 1.5)))
    try:
        return size, box, framing.frame(size, box)
    except BadImage as error:
        assert "far larger" in str(error)
        assume(False)


@given(framed(), st.lists(st.tuples(st.floats(-100, 3100), st.floats(-100, 3100)), min_size=1, max_size=4))
def test_points_map_back_exactly(case, points):
    _, _, frame = case
    given_points = np.array(points)
    back = frame.to_photograph(frame.to_input(given_points))
    np.testing.assert_allclose(back, given_points, rtol=0, atol=1e-8)


@given(framed())
def test_nothing_of_the_object_is_cut(case):
    size, box, frame = case
    left, top, width, height = box or (0, 0, *size)
    corners = np.array([[left, top], [left + width, top + height]]) - 0.5  # pixel centres are at integers
    inside = frame.to_input(corners)
    assert inside.min() >= -0.5 - 1e-6 and inside.max() <= frame.side - 0.5 + 1e-6


@given(framed())
def test_every_frame_can_be_cut(case):
    size, _, frame = case
    assume(max(size) < 800)
    assert cut(Image.new("RGB", size, (10, 20, 30)), frame).shape == (frame.side, frame.side, 3)


@pytest.mark.parametrize(
    ("size", "box"),
    [((400, 300), None), ((300, 400), (80.5, 61.25, 150.0, 90.0)), ((301, 200), (-40.0, 90.0, 130.0, 160.0))],
)
def test_a_spot_is_shown_where_points_say(size, box):
    """A Gaussian's centre of mass in the input is where to_input() puts its centre."""
    frame = Framing(box_factor=1.2).frame(size, box)
    centre = np.array([120.0, 130.0]) if box is not None and box[0] > 0 else np.array([60.0, 150.0])
    rows, columns = np.mgrid[: size[1], : size[0]]
    spot = np.exp(-((columns - centre[0]) ** 2 + (rows - centre[1]) ** 2) / (2 * 9.0**2))
    image = Image.fromarray((255 * spot).round().astype(np.uint8)).convert("RGB")
    seen = cut(image, frame)[..., 0].astype(float)
    down, across = np.mgrid[: frame.side, : frame.side]
    mass = np.array([(seen * across).sum(), (seen * down).sum()]) / seen.sum()
    np.testing.assert_allclose(mass, frame.to_input(centre), atol=0.05)


def test_letterbox_by_hand():
    frame = Framing(side=96).frame((192, 96))
    assert frame == Frame(0.0, -48.0, 192.0, 96)
    pixels = np.zeros((96, 192, 3), np.uint8)
    pixels[0], pixels[-1] = 200, 100  # the edges that are repeated
    seen = cut(Image.fromarray(pixels), frame)
    assert (seen[:24] == seen[24]).all() and (seen[72:] == seen[71]).all()
    assert seen[24, 0, 0] > 40 and seen[71, 0, 0] > 20 and not seen[30:66].any()
    np.testing.assert_allclose(frame.to_input(np.array([[0.0, 0.0]])), [[-0.25, 23.75]])


def test_a_panorama_takes_no_more_memory_than_itself():
    """Padding before shrinking would make a square of 60,000 pixels a side."""
    seen = cut(Image.new("RGB", (60_000, 2), "white"), Framing().frame((60_000, 2)))
    assert seen.shape == (96, 96, 3) and (seen == 255).all()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 0, 5), "has no area"),
        ((0, 0, float("nan"), 5), "has no area"),
        ((50, 0, 5, 5), "lies outside its 40x30 pixels"),
        ((0, 0, 1000, 5), "far larger than its 40x30 pixels"),
    ],
)
def test_boxes_that_are_none(box, message):
    with pytest.raises(BadImage, match=message):
        Framing().frame((40, 30), tuple(map(float, box)))


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match="side must be 32 to 1024 pixels, got 8"):
        Framing(side=8)
    with pytest.raises(ValueError, match="box_factor must be in"):
        Framing(box_factor=9.0)
