"""Stage 2 taught by a foreign frozen network: whose similarities count, what is trained, what names the run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
import tyro
from descriptors import FPN, smooth, stage2, step, trunk
from safetensors.torch import save_file

from lead_ray import launch
from lead_ray.artefacts import digest, plain
from lead_ray.augmentation.noise import Noise
from lead_ray.augmentation.views import ViewSettings
from lead_ray.dense import Dense
from lead_ray.models import hypercolumn, weights
from lead_ray.models.teacher import TeacherSettings, load
from lead_ray.objectives.align import Align, AlignSettings, similarity_alignment

RANDOM = TeacherSettings(network="resnet18", random=True, size=48)
SETTINGS = AlignSettings(fpn=FPN, projector=16, foreign=RANDOM)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    return stage2(tmp_path_factory.mktemp("dense"))


def learner(settings: AlignSettings = SETTINGS) -> Align:
    torch.manual_seed(1)
    return Align(trunk(), settings)


def test_the_loss_is_that_of_the_foreign_networks_similarities():
    align, views = learner().eval(), (smooth(2, 64), smooth(2, 64, seed=1))
    found = align(*views)
    blocks = [align.foreign(view) for view in views]
    assert [block.shape[1:] for block in blocks[0]] == [(64, 12, 12), (128, 6, 6), (256, 3, 3), (512, 2, 2)]
    taught = hypercolumn.similarity(*blocks, size=16)
    maps = [align.head(align.fpn(align.trunk(view))).flatten(2) for view in views]
    expected = similarity_alignment(taught, *maps, temperature=0.05, teacher_temperature=0.05)
    torch.testing.assert_close(found["loss"], expected, rtol=1e-4, atol=1e-4)
    own = learner(replace(SETTINGS, foreign=None)).eval()(*views)
    assert abs(own["loss"].item() - found["loss"].item()) > 1e-3, "its own trunk teaches something else"


def test_only_decoder_and_head_are_trained():
    align = learner().train()
    assert not align.foreign.training and not align.trunk.training and align.fpn.training
    frozen = {
        name: value.clone() for name, value in align.state_dict().items() if name.startswith(("trunk", "foreign"))
    }
    trained = [parameter for parameter in align.parameters() if parameter.requires_grad]
    views = smooth(4, 64), smooth(4, 64, seed=1)
    optimizer = torch.optim.SGD(trained, lr=0.05)
    losses = [step(align, optimizer, views) for _ in range(10)]
    assert losses[-1] < losses[0]
    now = align.state_dict()
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_a_run_hands_on_the_students_network_alone(make, tmp_path):
    run = launch.run(make(tmp_path, objective=SETTINGS))
    encoder = weights.load(run.path)
    assert not any("foreign" in name for name in encoder.state_dict())
    before = trunk().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in encoder.trunk.state_dict().items())
    (block,) = encoder(smooth(1, 64))
    assert block.shape == (1, 8, 16, 16)


class TestName:
    """The run's folder."""

    def test_of_runs_without_a_teacher_or_noise_is_what_it_was(self, make, tmp_path):
        dense = make(tmp_path, objective=AlignSettings(fpn=FPN))
        matters = dense.matters()
        assert "noise" not in matters and "foreign" not in matters["objective"]
        noisy = replace(dense, noise=Noise(pca=0.1)).matters()
        assert noisy.pop("noise") == plain(Noise(pca=0.1)) and noisy == matters
        taught = make(tmp_path, objective=replace(dense.objective, foreign=RANDOM)).matters()
        assert taught["objective"].pop("foreign")["network"] == "resnet18" and taught == matters

    def test_depends_on_the_weights_not_on_where_they_lie(self, make, tmp_path):
        def name(file: Path) -> str:
            settings = TeacherSettings(network="resnet18", weights=file)
            return digest(make(tmp_path, objective=replace(SETTINGS, foreign=settings)).matters())

        torch.manual_seed(0)
        state = torchvision.models.resnet18().state_dict()
        for file in ("a.safetensors", "b.safetensors"):
            save_file(state, tmp_path / file)
        assert name(tmp_path / "a.safetensors") == name(tmp_path / "b.safetensors")
        save_file(state | {"bn1.weight": state["bn1.weight"] + 1}, tmp_path / "b.safetensors")
        assert name(tmp_path / "a.safetensors") != name(tmp_path / "b.safetensors")

    def test_of_a_teacher_of_this_package_by_its_weights(self, make, tmp_path):
        names = []
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            weights.save(tmp_path / folder / "encoder.safetensors", trunk(), {})
            own = TeacherSettings(network=str(tmp_path / folder))
            names.append(digest(make(tmp_path, objective=replace(SETTINGS, foreign=own)).matters()))
        assert names[0] == names[1]


class TestMissingWeights:
    @pytest.fixture(autouse=True)
    def hub(self, monkeypatch, tmp_path) -> Path:
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        return tmp_path / "hub" / "checkpoints"

    def test_what_to_fetch_is_said_before_anything_starts(self, make, tmp_path, hub):
        run = make(tmp_path / "runs", objective=replace(SETTINGS, foreign=TeacherSettings(network="resnet18")))
        with pytest.raises(
            FileNotFoundError, match=r"no weights of teacher.network='resnet18' here: curl -L .* https://"
        ):
            launch.run(run)
        with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.pth"):
            replace(
                run,
                objective=replace(SETTINGS, foreign=TeacherSettings(network="resnet18", weights=tmp_path / "none.pth")),
            ).matters()
        assert not (tmp_path / "runs").exists()

    def test_what_lies_in_the_hub_is_taken(self, hub):
        hub.mkdir(parents=True)
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18()
        name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
        torch.save(theirs.state_dict(), hub / name)
        teacher = load(TeacherSettings(network="resnet18"))
        assert torch.equal(teacher.network.conv1.weight, theirs.conv1.weight)


def test_command_line(tmp_path):
    words = ["--data", "d", "--stage1", "s", "objective:align-settings", "objective.foreign:teacher-settings"]
    words = [word.replace("align-settings", "align") for word in words]
    options = ["--objective.foreign.network", "vit_b_16", "--objective.foreign.size", "224"]
    dense = tyro.cli(Dense, args=[*words, *options])
    assert dense.objective == AlignSettings(foreign=TeacherSettings(network="vit_b_16", size=224))
    plain_run = tyro.cli(Dense, args=["--data", "d", "--stage1", "s"])
    assert plain_run.objective == AlignSettings() and plain_run.noise == Noise()


def test_views_of_a_run_have_the_noise(make, tmp_path):
    images = (255 * smooth(16, 40).sigmoid()).byte()
    clean = make(tmp_path, objective=SETTINGS, views=ViewSettings(size=40))
    noisy = replace(clean, noise=Noise(jpeg=True, pca=0.1, margin=4))
    rows = torch.arange(16)
    pairs = [
        each.pair_views(images, images, rows=rows, generator=torch.Generator().manual_seed(0))
        for each in (clean, noisy)
    ]
    assert [pair[0].shape[2] for pair in pairs] == [40, 32]
    assert not torch.allclose(pairs[0][0][:, :, 4:36, 4:36], pairs[1][0], atol=0.05)
