"""Tables by hand: every rendering, blank cells, what is bold, and text that looks like markup."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from lead_ray.reporting.cells import Cell, Column, Failed, Link, Printed, Row
from lead_ray.reporting.latex import latex
from lead_ray.reporting.tables import BOLD_RULE, PRINTED_RULE, Table

COLUMNS = [Column("matching", "px", "lower"), Column("regression", "% IOD", "lower", digits=1)]


def table(*rows, columns=COLUMNS, title="Errors", caption=""):
    return Table(title, columns, list(rows), caption)


FULL = table(
    Row("stage 2", "LEAD", [Cell(2.314, 0.04, 3), Cell(7.0, 0.3, 3)]),
    Row("stage 1", "LEAD", [Cell(2.5, 0.05, 3), None], note="3840 channels"),
    Row("mean face", "floors", [None, Cell(14.06, 0.02, 3)]),
    caption="Five points.",
)


def terminal(shown, width=100):
    """The lines and the bold pieces that a terminal shows."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(shown.rich())
    styled = console.export_text(styles=True, clear=False)
    return console.export_text().splitlines(), re.findall(r"\x1b\[1m([^\x1b]*)", styled)


def test_a_narrow_terminal_loses_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    FULL.show()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("stage 2", "mean face", "2.31 ± 0.04", "14.1 ± 0.0", "3840 channels"))


