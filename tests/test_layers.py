"""Who may import whom, read from the source: inside functions and under conditions, too."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lead_ray

LIBRARY = Path(lead_ray.__file__).parent
RAY_FILES = {"prepare", "ingest", "launch", "elastic"}
LAYERS = (
    {"geometry", "metrics", "similarity", "progress", "errors", "machine", "notice", "storage", "data", "summary"}
    | {"machine_code", "threads", "triton_code", "optimisers", "usage"},
    {"models", "objectives", "augmentation"},
    {"artefacts", "locks", "images", "worker", "train", "recording", "stage", "features", "parts", "clusters"}
    | {"resources", "foreground", "work", "readouts", "evaluation", "landmarks", "formats"},
    {"reporting", "figures"},
    RAY_FILES,
)
"""From the ground up. What is not named is a command line: it may import all of these, none of these it."""

INTERFACES = {"__init__", "formats.__init__"}
"""What packages offer by their own names: lead_ray.load, lead_ray.formats.read and write. All others are empty."""

ALONE = {"geometry": set(), "metrics": set(), "similarity": set(), "progress": set(), "machine": set()} | {
    "machine_code": set(),
    "threads": set(),
    "triton_code": {"machine"},
    "recording": set(),
    "optimisers": set(),
    "train": {"machine", "optimisers"},
    "images.sampling": set(),
}
"""Module -> what it may know of the package."""


@cache
def modules() -> dict[str, ast.Module]:
    """Dotted name below the package -> its syntax tree."""
    named = {".".join(path.relative_to(LIBRARY).with_suffix("").parts): path for path in LIBRARY.rglob("*.py")}
    counted = {name: path for name, path in named.items() if path.name != "__init__.py" or name in INTERFACES}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text()) for name, path in counted.items()}


def imports(module: str) -> set[str]:
    """Absolute names of everything that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports from the package's name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def project_imports(module: str) -> set[str]:
    """The package's modules among them."""
    names = {name.removeprefix("lead_ray.") for name in imports(module) if name.startswith("lead_ray.")}
    return {name if name in modules() else name.rpartition(".")[0] for name in names}


def layer(module: str) -> int:
    top = module.partition(".")[0]
    return next((number for number, names in enumerate(LAYERS) if top in names), len(LAYERS))


def test_the_walk_sees_imports_inside_functions():
    assert {"ray", "ray.train.torch.get_device"} <= imports("launch")
    assert {"images.feed", "models.weights", "artefacts"} <= project_imports("work")


def test_ray_stays_in_four_files():
    found = {module for module in modules() if any(name.split(".")[0] == "ray" for name in imports(module))}
    assert found <= RAY_FILES, f"Ray leaked into {sorted(found - RAY_FILES)}; call it from launch.py"


def test_imports_run_downwards():
    upwards = [
        f"{module} imports {used}"
        for module in modules()
        for used in project_imports(module)
        if layer(used) > layer(module)
    ]
    assert not upwards, f"{upwards}: move what they share down, or name a new module's layer in this test"


def test_no_module_imports_itself_by_way_of_others():
    try:
        TopologicalSorter({module: project_imports(module) for module in modules()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_ground_stands_alone():
    for module in modules():
        used = project_imports(module)
        if module in ALONE:
            assert used <= ALONE[module], f"{module} must not know {sorted(used - ALONE[module])}"
        if module.startswith("data."):
            strangers = {name for name in used if name != "data" and not name.startswith("data.")}
            assert not strangers, f"a data set's reader must not know {sorted(strangers)}"


def test_nothing_imports_studies_or_tests():
    for module in modules():
        roots = {name.split(".")[0] for name in imports(module)}
        assert not roots & {"studies", "tests"}, f"{module}: experiments depend on the library, never the reverse"


def test_packages_are_empty():
    full = {path.relative_to(LIBRARY) for path in LIBRARY.rglob("__init__.py") if path.read_text().strip()}
    assert full == {Path(*name.split(".")).with_suffix(".py") for name in INTERFACES}


def test_the_package_itself_starts_without_torch():
    code = "import lead_ray, sys; lead_ray.load; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in run.stdout.split()


def test_command_lines_start_without_what_takes_long():
    """Ray: `--workers 0` serves machines that have none. torchvision, whose import takes as long as torch's own: only
    foreign teachers and benchmarks that compare need it. torch's compiler, which takes longer: a step of training does
    not, nor does a fit of a read-out. pyplot, which keeps figures and asks for screens."""
    figures = [f"figures.{path.stem}" for path in sorted((LIBRARY / "figures").glob("[!_]*.py"))]
    names = ["pretrain", "dense", "evaluate", "fit", "predict", "bench", *figures]
    commands = ", ".join(f"lead_ray.{name}" for name in names)
    step = """
for algorithm in ("sgd", "adam"):
    layer = torch.nn.Linear(2, 2)
    optimizer = train.make_optimizer(layer, train.Optim(algorithm=algorithm))
    train.train_step(lambda view: {"loss": layer(view).sum()}, optimizer, (torch.ones(4, 2),), torch.float32)
    optimizer.load_state_dict(optimizer.state_dict())
settings = regression.RegressionSettings(points=3, grid=6, epochs=1, epoch_steps=1, batch_size=2)
regression.fit([torch.rand(2, 4, 3, 3)], torch.rand(2, 2, 2) - 0.5, settings, torch.Generator())
"""
    code = f"""import {commands}, sys, torch
from lead_ray import train
from lead_ray.readouts import regression
{step}
print(*sys.modules)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "torch" in loaded and not loaded & {"ray", "torchvision", "torch._dynamo", "matplotlib.pyplot"}
