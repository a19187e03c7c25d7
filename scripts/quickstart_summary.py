"""The quickstart's last lines: its results as a table and as summary.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from runtime.coco.metrics import NOTHING
from runtime.coco.report import percent
from runtime.errors import run_main
from runtime.files import atomic_write


def summarize(torch_figures: dict[str, float], onnx_figures: dict[str, float], seconds: int) -> dict[str, float]:
    """The content of summary.json: AP as fractions of 1, the deployed model's speed, the seconds of this run."""
    return {
        "ap_torch": torch_figures["AP"],
        "ap_onnx": onnx_figures["AP"],
        "images_per_second": onnx_figures["images_per_second"],
        "seconds_total": seconds,
    }


def table(summary: dict[str, float], run: Path) -> str:
    """The summary and the paths of the results, one per line."""
    seconds, aps = int(summary["seconds_total"]), (summary["ap_torch"], summary["ap_onnx"])
    rows = [
        ("AP, torch model", percent(summary["ap_torch"], 2)),
        ("AP, deployed ONNX", percent(summary["ap_onnx"], 2)),
        ("difference", f"{100 * (aps[1] - aps[0]):+.2f} AP points" if min(aps) >= 0 else NOTHING),
        ("deployed speed", f"{summary['images_per_second']:.1f} images/s (reading images included)"),
        ("total time", f"{seconds // 60} min {seconds % 60} s"),
        ("model", run / "model.onnx"),
        ("checkpoint", run / "train" / "last.pt"),
        ("curves", run / "train" / "curves.png"),
        ("detections", run / "images"),
        ("assignment", run / "assignment"),
        ("summary", run / "summary.json"),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def main() -> None:
    """Write summary.json and print the table, from the folder and the seconds on the command line."""
    run, seconds = Path(sys.argv[1]), int(sys.argv[2])
    torch_figures, onnx_figures = (json.loads((run / f"{name}.json").read_text()) for name in ("torch", "onnx"))
    summary = summarize(torch_figures, onnx_figures, seconds)
    atomic_write(run / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(table(summary, run))


if __name__ == "__main__":
    run_main(main)