class Cells(HTMLParser):
    """Rows of (tag, attributes, text), and the text within <strong>."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.strong, self.inside = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if {"th", "td"} & set(self.inside):
            self.rows[-1][-1][2] += data
        if self.inside[-1] == "strong":
            self.strong.append(data)


def test_markdown_by_hand():
    assert FULL.markdown() == (
        "**Errors**\n\n"
        "|  | matching, px ↓ | regression, % IOD ↓ |  |\n"
        "| --- | ---: | ---: | --- |\n"
        "| *LEAD* |  |  |  |\n"
        "| stage 2 | **2.31 ± 0.04** | **7.0 ± 0.3** |  |\n"
        "| stage 1 | 2.50 ± 0.05 |  | 3840 channels |\n"
        "| *floors* |  |  |  |\n"
        "| mean face |  | 14.1 ± 0.0 |  |\n"
        f"\nFive points. Mean ± standard deviation, n = 3. Blank: not run. {BOLD_RULE}\n"
    )


def test_csv_by_hand():
    names = ["matching (px)", "regression (% IOD)"]
    heads = [name + part for name in names for part in ("", " std", " n")]
    assert list(csv.reader(io.StringIO(FULL.csv()))) == [
        ["group", "label", *heads, "note"],
        ["LEAD", "stage 2", "2.314", "0.04", "3", "7.0", "0.3", "3", ""],
        ["LEAD", "stage 1", "2.5", "0.05", "3", "", "", "", "3840 channels"],
        ["floors", "mean face", "", "", "", "14.06", "0.02", "3", ""],
    ]


def test_html_by_hand():
    cells = Cells(FULL.html())
    texts = [[text for _, _, text in row] for row in cells.rows]
    assert texts == [
        ["", "matchingpx ↓", "regression% IOD ↓"],
        ["LEAD"],
        ["stage 2", "2.31 ± 0.04", "7.0 ± 0.3"],
        ["stage 13840 channels", "2.50 ± 0.05", ""],
        ["floors"],
        ["mean face", "", "14.1 ± 0.0"],
    ]
    assert cells.strong == ["2.31", "7.0"]
    assert FULL.html().count("<tbody>") == 2, "a rule parts the groups"


def test_html_headers_have_a_scope():
    scopes = [(tag, attributes.get("scope")) for row in Cells(FULL.html()).rows for tag, attributes, _ in row]
    assert {scope for tag, scope in scopes if tag == "th"} == {"col", "row", "rowgroup"}


def test_terminal_by_hand():
    lines, bold = terminal(FULL)
    rows = [" ".join(line.split()) for line in lines]
    for expected in ("LEAD", "stage 2 2.31 ± 0.04 7.0 ± 0.3", "stage 1 2.50 ± 0.05", "mean face 14.1 ± 0.0"):
        assert expected in rows
    assert [text.strip() for text in bold if "±" in text] == ["2.31 ± 0.04", "7.0 ± 0.3"]


def test_terminal_keeps_numbers_whole_when_it_is_narrow():
    row = Row("a label that is much too long for the space", "g", [Cell(10.91, 0.55, 3), Cell(8.2, 0.4, 3)])
    lines, _ = terminal(table(row), width=44)
    assert any("10.91 ± 0.55" in line and "8.2 ± 0.4" in line for line in lines)


def test_means_stand_under_means():
    shown = table(Row("a", "", [Cell(1.0, 0.1), None]), Row("b", "", [Cell(12.0), None]))
    lines, _ = terminal(shown)
    ends = [re.search(r"\d\.\d\d", line).end() for line in lines if re.search(r"^ ?[ab] ", line)]
    assert len(ends) == 2
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("first", "second", "better", "bold"),
    [
        (Cell(1.0, 0.1, 3), Cell(1.6, 0.2, 3), "lower", 0),
        (Cell(1.0, 0.1, 3), Cell(1.6, 0.2, 3), "higher", 1),
        (Cell(1.0, 0.1, 3), Cell(1.2, 0.2, 3), "lower", None),  # three seeds cannot tell
        (Cell(1.0, 0.1, 3), Cell(1.6, 0.2, 3), None, None),
        (Cell(1.0, 0.1, 3), Cell(9.0), "lower", None),  # not known
        (Cell(1.0, 0.1, 3), None, "lower", None),  # nothing to compare with
    ],
)
def test_bold_rule(first, second, better, bold):
    shown = table(Row("a", "", [first]), Row("b", "", [second]), columns=[Column("x", better=better)])
    assert shown.best == ({} if bold is None else {0: shown.rows[bold]})
    assert (BOLD_RULE in shown.notes) == (bold is not None)


PRINTED = table(
    Row(
        "ours",
        "",
        [Cell(2.5, 0.5, 3), None],
        printed=[Printed(2.0), Printed(7.0, 0.25)],
        links=[Link("0a1b", "r/0a1b")],
    ),
    Row("lost", "", [Failed("the loss is not finite."), None], printed=[None, Printed(6.0)]),
)


def test_beside_what_was_printed():
    lines = PRINTED.markdown().splitlines()
    assert lines[4] == "| ours | 2.50 ± 0.50 [2.00, +0.50] | [7.0 ± 0.2] | [0a1b](<r/0a1b>) |"
    assert lines[5] == "| lost | failed | [6.0] |  |"
    assert "Failed: lost, matching: the loss is not finite." in PRINTED.notes
    assert PRINTED_RULE in PRINTED.notes
    texts = [[text for _, _, text in row] for row in Cells(PRINTED.html()).rows]
    assert texts[1:] == [["ours0a1b", "2.50 ± 0.50[2.00, +0.50]", "[7.0 ± 0.2]"], ["lost", "failed", "[6.0]"]]
    assert '<a href="r/0a1b">0a1b</a>' in PRINTED.html()
    assert any("2.50 ± 0.50 [2.00, +0.50]" in line for line in terminal(PRINTED)[0])


def test_csv_beside_what_was_printed():
    head, ours, lost = csv.reader(io.StringIO(PRINTED.csv()))
    ends = ["", " std", " n", " paper", " paper std", " difference"]
    assert head == ["group", "label", *(f"matching (px){end}" for end in ends),
                    *(f"regression (% IOD){end}" for end in ends), "note", "runs"]  # fmt: skip
    assert ours == ["", "ours", "2.5", "0.5", "3", "2.0", "", "0.5", "", "", "", "7.0", "0.25", "", "", "0a1b"]
    assert lost == ["", "lost", "failed", "", "", "", "", "", "", "", "", "6.0", "", "", "", ""]


def test_printed_values_are_as_many_as_columns():
    with pytest.raises(ValueError, match="row 'a' must have 2 printed values or none, got 1"):
        table(Row("a", "", [None, None], printed=[None]))


def test_latex_by_hand():
    lines = latex(FULL).splitlines()
    assert lines[4:8] == [
        r"\toprule",
        r" & matching, px $\downarrow$ & regression, \% IOD $\downarrow$ \\",
        r"\midrule",
        r"\multicolumn{3}{l}{\emph{LEAD}} \\",
    ]
    assert lines[8] == r"stage 2 & \textbf{2.31 $\pm$ 0.04} & \textbf{7.0 $\pm$ 0.3} \\"
    assert lines[9] == r"stage 1 & 2.50 $\pm$ 0.05 &  \\"
    assert r"2.50 $\pm$ 0.50 {\footnotesize [2.00, $+$0.50]}" in latex(PRINTED)


def test_latex_text_is_never_markup():
    hostile = "a_b & 5% #1 {x} ~^\\ $"
    escaped = latex(table(Row(hostile, "", [None, None]), title=""))
    assert r"a\_b \& 5\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$ & " in escaped


def test_a_cell_that_was_not_run_is_blank_everywhere():
    shown = table(Row("a", "", [None, None]))
    assert shown.markdown().splitlines()[4] == "| a |  |  |"
    assert shown.csv().splitlines()[1] == ",a,,,,,,,"
    assert [text for _, _, text in Cells(shown.html()).rows[1]] == ["a", "", ""]
    assert "0" not in "".join(terminal(shown)[0])


def test_n_is_said_once_or_where_it_differs():
    def rows(*counts):
        return [Row(str(i), "", [Cell(1.0, 0.1, count)]) for i, count in enumerate(counts)]

    same, mixed = (table(*rows(*counts), columns=[Column("x")]) for counts in ((3, 3), (3, 5)))
    assert same.notes == "Mean ± standard deviation, n = 3."
    assert "n = " not in same.html()
    assert mixed.notes == "Mean ± standard deviation."
    assert "1.00 ± 0.10 (n = 5)" in mixed.markdown()
    one_more = table(*rows(3, 3), Row("one run", "", [Cell(2.0, n=1)]), columns=[Column("x")])
    assert "n = 3" in one_more.notes
    assert "2.00 (n = 1)" in one_more.markdown()


def test_text_is_never_markup():
    hostile = '<b>&"|*_`[red]\nx'
    shown = table(Row(hostile, hostile, [Cell(1.0)], hostile), columns=[Column(hostile, hostile)], title=hostile)
    cells = Cells(shown.html())
    assert cells.rows[2][0][2] == hostile * 2
    lines = shown.markdown().splitlines()
    assert lines[0] == r'**\<b>&"\|\*\_\`\[red] x**'
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in lines[2:6])
    assert any("[red]" in line for line in terminal(shown)[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": float("nan")}, "cell.mean must be finite, got nan; a cell that was not run is None"),
        ({"mean": 1.0, "std": -0.1}, "cell.std must be finite and >= 0, or None"),
        ({"mean": 1.0, "n": 0}, "cell.n must be >= 1"),
    ],
)
def test_a_cell_says_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        Cell(**fields)


def test_a_row_needs_a_value_for_every_column():
    with pytest.raises(ValueError, match="row 'a' must have 2 values, None if not run, got 1"):
        table(Row("a", "", [None]))
