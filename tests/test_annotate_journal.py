"""The journal and the state that it replays to: no interleaving of edits and no kill loses or changes what was
acknowledged."""

import json
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lead_ray.annotating.journal import Journal
from lead_ray.annotating.project import Conflict, Project, held
from lead_ray.annotating.state import State
from lead_ray.landmarks.labels import Mark

SCHEMA = {
    "category": "face",
    "points": [{"id": -1, "name": "eye", "colour": "#ff0000"}, {"id": -2, "name": "nose", "colour": "#00ff00"}],
    "skeleton": [[-1, -2]],
    "normaliser": [-1, -2],
}
NAMES = ("a b.jpg", "new\nline.jpg", "ü/ñ.jpg")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def no_syncing(monkeypatch):
    """What a kill leaves is written out here byte by byte; waiting for the disk would only take time."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def opened(folder, images):
    return closing(Project(folder, images))


@pytest.fixture
def project(tmp_path, images):
    with opened(tmp_path / "project", images) as project:
        project.edit_schema(SCHEMA, base=0)
        yield project


def put(project, point, x, *, image="a b.jpg", mark=2, request=None):
    return project.edit_points(image, [{"id": point, "mark": mark, "x": x, "y": 1}], size=(40, 30), request=request)


edits = st.one_of(
    st.tuples(
        st.just("points"),
        st.sampled_from(NAMES),
        st.integers(0, 1),
        st.sampled_from([None, 0, 1, 2]),
        st.floats(-0.5, 29.5, allow_subnormal=False),
    ),
    st.tuples(st.just("skip"), st.sampled_from(NAMES), st.booleans()),
    st.tuples(st.just("box"), st.sampled_from(NAMES), st.sampled_from([None, [0, 0, 40, 30], [1.5, 2, 20.25, 4]])),
    st.tuples(st.just("schema"), st.sampled_from(["swap", "rename", "add", "drop"])),
)


def perform(project, edit):
    kind, *rest = edit
    if kind == "points":
        image, place, mark, x = rest
        point = project.state.outline.points[place % len(project.state.outline.points)].id
        project.edit_points(image, [{"id": point, "mark": mark, "x": x, "y": x}], size=(40, 30))
    elif kind == "skip":
        project.skip(*rest)
    elif kind == "box":
        project.edit_box(*rest, size=(40, 30))
    else:
        points = [{"id": each.id, "name": each.name, "colour": each.colour} for each in project.state.outline.points]
        if rest[0] == "swap":
            points.reverse()
        elif rest[0] == "rename":
            points[0]["name"] += "'"
        elif rest[0] == "add":
            points.append({"id": -1, "name": f"new {project.state.revision}", "colour": "#0000ff"})
        elif len(points) > 1:
            points.pop(0)
        project.edit_schema({"points": points}, base=project.state.outline_revision)


@settings(max_examples=40)
@given(st.lists(edits, max_size=12), st.integers(0, 200), st.booleans())
def test_any_edits_and_a_kill_replay_to_what_was_acknowledged(tmp_path_factory, images, done, cut, zeros):
    """The process dies, and in mid-write of one more edit: some bytes of its line, or zeros, are on the disk."""
    folder = tmp_path_factory.mktemp("project")
    with opened(folder, images) as first:
        first.edit_schema(SCHEMA, base=0)
        for edit in done:
            perform(first, edit)
    with (folder / "journal.jsonl").open("ab") as file:
        line = json.dumps({"revision": first.state.revision + 1, "kind": "skip", "image": "a b.jpg", "skip": True})
        file.write(b"\0" * cut if zeros else line.encode()[:cut])  # never its newline
    with opened(folder, images) as second:
        assert second.state == first.state
        perform(second, ("points", NAMES[1], 0, 2, 7.0))
    with opened(folder, images) as third:
        assert third.state == second.state


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 29)), min_size=1, max_size=20))
def test_of_two_tabs_the_later_edit_of_a_point_counts_and_other_points_stay(tmp_path_factory, images, edits):
    with opened(tmp_path_factory.mktemp("project"), images) as project:
        project.edit_schema(SCHEMA, base=0)
        revisions = [put(project, point, x) for point, x in edits]
    assert revisions == list(range(2, 2 + len(edits)))
    last = {point: (round(x, 3), revision) for (point, x), revision in zip(edits, revisions, strict=True)}
    known = project.state.known("a b.jpg")
    assert {point: (said.x, said.revision) for point, said in known.items()} == last


def test_a_request_that_is_sent_again_changes_nothing(project, images):
    first = put(project, 0, 3, request="12345678-a")
    put(project, 0, 9)
    assert put(project, 0, 3, request="12345678-a") == first
    assert project.state.known("a b.jpg")[0].x == 9
    with opened(project.path, images) as again:  # after a restart, too
        assert put(again, 0, 3, request="12345678-a") == first
        assert again.state == project.state


def test_a_damaged_line_among_others_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"revision": 1}\n{"revi\n{"revision": 3}\n')
    with pytest.raises(ValueError, match="line 2 is no edit"):
        Journal(path)


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"revision": 1})

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("os.fsync", full)
        journal.append({"revision": 2})
    journal.append({"revision": 2, "again": True})
    journal.close()
    with closing(Journal(journal.path)) as again:
        assert again.entries == [{"revision": 1}, {"revision": 2, "again": True}]


def test_a_lost_or_unknown_entry_is_refused():
    state = State()
    with pytest.raises(ValueError, match="one is lost"):
        state.apply({"revision": 2, "kind": "skip", "image": "a", "skip": True})
    with pytest.raises(ValueError, match="newer version"):
        state.apply({"revision": 1, "kind": "polygon"})


def test_renaming_reordering_and_adding_keep_clicks_and_a_number_never_comes_back(project):
    put(project, 0, 3)
    put(project, 1, 5, mark=1)
    base = project.state.outline_revision
    points = [
        {"id": 1, "name": "beak", "colour": "#00ff00"},
        {"id": -1, "name": "tail", "colour": "#0000ff"},
        {"id": 0, "name": "eye", "colour": "#ff0000"},
    ]
    project.edit_schema({"points": points, "skeleton": [[-1, 0]], "normaliser": [1, -1]}, base=base)
    (image,) = project.labels().images
    assert image.points[[0, 2], 0].tolist() == [5, 3]
    assert image.marks.tolist() == [Mark.OCCLUDED, Mark.MISSING, Mark.VISIBLE]
    assert project.labels().schema.skeleton == ((1, 2),) and project.labels().schema.normaliser == (0, 1)
    assert not project.state.finished("a b.jpg")
    with pytest.raises(Conflict, match="another tab"):
        project.edit_schema({"points": points[:1]}, base=base)
    project.edit_schema({"points": points[:1]}, base=project.state.outline_revision)
    assert project.state.clicks() == {1: 1} and project.state.finished("a b.jpg")
    points[1]["name"] = "tail again"
    project.edit_schema({"points": points[:2]}, base=project.state.outline_revision)
    assert [point.id for point in project.state.outline.points] == [1, 3]  # 2 was the tail, which is gone


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"id": 7, "mark": 2, "x": 1, "y": 1}, "point 7 is not in the schema"),
        ({"id": 0, "mark": 3, "x": 1, "y": 1}, "mark must be 0"),
        ({"id": 0, "mark": 2, "x": 40, "y": 1}, "x must be a number from -0.5 to 39.5"),
        ({"id": 0, "mark": 2, "x": 1, "y": float("nan")}, "y must be a number"),
        ({"id": 0, "mark": 2, "x": "1", "y": 1}, "x must be a number"),
    ],
)
def test_an_edit_that_is_wrong_says_so_and_leaves_no_trace(project, point, message):
    before = project.state.revision
    with pytest.raises(ValueError, match=message):
        project.edit_points("a b.jpg", [point], size=(40, 30))
    assert project.state.revision == before


@pytest.mark.parametrize(
    "box", [[0, 0, 41, 30], [-1, 0, 9, 9], [0, 0, 3, 9], [0, 0, 9], [0, 0, float("nan"), 9], "all"]
)
def test_a_box_that_is_wrong_says_so_and_leaves_no_trace(project, box):
    with pytest.raises(ValueError, match="box must"):
        project.edit_box("a b.jpg", box, size=(40, 30))
    assert project.state.revision == 1


def test_labels_have_the_box_that_was_drawn_last(project):
    project.edit_box("a b.jpg", [1, 2, 30, 20], size=(40, 30))
    assert not project.labels().images  # nothing is labelled by a box alone
    put(project, 0, 3)
    assert project.labels().images[0].box == (1, 2, 30, 20)
    project.edit_box("a b.jpg", None, size=(40, 30))
    assert project.labels().images[0].box is None


def test_only_one_server_has_a_project_open(tmp_path):
    refusal = pytest.raises(ValueError, match="open in another lead-ray annotate")
    with held(tmp_path / "project"), refusal, held(tmp_path / "project"):
        pass
    with held(tmp_path / "project"):
        pass


def test_a_project_of_other_images_is_not_taken(project, tmp_path):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "x.png")
    with pytest.raises(ValueError, match="name another"):
        Project(project.path, tmp_path / "other")
