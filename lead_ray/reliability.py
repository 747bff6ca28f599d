"""A picture of how far confidences can be believed."""

from typing import Any

from matplotlib.figure import Figure

from lead_ray import drawing as draw


def figure(measured: dict[str, Any], meaning: str) -> Figure:
    """Confidence that was stated against the share that was right; dots as large as their bins are full.

    Measured: Reliability.to_json(). Meaning: what a confidence is the probability of.
    """
    picture = Figure(figsize=(4.2, 4.4), facecolor="white", layout="constrained")
    panel = picture.subplots()
    panel.plot([0, 1], [0, 1], color=draw.FAINT, linewidth=1.2, zorder=1)
    total = sum(measured["counts"])
    panel.plot(measured["said"], measured["found"], color=draw.BLUE, linewidth=1.4, zorder=2)
    sizes = [12 + 400 * count / total for count in measured["counts"]]
    panel.scatter(measured["said"], measured["found"], s=sizes, color=draw.BLUE, edgecolor="white", zorder=3)
    panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    draw.plain_axes(panel)
    panel.set_xlabel("confidence", fontsize=draw.MEDIUM, color=draw.GREY)
    panel.set_ylabel("share that was right", fontsize=draw.MEDIUM, color=draw.GREY)
    title = f"calibration error {measured['expected_error']:.3f}, {total:,} points"
    panel.set_title(title, loc="left", fontsize=draw.LARGE, color=draw.INK, fontweight="bold")
    picture.set_label(f"Reliability of the {meaning}: {title}.")
    return picture
