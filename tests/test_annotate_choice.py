"""Which image is offered next, and what happens beside the page."""

import queue
from contextlib import closing, contextmanager
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from proposers import MeanShape

from lead_ray.annotating.choose import covering, distances, farthest
from lead_ray.annotating.curve import Curve
from lead_ray.annotating.embeddings import Embeddings
from lead_ray.annotating.engine import Engine
from lead_ray.annotating.folder import find, key
from lead_ray.annotating.offers import Offers
from lead_ray.annotating.project import Project


def unit(vectors):
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def around(seed, count=40, dim=5):
    return unit(np.random.default_rng(seed).normal(size=(count, dim)))


NONE = np.empty((0, 2), np.float32)


def test_one_of_each_group_is_chosen_the_largest_group_first():
    groups = unit([[1, 0.0], [1, 0.01], [1, -0.01], [0, 1], [0.01, 1], [-1, -1]])
    assert covering(groups, NONE, 3).tolist() == [1, 3, 5]
    assert covering(groups, groups[:1], 2).tolist() == [3, 5]  # the first group is labelled
    weights = np.array([1, 1, 1, 1, 1, 9], np.float32)
    assert covering(groups, groups[:1], 1, weights=weights).tolist() == [5]
    assert farthest(groups, groups[:1], 2).tolist() == [5, 3]


def total(vectors, labelled, chosen):
    """Sum of the distances to the nearest of labelled and chosen images, in a plain loop."""
    near = [*labelled, *(vectors[place] for place in chosen)]
    return sum(min(1 - float(each @ other) for other in near) for each in vectors)


@given(st.integers(0, 50))
@settings(max_examples=15)
def test_every_choice_is_the_best_single_one_and_all_of_them_are_near_the_best_set(seed):
    vectors, labelled = around(seed, 12), around(seed + 100, 2)
    chosen = covering(vectors, labelled, 3).tolist()
    for count in range(3):
        sums = [total(vectors, labelled, [*chosen[:count], other]) for other in range(len(vectors))]
        assert sums[chosen[count]] == pytest.approx(min(sums), abs=1e-4)
    before = total(vectors, labelled, [])
    best = min(total(vectors, labelled, places) for places in combinations(range(len(vectors)), 3))
    assert before - total(vectors, labelled, chosen) >= (1 - 1 / np.e) * (before - best) - 1e-4


@given(st.integers(0, 50), st.integers(0, 60))
@settings(max_examples=20)
def test_choices_are_different_images_and_no_more_than_there_are(seed, count):
    vectors = around(seed)
    for chosen in (covering(vectors, vectors[:0], count), farthest(vectors, vectors[:0], count)):
        assert len(chosen) == min(count, 40) == len(set(chosen.tolist()))


def test_distances_are_one_minus_cosine():
    assert distances(unit([[1, 0]]), unit([[0, 1], [1, 0], [-1, 0]]))[0].tolist() == [1, 0, 2]


def test_embeddings_survive_a_restart_whatever_the_names(tmp_path):
    names = ["a b.jpg", "new\nline.jpg", "ü.jpg", "bad\udcff.jpg"]
    first = Embeddings(tmp_path)
    first.add(names, around(0, 4))
    first.flush()
    second = Embeddings(tmp_path)
    assert np.abs(second.of(names[::-1]) - around(0, 4)[::-1]).max() < 1e-3
    assert "a" not in second and "bad\udcff.jpg" in second


def test_the_curve_keeps_the_last_error_of_a_count_and_begins_anew_with_other_points(tmp_path):
    curve = Curve(tmp_path / "curve.json")
    for images, error in ((2, 9.0), (3, 6.0), (3, 5.0)):
        curve.add({"points": 1}, images=images, error=error, standard_error=1.0)
    again = Curve(tmp_path / "curve.json")
    assert [(each["images"], each["error"]) for each in again.points()] == [(2, 9.0), (3, 5.0)]
    again.add({"points": 2}, images=4, error=1.0, standard_error=1.0)
    assert [each["images"] for each in again.points()] == [4]


