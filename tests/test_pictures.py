"""Pictures of faces: marks, colours and cells are where the arrays say."""

import io

import numpy
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lead_ray.figures import clusters, correspondence, faces, parts
from lead_ray.figures.faces import Marked
from lead_ray.reporting.drawing import PALETTE, colours

NAN = float("nan")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def pictures(count, generator, size=48):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def drawn(figure):
    assert isinstance(figure, Figure) and figure.get_label()
    figure.savefig(io.BytesIO(), format="png", dpi=40)
    return figure


def lines(panel, marker):
    return [line for line in panel.lines if line.get_marker() == marker]


def test_stages_stand_one_above_the_other(generator):
    images, truth = pictures(3, generator), 48 * torch.rand(3, 2, 2, generator=generator)
    ours = [torch.randn(3, 8, 12, 12, generator=generator)]
    theirs = [torch.randn(3, 8, 12, 12, generator=generator)]
    systems = {"stage 1": ours, "stage 2": theirs}
    points = torch.tensor([[10.0, 12.0], [30.0, 31.0]])
    figure = drawn(correspondence.stages(images, systems, 1, points, names=["eye", "nose"], truth=truth))
    alone = {name: correspondence.heat_maps(images, blocks, 1, points) for name, blocks in systems.items()}
    assert len(figure.axes) == 2 * (1 + 2 * 2)
    for p in range(2):
        reference, *found = figure.axes[5 * p : 5 * p + 5]
        assert lines(reference, "o")[0].get_xydata()[0].tolist() == points[p].tolist()
        assert reference.texts[0].get_text() == ("eye", "nose")[p]
        places = [lines(panel, "+")[0].get_xydata()[0].tolist() for panel in found]
        wanted = [alone[name].axes[3 * p + 1 + target] for name in systems for target in (0, 1)]
        assert places == [lines(panel, "+")[0].get_xydata()[0].tolist() for panel in wanted]
        rings = [lines(panel, "o")[0].get_xydata()[0] for panel in found]
        assert numpy.allclose(rings, [truth[target, p] for _ in systems for target in (0, 2)])
        assert [panel.get_ylabel() for panel in found] == ["stage 1", "", "stage 2", ""]


def test_stages_need_a_system(generator):
    with pytest.raises(ValueError, match="at least one"):
        correspondence.stages(pictures(2, generator), {}, 0, torch.zeros(1, 2))


def test_overlays_are_a_grid_with_names(generator):
    images = pictures(3, generator)
    face = [
        Marked(image=i, predicted=torch.full((1, 2), 9.0), truth=torch.full((1, 2), 5.0), words="3 %") for i in images
    ]
    figure = drawn(faces.overlays([face[:2], [face[2], None]], rows=["300-W\nn = 5", "MAFL"], columns=["a", "b"]))
    panels = numpy.array(figure.axes).reshape(2, 2)
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["300-W\nn = 5", "MAFL"]
    assert [panel.get_title() for panel in panels[0]] == ["a", "b"]
    assert not panels[1, 1].axison and panels[1, 0].get_xlabel() == "3 %"
    assert "rows: 300-W n = 5, MAFL; columns: a, b" in figure.get_label()


def test_many_points_share_a_colour(generator):
    image, points = pictures(1, generator)[0], 48 * torch.rand(68, 2, generator=generator)
    panel = drawn(faces.overlays([[Marked(image=image, predicted=points, truth=points + 1)]])).axes[0]
    dots = {line.get_markerfacecolor() for line in lines(panel, "o")} - {"none"}
    assert dots == {PALETTE[0]}


@pytest.mark.parametrize(
    ("cells", "names", "said"),
    [([], {}, "rows of one length"), ([[None]], {}, "with a face"), ([["f"], ["f", "f"]], {}, "rows of one length"),
     ([["f"]], {"rows": ["a", "b"]}, "rows must name 1"), ([["f"]], {"columns": []}, "columns must name 1")],
)  # fmt: skip
def test_overlays_refused(generator, cells, names, said):
    face = Marked(image=pictures(1, generator)[0], predicted=torch.zeros(1, 2), truth=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=said):
        faces.overlays([[cell and face for cell in row] for row in cells], **names)


