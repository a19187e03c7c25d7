"""The quickstart's last lines: what was reached, as a table and as summary.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from runtime.files import atomic_write


def main() -> None:
    run, seconds_total = Path(sys.argv[1]), int(sys.argv[2])
    torch_figures = json.loads((run / "torch.json").read_text())
    onnx_figures = json.loads((run / "onnx.json").read_text())
    summary = {
        "ap_torch": torch_figures["AP"],
        "ap_onnx": onnx_figures["AP"],
        "images_per_second": onnx_figures["images_per_second"],
        "seconds_total": seconds_total,
    }
    atomic_write(run / "summary.json", json.dumps(summary, indent=2) + "\n")
    difference = 100 * (summary["ap_onnx"] - summary["ap_torch"])
    rows = [
        ("AP, torch model", f"{100 * summary['ap_torch']:.2f}"),
        ("AP, deployed ONNX", f"{100 * summary['ap_onnx']:.2f}"),
        ("difference", f"{difference:+.2f} AP points"),
        ("deployed speed", f"{summary['images_per_second']:.1f} images/s (reading pictures included)"),
        ("total time", f"{seconds_total // 60} min {seconds_total % 60} s"),
        ("model", run / "model.onnx"),
        ("checkpoint", run / "train" / "last.pt"),
        ("curves", run / "train" / "curves.png"),
        ("detections", run / "pictures"),
        ("assignment", run / "assignment"),
        ("summary", run / "summary.json"),
    ]
    for name, value in rows:
        print(f"{name:<18} {value}")


if __name__ == "__main__":
    main()