SCHEMA = {"points": [{"id": -1, "name": "eye", "colour": "#ff0000"}, {"id": -2, "name": "nose", "colour": "#00ff00"}]}


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        shade = 20 * number
        Image.new("RGB", (20, 10), (shade, 255 - shade, 60)).save(folder / f"{number:02d}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    with closing(Project(tmp_path / "project", folder)) as project:
        project.edit_schema(SCHEMA, base=0)
        yield project


class Background:
    """A running engine, and what it has published."""

    def __init__(self, project):
        self.events: queue.Queue = queue.Queue()
        self.proposer = MeanShape()
        embeddings = Embeddings(project.path / "features")
        self.offers = Offers(project, embeddings)
        self.curve = Curve(project.path / "curve.json")
        self.engine = Engine(project, lambda: self.proposer, embeddings, self.offers, self.curve, self.events.put)

    def until(self, kind, true=lambda event: True):
        while True:
            event = self.events.get(timeout=60)
            if event["kind"] == kind and true(event):
                return event


@contextmanager
def background(project):
    running = Background(project)
    running.engine.start()
    try:
        yield running
    finally:
        running.engine.stop()
        running.engine.join(timeout=60)
    assert not running.engine.is_alive()


def ready(event):
    return event["status"]["state"] == "ready"


def label(project, name, x=4, y=5):
    points = [{"id": 0, "mark": 2, "x": x, "y": y}, {"id": 1, "mark": 1, "x": x + 1, "y": y}]
    project.edit_points(name, points, size=(20, 10))


def test_the_background_proposes_measures_and_offers(project):
    with background(project) as running:
        assert running.until("broken")["reason"].startswith("cannot be read")
        status = running.until("status", ready)["status"]
        assert status["read"] == status["images"] == 13 and status["fitted"] == 0
        assert running.engine.show("03.png") is None  # nothing is labelled yet
        label(project, "00.png")
        running.engine.refit()
        event = running.until("proposals", lambda event: event["image"] == key("03.png"))
        assert [(each["id"], each["x"], each["y"]) for each in event["proposals"]] == [(0, 4, 5), (1, 5, 5)]
        label(project, "11.png", x=6)
        running.engine.refit()
        assert running.until("curve")["curve"] == [{"images": 2, "error": 15.0, "standard_error": 2.0}]
        event = running.until("proposals", lambda event: event["image"] == key("03.png"))
        assert event["proposals"][0]["x"] == 5  # the mean of both
        assert running.engine.show("03.png") == event["proposals"]
        running.until("status", lambda event: ready(event) and event["status"]["fitted"] == 2)
        offered = running.offers.next("teaches")
        assert offered.name in {f"{number:02d}.png" for number in range(4, 8)}  # far from both, near many
        worst = running.offers.next("worst")
        assert worst.reason == "the read-outs disagree" and running.offers.free(worst.name)


def test_a_box_says_where_proposals_are_looked_for(project):
    label(project, "00.png", x=3.5, y=4.5)  # at (0.2, 0.5) of the image's 20x10 pixels
    with background(project) as running:
        running.until("status", ready)
        running.engine.show("03.png")
        event = running.until("proposals", lambda event: event["image"] == key("03.png"))
        assert (event["proposals"][0]["x"], event["proposals"][0]["y"]) == (3.5, 4.5)
        project.edit_box("03.png", [10, 0, 10, 4], size=(20, 10))
        running.engine.reframe("03.png", labelled=False)
        event = running.until("proposals", lambda event: event["image"] == key("03.png"))
        assert (event["proposals"][0]["x"], event["proposals"][0]["y"]) == (11.5, 1.5)  # (0.2, 0.5) of the box
        project.edit_box("00.png", [0, 0, 8, 10], size=(20, 10))  # what is learned from
        running.engine.reframe("00.png", labelled=True)
        event = running.until("proposals", lambda event: event["image"] == key("03.png"))
        assert (event["proposals"][0]["x"], event["proposals"][0]["y"]) == (14.5, 1.5)  # 4 of 8 pixels is a half
        assert running.proposer.fitted == [1, 1]


def test_a_kept_model_is_opened_behind_the_page(tmp_path):
    """Embeddings are known once the model is: until then all images are left to read."""
    kept = Embeddings(tmp_path / "a")
    kept.add(["x.png"], np.ones((1, 2), np.float32))
    kept.flush()
    later = Embeddings()
    assert "x.png" not in later
    later.open(tmp_path / "a")
    assert "x.png" in later


def test_every_order_ends_with_every_image_that_can_be_labelled(project):
    project.skip("05.png", True)
    with background(project) as running:
        running.until("status", ready)
    for order in ("teaches", "worst", "random", "folder"):
        with project.locked() as state:
            state.said.clear()
        seen, last = [], None
        while (offer := running.offers.next(order, after=last)) is not None:
            seen.append(last := offer.name)
            state.said[last] = 2
        assert sorted(seen) == [f"{number:02d}.png" for number in range(12) if number != 5]
    assert seen == sorted(seen)  # the last order was the folder's


def test_the_last_image_can_be_labelled_too(project):
    for number in range(12):
        label(project, f"{number:02d}.png")
    with background(project) as running:
        status = running.until("status", lambda event: ready(event) and event["status"]["fitted"] == 12)["status"]
        assert status["read"] == 13
        assert running.offers.next("teaches") is None


def test_a_model_that_fails_leaves_the_page_working(project, capsys):
    running = Background(project)
    running.proposer.fit = lambda labels: 1 / 0
    label(project, "00.png")
    running.engine.start()
    running.engine.join(timeout=60)
    assert "no more proposals: division by zero" in running.engine.status()["state"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert running.offers.next("random") is not None


def test_a_folder_is_listed_whatever_its_names(tmp_path):
    names = ["b.JPG", "a b.png", "new\nline.webp", "sub/ü.tif", "sub/.hidden.png", ".git/x.png", "notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pictures = find(tmp_path)
    assert pictures.names == ("a b.png", "b.JPG", "new\nline.webp", "sub/ü.tif")
    assert [pictures.names[pictures.keys[key(name)]] for name in pictures.names] == list(pictures.names)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        find(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find(tmp_path / "nowhere")
