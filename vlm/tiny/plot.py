"""The learning curves of a training run.

    python -m vlm.tiny.plot runs/tiny/log.jsonl OUT.svg     # or .png

needs matplotlib, which nothing else here does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

# One panel each: its title, what is drawn in it, and on what axis.
PANELS = (
    ("Patches, pairs and masks: share right", ("patches", "matched", "iou"), "linear"),
    (
        "First token of the answer right",
        ("detect", "exists", "count", "color", "where", "caption", "segment"),
        "linear",
    ),
    ("Losses", ("kind", "place", "language", "attention"), "log"),
    ("The pair's losses, whichever teaches", ("sigmoid", "softmax"), "log"),
)


def plot(log: Path, out: Path) -> None:
    """Draw PANELS over the minutes of all stages, one after the other.

    Raises:
        ValueError: the log is empty.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        need = "drawing curves needs matplotlib: pip install matplotlib"
        raise ModuleNotFoundError(need) from error

    curves, borders = read(log)
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, names, scale) in zip(figure.subplots(2, 2).flat, PANELS):
        drawn = [name for name in names if name in curves]
        for name in drawn:
            axes.plot(*zip(*curves[name]), label=name, linewidth=1.2)
        for stage, minute in borders.items():
            axes.axvline(minute, color="0.8", linewidth=0.8, zorder=0)
            axes.annotate(
                f" {stage}",
                (minute, 0.98),
                xycoords=("data", "axes fraction"),
                verticalalignment="top",
                color="0.5",
                fontsize="small",
            )
        axes.set(title=title, xlabel="minutes", yscale=scale)
        if drawn:
            axes.legend(fontsize="small")
        axes.grid(alpha=0.2)
    figure.savefig(out)


def read(log: Path) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """Each figure's (minute, value), and the minute at which each stage begins.

    Of a stage that was resumed, what it had done beyond its last state is drawn twice.

    Raises:
        ValueError: the log is empty.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    if not lines:
        raise ValueError(f"{log} is empty: no stage has logged anything yet")
    length: dict[str, float] = {}
    for line in lines:
        length[line["stage"]] = max(length.get(line["stage"], 0), line["minute"])
    begins = {
        stage: sum(list(length.values())[:place]) for place, stage in enumerate(length)
    }
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("stage", "minute", "step", "pictures_per_second"):
                minute = begins[line["stage"]] + line["minute"]
                curves.setdefault(name, []).append((minute, value))
    return curves, begins


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vlm.tiny.plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    plot(options.log, options.out)


if __name__ == "__main__":
    main()
