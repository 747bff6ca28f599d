"""What a person does on the page of lead-ray annotate, for tests that drive it in a browser."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager

from playwright.sync_api import expect

PATIENCE = 120_000  # milliseconds: a busy machine is slow, and that is not what is tested


@contextmanager
def serving(images, project, *, port=0, model=None):
    """The command itself, as a process; gives it and the address that it prints."""
    options = ["--images", str(images), "--project", str(project), "--port", str(port)]
    command = [sys.executable, "-u", "-m", "lead_ray.annotate", *options, *(["--model", str(model)] if model else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(filter(None, (re.search(r"http://\S+", line) for line in server.stdout))).group()
            yield server, address
        finally:
            server.terminate()


@contextmanager
def tab(browser, address, *, width=1280, height=800, touch=False, context=None):
    own = context or browser.new_context(viewport={"width": width, "height": height}, has_touch=touch)
    page = own.new_page()
    page.set_default_timeout(PATIENCE)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    yield page
    page.close()
    if context is None:
        own.close()
    assert not faults


def make_face(page):
    page.get_by_role("button", name="Five points of a face").click()
    page.get_by_role("button", name="Save points").click()
    expect(page.locator("#name")).not_to_be_empty()
    loaded(page)


def loaded(page):
    """The photograph is there: its pixels too."""
    page.locator("#photo").evaluate("photo => photo.decode()")


def on_screen(page, x, y):
    """Where a pixel of the photograph lies in the window."""
    script = """([x, y]) => {
      const photo = document.getElementById("photo"), box = photo.getBoundingClientRect();
      const scale = box.width / parseFloat(photo.style.width);
      return [box.left + (x + 0.5) * scale, box.top + (y + 0.5) * scale];
    }"""
    return page.evaluate(script, [x, y])


def place(page, point, x, y):
    """Choose a point in the list, and click where it is; Alt: also where a proposal is drawn."""
    page.locator("#points button").nth(point).click()
    page.keyboard.down("Alt")
    page.mouse.click(*on_screen(page, x, y))
    page.keyboard.up("Alt")


def states(page):
    return [row.get_attribute("aria-label").split(": ")[1] for row in page.locator("#points button").all()]


def settled(page):
    expect(page.locator("#saved")).to_have_text("Saved")


def replayed(project):
    """Image -> point -> [x, y, mark], read from the journal line by line."""
    found = {}
    for line in (project / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "points":
            for point in entry["points"]:
                found.setdefault(entry["image"], {})[point["id"]] = [point["x"], point["y"], point["mark"]]
    return found


def next_image(page):
    before = page.inner_text("#name")
    page.keyboard.press("n")
    expect(page.locator("#name")).not_to_have_text(before)
    loaded(page)
