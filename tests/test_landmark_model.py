"""The landmark model: fitted to a few pictures, saved, loaded, asked for points, exported."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from annotated_faces import CARRIED, NAMES, SCHEMA, draw, errors
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import lead_ray
from lead_ray import fit as fit_command
from lead_ray import formats
from lead_ray.data.crops import BadImage
from lead_ray.export import Export, Network, export
from lead_ray.landmarks import fitting
from lead_ray.landmarks import model as landmark_model
from lead_ray.landmarks.labels import Labels, Mark, Schema, placed, plausible, unplaced
from lead_ray.models.fpn import DenseEncoder, Fpn, FpnSettings
from lead_ray.models.trunk import Trunk, TrunkSettings
from lead_ray.readouts import ensemble

COUNT = 16


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """The last four are not to learn from."""
    folder = tmp_path_factory.mktemp("faces")
    return folder, draw(folder, COUNT + 4)


@pytest.fixture(scope="module")
def model(faces):
    folder, labels = faces
    return fitting.fit(CARRIED, replace(labels, images=labels.images[:COUNT]), folder)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "faces"
    model.save(path)
    return path


def test_points_are_nearer_than_the_mean_face(faces, model):
    folder, labels = faces
    learnt, others = labels.images[:COUNT], labels.images[COUNT:]
    found = model.predict([folder / one.file for one in others])
    mean = np.stack([one.points for one in learnt]).mean(0)
    floor = errors([replace(each, points=mean) for each in found], others)
    assert errors(found, others).mean() < 0.8 * floor.mean()
    for each in found:
        assert each.points.dtype == each.confidence.dtype == np.float32
        assert np.isnan(each.points[5]).all() and each.confidence[5] == 0  # no hat was annotated
        assert np.isfinite(each.points[:5]).all() and ((each.confidence >= 0) & (each.confidence <= 1)).all()
        assert (each.spread[:5] > 0).all()


def test_the_card_says_what_the_model_is(saved):
    card = json.loads((saved / "card.json").read_text())
    assert card["category"] == "face" and card["schema"]["names"] == list(NAMES)
    assert card["trained"]["images"] == COUNT and card["trained"]["points"]["hat"] == 0
    measured = card["measured"]
    assert measured["unit"] == "% of the distance between left eye and right eye" and measured["images"] == COUNT
    assert 0 < measured["standard_error"] < measured["error"] < 60
    assert sum(measured["reliability"]["counts"]) == 5 * COUNT
    assert "within 10 % of the distance between left eye and right eye" in card["confidence"]
    assert card["versions"]["torch"]


def test_a_saved_model_is_the_same(faces, model, saved):
    folder, labels = faces
    paths = [folder / one.file for one in labels.images[COUNT:]]
    loaded = lead_ray.load(saved)
    assert loaded.card == model.card
    for here, there in zip(model.predict(paths), loaded.predict(paths), strict=True):  # half precision on disk
        np.testing.assert_allclose(there.points, here.points, atol=0.1)
        np.testing.assert_allclose(there.confidence, here.confidence, atol=0.02)
    assert sum(file.stat().st_size for file in saved.iterdir()) < 15e6


def test_one_image_in_all_its_forms(faces, model, tmp_path):
    folder, labels = faces
    path = folder / labels.images[-1].file
    pil = Image.open(path)
    array = np.asarray(pil)
    upright = model.predict([path])[0]
    forms = {
        "pil": pil,
        "text": str(path),
        "array": array,
        "sixteen bits": array.astype(np.uint16) * 256 + 77,
        "floats": array.astype(np.float32) / 255,
        "alpha": np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1),
    }
    for name, form in forms.items():
        np.testing.assert_array_equal(model.predict([form])[0].points, upright.points, err_msg=name)
    turned = pil.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(model.predict([tmp_path / "turned.png"])[0].points, upright.points)
    pil.convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_allclose(model.predict([tmp_path / "cmyk.tif"])[0].points, upright.points, atol=2, equal_nan=True)
    grey = model.predict([array[..., 1], torch.from_numpy(array[None, ..., 1].copy()), pil.convert("L")])
    assert all(np.isfinite(each.points[:5]).all() for each in grey)
    np.testing.assert_array_equal(grey[0].points, grey[1].points)


@settings(max_examples=10)
@given(left=st.integers(0, 300), top=st.integers(0, 300), factor=st.integers(1, 3))
def test_a_box_says_where_to_look(model, faces, left, top, factor):
    """Pasted elsewhere, and larger, an object's landmarks move with it."""
    folder, labels = faces
    with Image.open(folder / labels.images[-1].file) as face:
        canvas = Image.new("RGB", (factor * 178 + left, factor * 218 + top), "gray")
        canvas.paste(face.resize((factor * 178, factor * 218), Image.Resampling.NEAREST), (left, top))
        alone = model.predict([face], boxes=[(20.0, 30.0, 140.0, 170.0)])[0]
    box = (left + factor * 20.0, top + factor * 30.0, factor * 140.0, factor * 170.0)
    found = model.predict([canvas], boxes=[box])[0]
    moved = (alone.points + 0.5) * factor - 0.5 + (left, top)
    # Resampling differs a little where pixels were doubled, and past the edges.
    np.testing.assert_allclose(found.points, moved, atol=4 * factor)


