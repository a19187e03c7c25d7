"""Is the deployed file the detector that was trained? Compares their numbers; an export always ends with this.

    python -m export.verify runs/mine/best.pt mine.onnx
    python -m export.verify runs/mine/best.pt mine.engine    # see export/verify_engine.py
    python -m export.verify mine.onnx mine.int8.onnx --images photos

The reference is the checkpoint, or the float32 file that a conversion started from.
- the precision: what the file's convolutions compute in, counted, against what its manifest says;
- the manifest: classes, preprocessing and thresholds, against the reference's;
- a conversion: node for node and constant for constant against the float32 file (`export.verify.equivalence`);
and for two batch sizes and, where the canvas isn't fixed, two canvases:
- the network: its dense maps, elementwise, or where the file isn't float32 by their root mean square error;
- the postprocessing: candidates that the reference and the file make of the same dense maps, as sets;
- NMS: the rows that the runtime returns against plain greedy NMS of the file's candidates, row by row; once as the
  file flags them, once with every image sent through the rerun on the host;
- the whole: detections of the reference with greedy NMS against those of the runtime, as sets.
How much a network may differ depends on its precision (export/tolerance.py); what follows it never may.
Half precision and int8 for TensorRT are emulated, as no kernel of a CPU computes them so (export/emulate.py); int8 for
CPUs runs in the kernels of this one and is compared with its emulation, which tells saturating kernels from ranges that
don't fit. Exit code 1 where a difference exceeds its limit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.backends.engine_file import SUFFIXES as ENGINE_SUFFIXES
from runtime.errors import run_main

from .checks import print_report
from .conversion import verify_conversion
from .images import load_comparison_images


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.verify", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", metavar="CKPT", help="checkpoint that training wrote (.pt), or the float32 file")
    parser.add_argument("model", metavar="MODEL", help="file or engine that was made of it")
    parser.add_argument("--images", metavar="DIR", help="compare on images of this folder")
    parser.add_argument("--onnx", metavar="FILE", help="what an engine was built of; default: looked for beside it")
    options = parser.parse_args(arguments)
    model_path = Path(options.model)
    if options.reference.endswith(".onnx"):
        checks = verify_conversion(Path(options.reference), model_path, load_comparison_images(options.images))
    else:  # which needs torch
        from train.trainer.checkpoint import load_detector

        loaded = load_detector(options.reference)
        images = load_comparison_images(options.images, loaded.config.data.val_images)
        if model_path.suffix in ENGINE_SUFFIXES:
            from .engine import report_engine, verify_engine

            source = Path(options.onnx) if options.onnx else None
            return report_engine(verify_engine(loaded, model_path, images, source))
        from .checkpoint import verify_export

        checks = verify_export(loaded, model_path, images)
    print_report(checks)
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    run_main(main)
