"""Tables as LaTeX, for papers: booktabs, one line a row."""

from lead_ray.reporting.cells import Row
from lead_ray.reporting.tables import Table

SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escaped(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def latex(table: Table) -> str:
    """A table environment; needs \\usepackage{booktabs}."""
    heads = " & ".join(["", *(escaped(f"{column.name}, {column.scale}".strip(", ")) for column in table.columns)])
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(' '.join(filter(None, (table.title + '.' if table.title else '', table.notes))))}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        rf"{heads} \\",
    ]
    for group, rows in table.groups:
        lines.append(r"\midrule")
        if group:
            lines.append(rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\emph{{{escaped(group)}}}}} \\")
        for row in rows:
            cells = (_cell(table, row, index) for index in range(len(table.columns)))
            lines.append(rf"{' & '.join([escaped(row.label), *cells])} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _cell(table: Table, row: Row, index: int) -> str:
    measured = escaped("".join(table.parts(row, index)))
    if table.best.get(index) is row:
        measured = rf"\textbf{{{measured}}}"
    compared = escaped(table.compared(row, index)).replace(", -", ", $-$").replace(", +", ", $+$")
    # The braces keep LaTeX from reading [...] at the start of a line as an option of the \\ before it.
    return " ".join(filter(None, (measured, compared and rf"{{\footnotesize [{compared}]}}")))
