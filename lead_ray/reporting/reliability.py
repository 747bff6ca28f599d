"""A picture of how far confidences can be believed."""

from math import sqrt
from typing import Any

from matplotlib.figure import Figure

from lead_ray.reporting import drawing as draw


def figure(measured: dict[str, Any], meaning: str) -> Figure:
    """Confidence that was stated against the share that was right, with its standard error; a dot a bin.

    Measured: Reliability.to_json(). Meaning: what a confidence is the probability of.
    """
    picture = Figure(figsize=(4.2, 4.4), facecolor="white", layout="constrained")
    panel = picture.subplots()
    panel.plot([0, 1], [0, 1], color=draw.FAINT, linewidth=1.2, zorder=1)
    total = sum(measured["counts"])
    shares = zip(measured["found"], measured["counts"], strict=True)
    doubt = [sqrt(share * (1 - share) / count) for share, count in shares]
    style = {"color": draw.BLUE, "linewidth": 1.4, "markersize": 6, "elinewidth": 1, "capsize": 0}
    panel.errorbar(measured["said"], measured["found"], yerr=doubt, fmt="o-", **style)
    panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    draw.plain_axes(panel)
    panel.set_xlabel("confidence", fontsize=draw.MEDIUM, color=draw.GREY)
    panel.set_ylabel("share that was right", fontsize=draw.MEDIUM, color=draw.GREY)
    title = f"calibration error {measured['expected_error']:.3f}, {total:,} points"
    panel.set_title(title, loc="left", fontsize=draw.LARGE, color=draw.INK, fontweight="bold")
    picture.set_label(f"Reliability of the {meaning}: {title}.")
    return picture
