"""Warps and crops against the numbers of DVE's code."""

import pytest
import torch

from lead_ray import geometry
from lead_ray.geometry import Warper

EXACT = {"rtol": 1e-8, "atol": 1e-9}
SINGLE = {"rtol": 1e-4, "atol": 1e-5}


def recorded_draws(golden, which):
    """The reference takes the subset's numbers one after the other; ours hold one for every coefficient."""
    choice = golden[f"in_draw{which}_uniform"]
    subset = torch.zeros_like(choice).masked_scatter(choice > 0.5, golden[f"in_draw{which}_subset"])
    rotation, scale, x, y = (golden[f"in_draw{which}_{name}"] for name in ("rot", "scale", "tx", "ty"))
    return geometry.WarpDraws(
        kernel=golden[f"in_draw{which}_all"][None],
        choice=choice[None],
        subset=subset[None],
        rotation=rotation[None],
        scale=scale[None],
        translation=torch.stack([x, y])[None],
    )


@pytest.fixture
def warp(golden):
    return golden("tps_warp")


@pytest.fixture
def image(golden):
    return golden("tps_image")


def test_kernel_and_control_points(warp):
    got = geometry.kernel(warp["in_U_points_a"], warp["in_U_points_b"])
    torch.testing.assert_close(got, warp["out_U"], **EXACT)
    points = geometry.control_points(dtype=torch.float64)
    torch.testing.assert_close(points, warp["out_ctrl_points"], **EXACT)


@pytest.mark.parametrize("which", [1, 2])
def test_weights(warp, which):
    got = geometry.warp_weights(recorded_draws(warp, which), Warper(), first=which == 1)
    torch.testing.assert_close(got[0], warp[f"out_weights{which}"], **EXACT)


def test_matching_defaults_are_the_recorded_settings(warp):
    names = ("warpsd_all", "warpsd_subset", "transsd", "scalesd", "rotsd")
    recorded = [warp[f"par_{name}"].item() for name in (*names, "im1_multiplier", "im1_multiplier_aff")]
    default = Warper()
    assert recorded == [
        default.kernel_std,
        default.subset_std,
        default.translation_std,
        default.scale_std,
        default.rotation_std,
        default.first_multiplier,
        default.first_affine_multiplier,
    ]


def test_limited_annotation_weights(warp):
    got = geometry.warp_weights(recorded_draws(warp, 1), geometry.limited_annotation_warper())
    torch.testing.assert_close(got[0], warp["out_single_weights"], **EXACT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, SINGLE)])
def test_grids(warp, dtype, tolerance):
    weights = torch.stack([warp["out_weights1"], warp["out_weights2"]]).to(dtype)
    height, width = int(warp["in_H"]), int(warp["in_W"])
    grids = geometry.warp_grids(weights, height=height, width=width)
    cropped = geometry.crop_grids(grids, margin=int(warp["in_crop"]))
    torch.testing.assert_close(grids[0].double(), warp["out_grid1"], **tolerance)
    torch.testing.assert_close(grids[1].double(), warp["out_grid2"], **tolerance)
    torch.testing.assert_close(cropped[1].double(), warp["out_grid2_cropped"], **tolerance)
    flow = geometry.flow(cropped)[1].double()
    torch.testing.assert_close(flow, warp["out_flow_cropped"], rtol=0, atol=1e-4)


def test_warped_points(warp):
    got = geometry.warp_points(warp["out_weights1"][None], warp["in_query_xy"][None])
    torch.testing.assert_close(got[0], warp["out_query_warped1"], **EXACT)


@pytest.mark.parametrize("name", ["tps_warp", "tps_image"])
def test_key_points(golden, name):
    arrays = golden(name)
    kind, size = ("out", (136, 136)) if name == "tps_warp" else ("par", (40, 36))
    weights = torch.stack([arrays[f"{kind}_weights1"], arrays[f"{kind}_weights2"]])
    grids = geometry.warp_grids(weights, height=size[0], width=size[1])
    once = geometry.warp_keypoints(grids[:1], arrays["in_keypoints"][None])
    twice = geometry.warp_keypoints(grids[1:], once)
    margin = int(arrays["in_crop"])
    for points, expected in ((once, "out_kp_warped_once"), (twice, "out_kp_warped_twice")):
        cropped = geometry.crop_points(points, margin=margin)[0]
        torch.testing.assert_close(cropped, arrays[expected], rtol=0, atol=1e-3)
        assert (cropped == cropped.round()).all()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_images(image, dtype, atol):
    weights = torch.stack([image["par_weights1"], image["par_weights2"]]).to(dtype)
    grids = geometry.warp_grids(weights, height=40, width=36)
    first, second = image["in_image1"][None].to(dtype), image["in_image2"][None].to(dtype)
    once = geometry.warp_images(first, grids[:1])
    twice = geometry.warp_images(geometry.warp_images(second, grids[:1]), grids[1:])
    margin = int(image["in_crop"])
    cropped_once, cropped_twice = (geometry.crop_images(x, margin=margin)[0] for x in (once, twice))
    torch.testing.assert_close(cropped_once.double(), image["out_image_warped_once"], rtol=1e-8, atol=atol)
    torch.testing.assert_close(cropped_twice.double(), image["out_image_warped_twice"], rtol=1e-8, atol=atol)
    truncated = cropped_twice.to(torch.uint8).double()
    torch.testing.assert_close(truncated, image["out_image_warped_twice_uint8"], rtol=0, atol=1)
    if dtype == torch.float64:
        assert torch.equal(truncated, image["out_image_warped_twice_uint8"])


def test_grid_and_flow_of_an_image_that_is_not_square(image):
    grids = geometry.warp_grids(image["par_weights2"][None], height=40, width=36)
    cropped = geometry.crop_grids(grids, margin=int(image["in_crop"]))
    torch.testing.assert_close(cropped[0], image["out_grid2_cropped"], **EXACT)
    torch.testing.assert_close(geometry.flow(cropped)[0], image["out_flow_cropped"], rtol=0, atol=1e-4)