def test_descriptors_are_those_of_the_encoder(model, faces):
    folder, labels = faces
    blocks = model.descriptors([folder / one.file for one in labels.images[:3]])
    assert [tuple(block.shape) for block in blocks] == [(3, 16, 24, 24), (3, 32, 12, 12), (3, 64, 6, 6), (3, 128, 3, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [pytest.param(1, id="matched"), pytest.param(COUNT, id="ensemble")])
def test_exported_models_say_the_same(count, faces, saved, tmp_path):
    folder, labels = faces
    if count != COUNT:
        saved = tmp_path / "model"
        fitting.fit(CARRIED, replace(labels, images=labels.images[:count]), folder).save(saved)
    made = lead_ray.load(saved)
    others = [folder / one.file for one in labels.images[COUNT:]]
    crops, views = zip(*(landmark_model.framed(path, None, made.card.framing) for path in others), strict=True)
    given_images = np.stack(crops).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        points, confidence = Network(made).eval()(torch.from_numpy(given_images))
    for found, at, sure, view in zip(made.predict(others), points.numpy(), confidence.numpy(), views, strict=True):
        np.testing.assert_allclose(
            view.frame.to_photograph(at), found.points[:5], atol=0.05
        )  # it reads float16 features
        np.testing.assert_allclose(sure, found.confidence[:5], atol=5e-3)
    for name in ("model.onnx", "model.pt2"):
        export(Export(model=saved, out=tmp_path / name))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["lead_ray"])["landmarks"] == list(NAMES[:5])
    program = torch.export.load(tmp_path / "model.pt2").module()
    for size in (1, 3):
        there = session.run(["points", "confidence"], {"images": given_images[:size]})
        np.testing.assert_allclose(there[0], points[:size], rtol=0, atol=1e-4)
        np.testing.assert_allclose(there[1], confidence[:size], rtol=0, atol=1e-4)
        here = program(torch.from_numpy(given_images[:size]))
        torch.testing.assert_close(here[0], points[:size], rtol=0, atol=1e-4)


def test_a_model_of_format_1_predicts_the_mean_of_its_members(faces, model, saved, tmp_path):
    folder, labels = faces
    marks = sum(model.card.placed)
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "card.json").write_text(
        json.dumps(json.loads((saved / "card.json").read_text()) | {"format_version": 1})
    )
    held = load_file(saved / "readout.safetensors")
    rows = len(held["weight0"]) // len(held["linear"])
    first = ensemble.WHOLE * marks
    cut = {name: value[first:] for name, value in held.items() if name in ("linear", "bias")}
    cut |= {name: value[first * rows :] for name, value in held.items() if name.startswith("weight")}
    save_file(
        {name: value.contiguous() for name, value in (held | cut).items() if name != "whole"},
        tmp_path / "readout.safetensors",
    )
    old = lead_ray.load(tmp_path)
    crops, views = zip(
        *(landmark_model.framed(folder / one.file, None, old.card.framing) for one in labels.images[COUNT:]),
        strict=True,
    )
    blocks = landmark_model.encode(old.encoder, crops)
    everyone = torch.ones(ensemble.MEMBERS, len(crops), dtype=torch.bool)
    wanted = lead_ray.load(saved).readout.read_by(blocks, everyone).points
    torch.testing.assert_close(old.readout.read(blocks).points, wanted, atol=1e-5, rtol=0)
    with torch.no_grad():
        points, _ = Network(old).eval()(torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).copy()))
    for found, at, view in zip(old.predict_framed(crops, views), points.numpy(), views, strict=True):
        np.testing.assert_allclose(view.frame.to_photograph(at), found.points[:5], atol=0.05)