def test_matching_grid_has_references_above_the_systems(generator):
    points, found, truth = (48 * torch.rand(2, 3, 2, generator=generator) for _ in range(3))
    truth[0, 1] = NAN
    words = {"LEAD": ["1 px", "2 px"]}
    grid = faces.matching_grid(
        pictures(2, generator), pictures(2, generator), points, {"CL": truth, "LEAD": found}, truth, words=words
    )
    panels = numpy.array(drawn(grid).axes).reshape(3, 2)
    assert [panel.get_ylabel() for panel in panels[:, 0]] == ["reference", "CL", "LEAD"]
    dots = [line.get_xydata()[0] for line in lines(panels[2, 1], "o") if line.get_markerfacecolor() != "none"]
    assert numpy.allclose(dots, found[1])
    assert [panel.get_xlabel() for panel in panels[2]] == ["1 px", "2 px"]
    with pytest.raises(ValueError, match="at least one system"):
        faces.matching_grid(pictures(1, generator), pictures(1, generator), points[:1], {}, truth[:1])


def test_parts_have_one_colour_in_all_images(generator):
    presence = torch.zeros(2, 2, 3, 3)
    presence[0, 0], presence[1, 1] = 2.0, 4.0
    figure = drawn(parts.overlay(pictures(2, generator), presence, most=[2.0, 4.0]))
    swatches = [to_rgb(patch.get_facecolor()) for panel in figure.axes[:2] for patch in panel.patches]
    shown = [panel for panel in figure.axes if panel.images]
    for image, part in ((0, 0), (1, 1)):
        mixed = shown[2 * image + 1].images[0].get_array().astype(float) / 255
        colour = numpy.array(swatches[part])
        # Four fifths of every pixel are the part's colour, the rest light grey.
        grey = (mixed - 0.8 * colour) / 0.2
        assert grey.std(axis=2).max() < 0.03 and 0.1 < grey.mean() < 0.9


def test_absent_parts_leave_no_colour(generator):
    image = parts.overlay(pictures(1, generator), torch.zeros(1, 3, 2, 2)).axes[-1].images[0].get_array()
    assert image.std(axis=2).max() == 0


def test_full_presence_is_the_99th_percentile_of_what_is_there():
    presence = torch.zeros(1, 2, 20, 20)
    presence[0, 0].view(-1)[:101] = torch.arange(101.0)
    assert parts.strongest(presence).tolist() == [pytest.approx(99.0, abs=1.0), 0]


def test_parts_belong_to_the_images(generator, unchecked):
    with pytest.raises(ValueError, match="that of the 2 images, got 1"):
        parts.overlay(pictures(2, generator), torch.zeros(1, 2, 3, 3))


def test_clusters_have_one_colour_everywhere(generator):
    plane = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.1, 1.0]])
    of_plane, of_cells = torch.tensor([0, 1, 1]), torch.tensor([[[0, 1], [1, 2]]])
    patches = [pictures(2, generator, 8), pictures(1, generator, 8), pictures(0, generator, 8)]
    figure = drawn(clusters.clusters(plane, of_plane, pictures(1, generator), of_cells, patches, title="3 clusters"))
    scatter, cells, *marks = figure.axes
    wanted = [to_rgb(colour) for colour in colours(3)]
    assert numpy.allclose(scatter.collections[0].get_facecolors()[:, :3], [wanted[label] for label in of_plane])
    boxes = [patch for patch in cells.patches if isinstance(patch, Rectangle)]
    assert [box.get_xy() for box in boxes] == [(-0.5, -0.5), (23.5, -0.5), (-0.5, 23.5), (23.5, 23.5)]
    assert [to_rgb(box.get_facecolor()) for box in boxes] == [wanted[label] for label in of_cells.flatten()]
    numbered = [panel for panel in marks if panel.texts]
    assert [to_rgb(panel.patches[0].get_facecolor()) for panel in numbered] == wanted
    assert [panel.texts[0].get_text() for panel in numbered] == ["1", "2", "3"]


def test_every_cluster_needs_patches(generator):
    with pytest.raises(ValueError, match="each of 3 clusters, got 2"):
        clusters.clusters(
            torch.zeros(1, 2), torch.tensor([2]), pictures(1, generator), torch.zeros(1, 2, 2, dtype=torch.long),
            [pictures(1, generator, 8)] * 2,
        )  # fmt: skip


def test_marks_outside_of_an_image_do_not_shrink_it(generator):
    far = Marked(image=pictures(1, generator)[0], predicted=torch.tensor([[90.0, -20.0]]), truth=torch.zeros(1, 2))
    panel = drawn(faces.overlays([[far]])).axes[0]
    assert panel.get_xlim() == (-0.5, 47.5) and panel.get_ylim() == (47.5, -0.5)
