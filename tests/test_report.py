"""The page: valid, whole in itself, readable without its pictures, and shown by a browser."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from lead_ray.figures import curves, faces
from lead_ray.reporting import report
from lead_ray.reporting.report import Page, Section
from lead_ray.reporting.tables import Cell, Column, Row, Table

VOID = {"meta", "img", "br", "link"}


class Parsed(HTMLParser):
    """Elements as (tag, attributes), visible text by tag; fails on tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag):
        return [text for name, text in self.texts if name == tag]


def photograph():
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    points = torch.full((2, 1, 2), 40.0)
    return faces.landmarks(images, points, points + 3, torch.tensor([3.0, 4.0]))


def curve():
    return curves.loss_curves({"stage 1": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]})


TABLE = Table("Errors", [Column("matching", "px", "lower")], [Row("a & b", "LEAD", [Cell(1.0, 0.1, 3)])])


@pytest.fixture(scope="module")
def page():
    return Page(
        "LEAD <in> five & more minutes",
        "First.\n\nSecond.",
        [("images", "2,000"), ("time", "<1 min")],
        [
            Section("Errors", "Run `a < b` again.", TABLE, "On 400 images."),
            Section("Faces", "", photograph(), 'Rings: "true".'),
            Section("Training", "", curve()),
            Section("Words only", "That is all."),
        ],
    )


@pytest.fixture(scope="module")
def parsed(page):
    return Parsed(report.html(page))


def test_the_page_is_html5_with_what_it_needs(page, parsed):
    assert report.html(page).startswith('<!DOCTYPE html>\n<html lang="en">')
    assert parsed.said("title") == ["LEAD <in> five & more minutes"]
    assert {"charset": "utf-8"} in parsed.all("meta")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.all("meta")
    assert len(parsed.all("main")) == 1


def test_headings_are_in_order(parsed):
    headings = [(tag, text) for tag, text in parsed.texts if re.fullmatch(r"h\d", tag)]
    names = ["Errors", "Faces", "Training", "Words only"]
    assert headings == [("h1", "LEAD <in> five & more minutes"), *(("h2", name) for name in names)]


def test_text_is_escaped_and_code_is_marked(parsed):
    assert parsed.said("dd") == ["2,000", "<1 min"]
    assert parsed.said("code") == ["a < b"]
    assert parsed.said("p")[:2] == ["First.", "Second."]
    assert "a & b" in parsed.said("th")
    assert 'Rings: "true".' in parsed.said("figcaption")


def test_a_table_is_captioned_with_its_notes(parsed):
    assert "On 400 images. Mean ± standard deviation, n = 3." in parsed.said("figcaption")


def test_nothing_comes_from_elsewhere(page, parsed):
    for _, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in parsed.elements}
    style = "".join(parsed.said("style"))
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in report.html(page)


def test_pictures_are_inside_and_said_in_words(parsed):
    pictures = parsed.all("img")
    kinds = [re.match(r"data:image/([a-z+]+);base64,", picture["src"])[1] for picture in pictures]
    assert kinds == ["jpeg", "svg+xml"]
    starts = [base64.b64decode(picture["src"].split(",")[1])[:5] for picture in pictures]
    assert starts[0][:2] == b"\xff\xd8"
    assert starts[1] == b"<?xml"
    assert all(picture["alt"] and int(picture["width"]) > 0 for picture in pictures)
    assert pictures[0]["alt"].startswith("2 faces with true landmarks as rings")


@pytest.mark.parametrize("figure", [photograph, curve])
def test_the_same_figure_gives_the_same_bytes(figure):
    assert report.data_uri(figure()) == report.data_uri(figure())


def test_write_is_the_page_and_replaces_what_was_there(page, tmp_path):
    path = tmp_path / "new" / "page.html"
    report.write(Page("old", "old"), path)
    report.write(page, path)
    assert path.read_text(encoding="utf-8") == report.html(page)
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_a_page_may_hold_words_only():
    parsed = Parsed(report.html(Page("Title", "Lead.")))
    assert parsed.all("dl") == []
    assert parsed.all("section") == []


@pytest.mark.browser
def test_a_browser_shows_the_page(page, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on the path")
    path = tmp_path / "page.html"
    report.write(page, path)
    # The browser itself says what it made of the page: sizes of pictures that it could decode, and overflow.
    probe = """<script>addEventListener("load", () => { document.body.dataset.seen = [
        ...[...document.images].map(image => image.complete && image.naturalWidth > 0),
        document.documentElement.scrollWidth <= innerWidth, document.compatMode].join(" "); })</script>"""
    path.write_text(path.read_text(encoding="utf-8") + probe, encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    # The narrowest window that a headless browser grants is about 500 pixels wide.
    command = [
        chromium,
        *quiet,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=500,800",
        "--dump-dom",
    ]
    shown = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    assert re.search(r'data-seen="([^"]*)"', shown.stdout)[1] == "true true true CSS1Compat"