def test_few_annotations_say_so(faces, unchecked):
    folder, labels = faces
    for count in (1, 2):
        made = fitting.fit(CARRIED, replace(labels, images=labels.images[:count]), folder)
        assert made.card.measured["error"] is None and made.card.calibration is None
        assert made.card.confidence.endswith("not calibrated: too few annotated images")
        said = fit_command.report(made)
        assert "3 annotated images on" in said and "give the scale" not in said
    without = replace(labels, schema=replace(labels.schema, normaliser=None), images=labels.images[:2])
    assert "name two with --normaliser (landmarks: " in fit_command.report(fitting.fit(CARRIED, without, folder))
    with pytest.raises(ValueError, match="no image has a landmark"):
        fitting.fit(CARRIED, Labels(schema=SCHEMA), folder)
    wrong = replace(labels.images[0], size=(218, 178))
    with pytest.raises(ValueError, match=r"00\.png: is 178x218 pixels as shown, its labels say 218x178"):
        fitting.fit(CARRIED, Labels(schema=SCHEMA, images=(wrong,)), folder)


def test_points_that_no_image_can_have(faces):
    folder, labels = faces
    first, *others = labels.images[:4]
    fit = partial(fitting.fit, CARRIED, images=folder)
    far = placed(first, 1, 40.0, 437.0)
    with pytest.raises(ValueError, match=r"right eye of .*00\.png is at \(40, 437\), far outside .* 178 x 218"):
        fit(labels=replace(labels, images=(far, *others)))
    with pytest.raises(ValueError, match=r"00\.png comes twice, and no boxes tell its objects apart"):
        fit(labels=replace(labels, images=(first, *others, first)))
    shares = tuple(replace(one, points=one.points / 218) for one in (first, *others))
    shares = (placed(shares[0], 0, 1.02, 0.3), *shares[1:])
    with pytest.raises(ValueError, match="points are in pixels, not in shares"):
        fit(labels=replace(labels, images=shares))
    large = tuple(replace(one, points=3 * one.points) for one in (first, *others))
    with pytest.raises(ValueError, match="far outside the image of 178 x 218"):
        fit(labels=replace(labels, images=large))


@pytest.mark.slow
def test_the_image_whose_labels_are_wrong_is_named(faces):
    folder, labels = faces
    images = list(labels.images[:10])
    images[3] = replace(images[3], points=images[3].points[:, ::-1].copy())  # x and y exchanged
    made = fitting.fit(CARRIED, replace(labels, images=tuple(images)), folder)
    file, error = made.card.measured["worst_image"]
    assert file == images[3].file and error > 2 * made.card.measured["error"]
    assert f"least like the others: {file}, {error:.1f}; are its labels right?" in fit_command.report(made)


def test_what_points_may_be():
    """A hidden one beyond the edge, one in the corner among images that nobody annotated, an entry without any."""
    empty = [unplaced(f"{number}.png", (100, 80), 1) for number in range(4)]
    schema = Schema(names=("tip",), colours=("#000000",))
    plausible(schema, [placed(empty[0], 0, -40.0, 110.0, Mark.OCCLUDED)])
    plausible(schema, [placed(empty[0], 0, 0.5, 0.5), placed(empty[1], 0, 0.0, 1.0)])
    with pytest.raises(ValueError, match=r"tip of 0\.png is at \(-60, 10\)"):
        plausible(schema, [placed(empty[0], 0, -60.0, 10.0)])


