"""The page of lead-ray annotate in Chromium, driven as a person would: by clicks on the photograph and by keys."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

import lead_ray
from lead_ray.data import synthetic

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from annotate_page import (  # noqa: E402 (imports playwright)
    PATIENCE,
    expect,
    make_face,
    next_image,
    on_screen,
    place,
    replayed,
    serving,
    settled,
    states,
    tab,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
MODEL = Path(lead_ray.__file__).parent / "models" / "synthetic-faces.safetensors"
FACE = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """A folder of twelve faces, and the true points of each."""
    root = tmp_path_factory.mktemp("faces")
    synthetic.write(root, images=12, identities=12, seed=3, val_share=0.0, test_share=0.0, mafl_train=0, mafl_test=0)
    lines = (root / "Anno" / "list_landmarks_align_celeba.txt").read_text().splitlines()[2:]
    rows = (line.split() for line in lines)
    truth = {name: [tuple(map(float, pair)) for pair in zip(xy[::2], xy[1::2], strict=True)] for name, *xy in rows}
    return root / "Img" / "img_align_celeba", truth


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def test_from_a_schema_to_an_export(browser, faces, tmp_path):
    images, truth = faces
    with serving(images, tmp_path / "p", model=MODEL) as (_, address), tab(browser, address) as page:
        make_face(page)
        assert states(page) == ["not placed"] * 5
        clicked = {}
        for number in range(5):
            name = page.inner_text("#name")
            clicked[name] = truth[name]
            for point, (x, y) in enumerate(truth[name]):
                place(page, point, x, y)
            assert states(page) == ["placed"] * 5
            if number < 4:
                next_image(page)
        settled(page)
        assert len(clicked) == 5
        for image, points in replayed(tmp_path / "p").items():
            for point, (x, y, mark) in points.items():
                assert mark == 2 and abs(x - clicked[image][point][0]) < 0.5 and abs(y - clicked[image][point][1]) < 0.5

        page.reload()  # the same image, and what was undone before can be undone after
        expect(page.locator(".dot")).to_have_count(5)
        assert page.inner_text("#name") == name
        page.keyboard.press("Control+z")
        expect(page.locator(".dot")).to_have_count(4)
        page.keyboard.press("Control+y")
        expect(page.locator(".dot")).to_have_count(5)
        page.keyboard.press("o")
        assert states(page)[4] == "occluded"
        page.locator("#points button").nth(0).click()
        page.keyboard.press("m")
        assert states(page)[0] == "missing"

        expect(page.locator("#status")).to_contain_text("Learned from 5 images")
        next_image(page)
        page.get_by_role("button", name="Accept 5 proposals").wait_for()
        assert page.locator(".hollow").count() == 5
        fresh = page.inner_text("#name")
        page.keyboard.press("Enter")
        assert states(page) == ["placed"] * 5
        page.get_by_role("button", name="Next image").wait_for()
        settled(page)
        off = [
            abs(x - tx) + abs(y - ty)
            for (x, y, _), (tx, ty) in zip(replayed(tmp_path / "p")[fresh].values(), truth[fresh], strict=True)
        ]
        assert sum(off) / 5 < 40  # pixels of 178: proposals are of this face, not of the corner of the picture

        page.get_by_role("button", name="Export").click()
        page.get_by_role("button", name="COCO keypoints").click()
        page.get_by_text("Written:").wait_for()
        expect(page.locator("#error-now")).to_contain_text("%")
    coco = json.loads((tmp_path / "p" / "exports" / "coco.json").read_text())
    assert len(coco["annotations"]) == 6 and coco["categories"][0]["keypoints"] == list(FACE)
    keypoints = {each["id"]: each["file_name"] for each in coco["images"]}
    last = next(each for each in coco["annotations"] if keypoints[each["image_id"]] == name)["keypoints"]
    assert last[2] == 0 and last[14] == 1  # missing, occluded


def test_a_server_killed_in_the_middle_loses_no_click(browser, faces, tmp_path):
    images, truth = faces
    with serving(images, tmp_path / "p") as (server, address), tab(browser, address) as page:
        make_face(page)
        name = page.inner_text("#name")
        for point in range(3):
            place(page, point, *truth[name][point])
        os.kill(server.pid, signal.SIGKILL)  # whatever of the three was not answered yet, the page still has
        server.wait()
        for point in (3, 4):
            place(page, point, *truth[name][point])
        page.get_by_text("not sent: the server does not answer").wait_for()
        port = int(re.search(r":(\d+)/", address).group(1))
        with serving(images, tmp_path / "p", port=port) as (_, again):
            assert again == address  # the open tab goes on
            settled(page)
            page.reload()
            expect(page.locator(".dot")).to_have_count(5)
        found = replayed(tmp_path / "p")[name]
    assert [found[point][:2] for point in range(5)] == [
        [pytest.approx(x, abs=0.5), pytest.approx(y, abs=0.5)] for x, y in truth[name]
    ]


def test_two_tabs_keep_each_others_points(browser, faces, tmp_path):
    images, _ = faces
    with serving(images, tmp_path / "p") as (_, address), tab(browser, address) as one:
        make_face(one)
        with tab(browser, one.url, context=one.context) as other:
            expect(other.locator("#points button")).to_have_count(5)
            expect(other.locator("#name")).not_to_be_empty()
            assert other.inner_text("#name") == one.inner_text("#name")
            place(one, 0, 40, 50)
            place(other, 1, 100, 60)
            for page in (one, other):
                expect(page.locator(".dot")).to_have_count(2)
            place(other, 2, 70, 90)
            expect(one.locator(".dot")).to_have_count(3)
            one.locator("#points button").nth(2).click()
            one.keyboard.press("ArrowRight")  # both have said something of this point: the later one counts
            settled(one)
            settled(other)
            other.keyboard.press("Control+z")  # its own last edit, which is no longer what is there
            other.get_by_text("changed elsewhere").wait_for()
        found = replayed(tmp_path / "p")
    (points,) = found.values()
    assert [round(points[point][0]) for point in range(3)] == [40, 100, 71]


def test_a_box_around_the_object(browser, tmp_path):
    """Two people in one photograph: a box says which is meant. Draw, change, undo, take away, draw, export."""
    (tmp_path / "images").mkdir()
    photograph = Image.new("RGB", (360, 218))
    for person in (0, 1):
        face = synthetic.render(seed=7, identity=person, index=0)
        photograph.paste(Image.fromarray(face.pixels), (181 * person, 0))
    photograph.save(tmp_path / "images" / "two.png")
    with serving(tmp_path / "images", tmp_path / "p") as (_, address), tab(browser, address) as page:
        make_face(page)

        def drag(*ways):
            page.mouse.move(*on_screen(page, *ways[0]))
            page.mouse.down()
            for way in ways[1:]:
                page.mouse.move(*on_screen(page, *way), steps=4)
            page.mouse.up()

        def box():
            entries = map(json.loads, (tmp_path / "p" / "journal.jsonl").read_text().splitlines())
            drawn = [entry["box"] for entry in entries if entry["kind"] == "box"][-1]
            return drawn and [round(side) for side in drawn]

        page.keyboard.press("b")
        expect(page.locator("#target")).to_contain_text("Drag a box around the object")
        drag((340, 200), (200, 20))
        expect(page.locator("#box")).to_have_attribute("aria-pressed", "false")  # the next click places a point
        settled(page)
        assert box() == [200, 20, 140, 180]
        drag((340, 120), (350, 120))  # its right side
        settled(page)
        assert box() == [200, 20, 150, 180]
        for point, (x, y) in enumerate(face.landmarks_5):
            place(page, point, 181 + float(x), float(y))
        assert states(page) == ["placed"] * 5
        for _ in range(6):  # five points and the last change
            page.keyboard.press("Control+z")
        settled(page)
        assert box() == [200, 20, 140, 180] and states(page) == ["not placed"] * 5
        for _ in range(6):
            page.keyboard.press("Control+y")
        settled(page)
        assert box() == [200, 20, 150, 180] and states(page) == ["placed"] * 5
        page.get_by_role("button", name="Box").click()
        page.keyboard.press("Backspace")
        expect(page.locator("rect.box")).to_have_count(0)
        settled(page)
        assert box() is None
        page.keyboard.press("Control+z")
        page.reload()
        expect(page.locator("rect.box")).to_have_count(1)
        settled(page)
        page.get_by_role("button", name="Export").click()
        page.get_by_role("button", name="COCO keypoints").click()
        page.get_by_text("Written:").wait_for()
    (annotation,) = json.loads((tmp_path / "p" / "exports" / "coco.json").read_text())["annotations"]
    assert [round(side) for side in annotation["bbox"]] == [200, 20, 150, 180] and "lead_ray" not in annotation


def test_fingers_place_and_move_on_a_tablet(browser, faces, tmp_path):
    images, _ = faces
    with (
        serving(images, tmp_path / "p") as (_, address),
        tab(browser, address, width=820, height=1180, touch=True) as page,
    ):
        make_face(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.touchscreen.tap(*on_screen(page, 60, 100))
        expect(page.locator(".dot")).to_have_count(1)
        finger = page.context.new_cdp_session(page)

        def touch(kind, *points):
            places = [dict(zip("xy", on_screen(page, *point), strict=True)) for point in points]
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

        touch("touchStart", (110, 110))
        page.locator("#loupe").wait_for(
            state="visible"
        )  # the finger rests: a magnifier, and the point is not placed yet
        assert page.locator(".dot").count() == 1
        touch("touchMove", (100, 104))
        touch("touchEnd")
        expect(page.locator(".dot")).to_have_count(2)
        scale = page.evaluate("document.getElementById('photo').getBoundingClientRect().width")
        touch("touchStart", (60, 60), (110, 60))
        touch("touchMove", (40, 60), (130, 60))
        touch("touchEnd")
        assert page.evaluate("document.getElementById('photo').getBoundingClientRect().width") > 1.3 * scale
        settled(page)
    (points,) = replayed(tmp_path / "p").values()
    assert [round(value) for value in points[0][:2]] == [60, 100]
    assert [round(value) for value in points[1][:2]] == [100, 104]
