"""What stands in a table: measured values, what a publication printed in their place, and which of them differ.

Two values differ if Welch's t-test, which takes neither equal spreads nor equal numbers of values for granted, gives
chance less than 5 % to a difference as large (two-sided). It needs two values of each, and their spread; values of one
trained network, which differ in warps or annotated images alone, are not compared with those of another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ARROWS = {"lower": "↓", "higher": "↑", None: ""}
LEVEL = 0.05
STRIPS = 2000  # of Simpson's rule; exact to 1e-6 for up to some 10,000 values


@dataclass(frozen=True)
class Cell:
    """A measured value.

    Raises: ValueError if a number is not finite, std is negative or n is below 1.
    """

    mean: float
    std: float | None = None
    """Standard deviation over the n values; None if it is not known."""
    n: int | None = None
    """Values, such as seeds, that the mean is over."""
    of_one: bool = False
    """Whether they are all of one trained network, so that their spread says nothing of the next one."""

    def __post_init__(self):
        if not math.isfinite(self.mean):
            raise ValueError(f"cell.mean must be finite, got {self.mean}; a cell that was not run is None")
        if self.std is not None and not 0 <= self.std < math.inf:
            raise ValueError(f"cell.std must be finite and >= 0, or None if unknown, got {self.std}")
        if self.n is not None and self.n < 1:
            raise ValueError(f"cell.n must be >= 1, or None if unknown, got {self.n}")


@dataclass(frozen=True)
class Failed:
    """What was tried and gave no value."""

    reason: str


@dataclass(frozen=True)
class Printed:
    """What a publication says in the place of a measured value."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Column:
    """What a column holds."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    """Which values are good; None: neither, and no value is marked."""
    digits: int = 2
    """After the decimal point."""

    @property
    def scale(self) -> str:
        """Unit and an arrow that points to what is better."""
        return " ".join(filter(None, (self.unit, ARROWS[self.better])))


@dataclass(frozen=True)
class Link:
    """A name, and where what it names is to be found; None where the page's readers do not have it."""

    text: str
    address: str | None = None


@dataclass(frozen=True)
class Row:
    """One method, or whatever is compared."""

    label: str
    group: str
    """Rows that follow each other in one group stand together, between rules."""
    values: Sequence[Cell | Failed | None]
    """One per column; None: not run."""
    note: str = ""
    printed: Sequence[Printed | None] = ()
    """One per column if there is any: what the values are compared with."""
    links: Sequence[Link] = ()
    """What the values came from."""

    def cell(self, index: int) -> Cell | None:
        """The measured value of a column; None if there is none."""
        value = self.values[index]
        return value if isinstance(value, Cell) else None

    def beside(self, index: int) -> Printed | None:
        """What was printed in its place."""
        return self.printed[index] if self.printed else None

    def numbers(self, index: int) -> list[float | int | str | None]:
        """Measured mean, standard deviation and n; printed mean and standard deviation; the difference of the means."""
        cell, beside = self.cell(index), self.beside(index)
        own = (cell.mean, cell.std, cell.n) if cell else ("failed" if self.values[index] else None, None, None)
        printed = (beside.mean, beside.std) if beside else (None, None)
        return [*own, *printed, cell.mean - beside.mean if cell and beside else None]


def welch(first: Cell, second: Cell) -> float | None:
    """The chance of means at least so far apart where there is no difference; None where it cannot be told.

    Range: [0, 1]. Source: Welch, Biometrika 34 (1947); degrees of freedom after Satterthwaite.
    """
    if any(cell.std is None or (cell.n or 0) < 2 or cell.of_one for cell in (first, second)):
        return None
    a, b = first.std**2 / first.n, second.std**2 / second.n
    if a + b == 0:
        return float(first.mean == second.mean)
    freedom = (a + b) ** 2 / (a**2 / (first.n - 1) + b**2 / (second.n - 1))
    return both_tails(abs(first.mean - second.mean) / math.sqrt(a + b), freedom)


def both_tails(t: float, freedom: float) -> float:
    """P(|T| >= t) of Student's distribution, for t >= 0 and freedom >= 1.

    With T = sqrt(freedom) / tan(u ** 2), the density of u is proportional to u sin(u ** 2) ** (freedom - 1), which
    Simpson's rule takes well for any freedom.
    """
    step = math.sqrt(math.pi / 2 - math.atan(t / math.sqrt(freedom))) / STRIPS
    places = [i * step for i in range(STRIPS + 1)]
    heights = [2 * u * math.sin(u * u) ** (freedom - 1) for u in places]
    area = step / 3 * (heights[0] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]) + heights[-1])
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return min(1.0, area / whole)


def ahead(cells: Sequence[Cell | None], better: Literal["lower", "higher"]) -> int | None:
    """The place of the best of at least two values if it differs from each of the others; else None."""
    known = [(place, cell) for place, cell in enumerate(cells) if cell is not None]
    if len(known) < 2:
        return None
    sign = 1 if better == "lower" else -1
    best, first = min(known, key=lambda item: sign * item[1].mean)
    chances = [welch(first, other) for place, other in known if place != best]
    return best if all(chance is not None and chance < LEVEL for chance in chances) else None