def test_entries_without_points_count_as_not_annotated(faces):
    folder, labels = faces
    first, second = labels.images[:2]
    listed = (first, unplaced(first.file, first.size, len(first.marks)), second)
    assert fitting.fit(CARRIED, replace(labels, images=listed), folder).card.trained["images"] == 2


def test_fit_from_the_command_line(faces, tmp_path, capsys):
    folder, labels = faces
    formats.write("coco", replace(labels, images=labels.images[:6]), tmp_path / "labels.json")
    arguments = ["--images", str(folder), "--labels", str(tmp_path / "labels.json"), "--out", str(tmp_path / "model")]
    given = ["--normaliser", "nose", "left eye"]
    fit_command.main([str(CARRIED), *arguments, *given])
    assert "% of the distance between nose and left eye" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="normaliser names 'tail', the landmarks are left eye, "):
        fit_command.main([str(CARRIED), *arguments, "--normaliser", "nose", "tail"])
    fit_command.main([str(CARRIED), *arguments])
    said = capsys.readouterr().out
    assert "face: 5 landmarks from 6 annotated images" in said and "error in images not seen" in said
    assert (tmp_path / "model" / "reliability.png").stat().st_size > 1000
    assert lead_ray.load(tmp_path / "model").card.schema == SCHEMA
    assert "least like the others: " in said and ".png, " in said
    with pytest.raises(SystemExit, match=r"lead-ray fit: out='.*' is there and holds no landmark model"):
        fit_command.main([str(CARRIED), *arguments[:5], str(folder)])
    with pytest.raises(SystemExit, match=r"lead-ray fit: no labels at .*none\.json"):
        fit_command.main([str(CARRIED), *arguments[:3], str(tmp_path / "none.json"), *arguments[4:]])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 2, 5), np.uint8), r"image 0: an array must be .* got \[2, 2, 5\]"),
        (np.full((4, 4), 2.0), r"floating-point in \[0, 1\], got float64 from 2.0 to 2.0"),
        (torch.zeros(4, 4, 3), r"a tensor must be \[3, h, w\]"),
        ("nowhere.png", r"nowhere\.png: is listed but the file is missing"),
    ],
)
def test_images_that_cannot_be_used(image, message, model):
    with pytest.raises(BadImage, match=message):
        model.predict([image])


def test_wrong_calls(model, saved, tmp_path, unchecked):
    with pytest.raises(ValueError, match="images must be a list, got one str"):
        model.predict("a.png")
    with pytest.raises(ValueError, match="boxes must be as many as the 2 images, got 1"):
        model.predict(["a.png", "b.png"], boxes=[None])
    with pytest.raises(FileNotFoundError, match="lead-ray fit RUN"):
        lead_ray.load(tmp_path)
    for name, text, message in (
        ("card.json", '{"format_version": 99}', "newer version of lead_ray"),
        ("card.json", '{"format_version": 1}', "is not a whole landmark model"),
        ("readout.safetensors", "", "is not a whole landmark model"),
    ):
        broken = tmp_path / f"{name}{len(text)}"
        broken.mkdir()
        for file in saved.iterdir():
            (broken / file.name).write_bytes(text.encode() if file.name == name else file.read_bytes())
        with pytest.raises(ValueError, match=message):
            lead_ray.load(broken)


def test_a_resnet50_stays_below_100_megabytes(monkeypatch):
    """Half precision; the read-out is held to a size whatever the landmarks and channels."""
    with torch.device("meta"):
        trunk = Trunk(TrunkSettings(depth=50))
        encoder = DenseEncoder(trunk, Fpn(trunk.channels, FpnSettings(dim=256)))
    assert 2 * sum(value.numel() for value in encoder.state_dict().values()) + ensemble.LARGEST / 2 < 100e6
    monkeypatch.setattr(ensemble, "LARGEST", 2**14)
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(4, 16, 6, 6, generator=generator)]
    landmarks, seen = torch.rand(4, 2, 2, generator=generator) - 0.5, torch.ones(4, 2, dtype=torch.bool)
    made, _ = ensemble.fit_ensemble(blocks, landmarks, seen, whole=1, members=3, points=5000)
    assert made.regressor.weights[0].nbytes == 2**14
