"""What the repository promises about itself: commands that are the tested ones, numbers that were measured."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from lead_ray.quickstart_page import make_table
from lead_ray.speed.kept import markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "studies" / "results"
FOLDERS = (".", "cluster", "studies", "lead_ray/data", "lead_ray/evaluation", "lead_ray/landmarks", "lead_ray/speed")
PAGES = {folder: ROOT / folder / "README.md" for folder in FOLDERS}
README, STUDIES = PAGES["."].read_text(), PAGES["studies"].read_text()


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_ci_runs_the_readmes_test_command():
    first, second = re.findall(r"```sh\n(pip install -q uv .*)\n```", README)
    setup, command = second.rsplit(" && ", 1)
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script[-2:] == [setup, command]
    assert first == setup.replace('".[dev]"', ".") + " && .venv/bin/lead-ray quickstart"


def test_readmes_quickstart_table_is_the_measured_one():
    summary = json.loads((RESULTS / "quickstart.json").read_text())
    table = make_table(summary).markdown()
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + len(summary["systems"]) + 1
    assert f"{sum(summary['seconds'].values()):.0f} s in all" in README
    elsewhere = json.loads((RESULTS / "quickstart-amd.json").read_text())
    assert elsewhere["hardware"]["processor"] == "AMD EPYC"
    assert f"{sum(elsewhere['seconds'].values()):.0f} s on two of an AMD EPYC" in " ".join(README.split())
    for row in rows:
        assert row in README, "README.md is behind studies/results/quickstart.json"


def test_readmes_tables_are_the_kept_ones():
    places = {"quickstart": README, "house": README, "house-h200": STUDIES}
    for name in (*places, "tables/table-objectives", "tables/table-3"):
        rows = [line for line in (RESULTS / f"{name}.md").read_text().splitlines() if line.startswith("|")]
        assert len(rows) > 5
        if name.startswith("tables/"):  # their last column is the run's
            rows = [line.rsplit("|", 2)[0] + "|" for line in rows if "InfoNCE" not in line]  # which was not run
        assert "\n".join(rows) in places.get(name, STUDIES), f"a README.md is behind studies/results/{name}.md"
    for one in json.loads((RESULTS / "paper-readout.json").read_text()):
        assert f"{one['error']:.1f}" in STUDIES, "studies/README.md is behind results/paper-readout.json"


SPEEDS = {
    "bench": ("views", "step", "stage2", "stage2-small", "stage2-loss-256", "readout", "ingest", "workers"),
    "bench-amd": (
        *("views", "step", "step-2-threads", "stage2", "stage2-small", "stage2-loss-256"),
        *("readout", "readout-whole", "ingest"),
    ),
}


@pytest.mark.parametrize("machine", SPEEDS)
def test_readmes_speeds_are_the_kept_ones(machine):
    folder, names, speed = RESULTS / machine, SPEEDS[machine], PAGES["lead_ray/speed"].read_text()
    rendered = (folder / "bench.md").read_text().strip()
    assert {path.stem for path in folder.glob("*.json")} == set(names)
    again = markdown([json.loads((folder / f"{name}.json").read_text()) for name in names])
    assert rendered == again, f"lead-ray bench table {' '.join(f'{name}.json' for name in names)} --out bench.md"
    assert all(table in speed for table in rendered.split("\n\n")), f"a README.md is behind studies/results/{machine}"


def test_readmes_few_speeds_are_among_the_kept_ones():
    shown = README.partition("**Speed**")[2].partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert len(shown) > 5 and set(shown) <= set((RESULTS / "bench" / "bench.md").read_text().splitlines())


def test_pages_errors_by_steps_are_the_kept_ones():
    kept = json.loads((RESULTS / "emergence.json").read_text())
    first, *_, last = kept["found"]["stage 1, hypercolumn"].values()
    shown = [first, last, *kept["found"]["LEAD stage 2"].values(), kept["untrained"]]
    numbers = [f"{each['cl_diff_error']:.1f}" for each in shown] + [f"{first['cl_diff_baseline']:.1f}"]
    within = [each["cl_same_error"] for by in kept["found"].values() for each in by.values()]
    numbers += [f"{min(within):.2f} to {max(within):.2f} px"]
    section = " ".join(STUDIES.partition("## When does correspondence appear?")[2].partition("\n## ")[0].split())
    assert [number for number in numbers if number not in section] == []


def test_readmes_landmark_models_are_the_measured_ones():
    folder, landmarks = RESULTS / "model", PAGES["lead_ray/landmarks"].read_text()
    rendered = (folder / "model.md").read_text().strip()
    names = ("synthetic", "300w", "mtfl", "resnet-50")
    assert {path.stem for path in folder.glob("*.json")} == set(names)
    assert rendered == markdown([json.loads((folder / f"{name}.json").read_text()) for name in names])
    assert all(table in landmarks for table in rendered.split("\n\n")), "a README.md is behind studies/results/model"


def test_pages_lead_somewhere():
    for page in PAGES.values():
        links = re.findall(r"\]\(([^)#:]*)(#[^)]*)?\)", page.read_text())
        for link, part in links:
            target = page.parent / link if link else page
            assert target.exists(), f"{page}: {link}"
            if part:
                heads = re.findall(r"(?m)^#+ (.*)$", target.read_text())
                slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
                assert part[1:] in slugs, f"{page}: {link}{part}"
        if page.parent != ROOT:
            assert str(page.relative_to(ROOT)) in README, f"README.md does not lead to {page}"


def test_tests_that_pages_name_are_there():
    named = re.findall(r"`(test_\w+\.py)::(?:(\w+)::)?(\w+)`", "".join(page.read_text() for page in PAGES.values()))
    assert len(named) > 15
    for file, group, name in named:
        source = (ROOT / "tests" / file).read_text()
        assert f"class {name}" in source or f"def {name}(" in source, (file, name)
        assert not group or f"class {group}" in source, (file, group)


def test_top_level_is_the_plan():
    names = {path.relative_to(ROOT).parts[0] for path in tracked()}
    visible = {name for name in names if not name.startswith(".")}
    assert visible <= {"lead_ray", "studies", "cluster", "tests", "pyproject.toml", "README.md", "LICENSE"}


def test_no_lock_file_no_registry_no_large_file():
    hosts = re.compile("|".join(("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "debian" + ".org")))
    for path in tracked():
        assert path.name not in ("uv.lock", "poetry.lock")
        assert path.stat().st_size < 8 * 2**20, path
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yaml", ".json", ".sh", ""):
            assert not hosts.search(path.read_text(errors="ignore")), path


def test_pinned_versions_have_no_addresses():
    pins = [
        line for line in (ROOT / "cluster" / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    ]
    assert pins and all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins)


def test_no_result_says_where_a_machine_keeps_its_files():
    absolute = re.compile(r"(?<![\w.)/<])/(?:home|root|Users|tmp|mnt|var|opt|work|scratch|usr)/\w")
    for path in RESULTS.rglob("*"):
        if path.suffix in (".json", ".md", ".csv", ".tex", ".html", ".txt"):
            assert not (found := absolute.search(path.read_text())), f"{path}: {found}"
