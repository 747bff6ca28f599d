"""One self-contained HTML page: text, tables and pictures, nothing from elsewhere, no script."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from lead_ray.artefacts import atomic
from lead_ray.reporting.tables import Table

DPI = 192  # two pixels of the picture for one of the page


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and one table or figure."""

    heading: str
    text: str = ""
    """Blank lines part paragraphs, backticks mark code."""
    content: Table | Figure | None = None
    """A figure's label, set_label(), is what is read to those who cannot see it."""
    caption: str = ""


@dataclass(frozen=True)
class Page:
    """What write() writes."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]] = ()
    """Names and values, such as ("images", "2,000")."""
    sections: Sequence[Section] = ()


def html(page: Page) -> str:
    """The whole page."""
    facts = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.facts]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{escape(page.title)}</h1>
{_paragraphs(page.lead, "lead")}
{f"<dl>{''.join(facts)}</dl>" if facts else ""}
</header>
{"".join(_section(section) for section in page.sections)}
</main>
</body>
</html>
"""


def write(page: Page, path: Path) -> None:
    """Write the page atomically."""
    text = html(page)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def data_uri(figure: Figure) -> str:
    """The figure as an address that holds it: SVG of drawings, JPEG of pictures; always the same bytes."""
    out = io.BytesIO()
    if any(panel.images for panel in figure.axes):
        kind = "jpeg"
        options = {"quality": 88, "subsampling": 0, "optimize": True, "progressive": True}
        figure.savefig(out, format="jpeg", dpi=DPI, pil_kwargs=options)
    else:
        kind = "svg+xml"
        with matplotlib.rc_context({"svg.hashsalt": "lead-ray"}):
            figure.savefig(out, format="svg", metadata={"Date": None})
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def _section(section: Section) -> str:
    caption = f"<figcaption>{_inline(section.caption)}</figcaption>" if section.caption else ""
    content = section.content
    # A wide table or picture scrolls by itself on a phone, with the keyboard too.
    scroll = f'class="scroll" tabindex="0" role="region" aria-label="{escape(section.heading)}"'
    if isinstance(content, Table):
        notes = " ".join(filter(None, (section.caption, content.notes)))
        caption = f"<figcaption>{_inline(notes)}</figcaption>" if notes else ""
        body = f"<figure><div {scroll}>{content.html()}</div>{caption}</figure>"
    elif content is not None:
        width, height = (round(96 * inches) for inches in content.get_size_inches())
        alt = escape(content.get_label() or section.caption or section.heading, quote=True)
        image = f'<img src="{data_uri(content)}" alt="{alt}" width="{width}" height="{height}">'
        body = f'<figure><div {scroll}><div class="card">{image}</div></div>{caption}</figure>'
    else:
        body = caption and f"<figure>{caption}</figure>"
    return f"<section>\n<h2>{escape(section.heading)}</h2>\n{_paragraphs(section.text)}\n{body}\n</section>\n"


def _paragraphs(text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return "\n".join(f"<p{mark}>{_inline(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    """Escaped, and `code` in its own type."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


STYLE = """
:root { color-scheme: light dark;
  --ink: #1d1d1f; --soft: #5c5f66; --line: #d9dbe0; --paper: #fff; --tint: #f2f3f5; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --soft: #a3a7b0; --line: #3a3d44; --paper: #16171a; --tint: #24262b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 3rem 20px 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .75rem; letter-spacing: -.02em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3.25rem 0 .4rem; letter-spacing: -.01em; }
p { margin: .5rem 0; max-width: 44rem; }
.lead { font-size: 1.125rem; color: var(--soft); }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere;
  background: var(--tint); padding: .15em .4em; border-radius: 4px; }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2.25rem; margin: 1.75rem 0 0; padding: .9rem 0;
  border: solid var(--line); border-width: 1px 0; }
dt { font-size: .8125rem; color: var(--soft); }
dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 1.25rem 0 0; }
figcaption { margin-top: .7rem; font-size: .875rem; line-height: 1.5; color: var(--soft); max-width: 46rem; }
.scroll { overflow-x: auto; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  min-width: min-content; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .3rem 0 .3rem 2rem; text-align: right; vertical-align: baseline; font-weight: 400; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td { white-space: nowrap; }
thead > tr > * { border-bottom: 1px solid var(--ink); vertical-align: bottom; line-height: 1.35; }
small { display: block; font-size: .8125rem; color: var(--soft); }
tbody + tbody > tr:first-child > * { border-top: 1px solid var(--line); }
tbody > tr:last-child > * { padding-bottom: .6rem; }
.group th { color: var(--soft); font-size: .8125rem; padding-top: .6rem; padding-bottom: 0; }
.std { display: inline-block; text-align: left; color: var(--soft); white-space: pre; }
@media screen and (max-width: 600px) {
  main { padding-top: 1.75rem; }
  h1 { font-size: 1.65rem; }
  th, td { padding-left: 1.1rem; }
  .card img { max-width: max(100%, 640px); }
}
@media print {
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .card { border: 0; padding: 0; }
}
"""
