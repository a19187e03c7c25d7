"""An exported file, or a checkpoint, becomes a TensorRT engine: MODEL.engine, with MODEL.engine.json beside it.

    python -m export.to_trt mine.onnx
    python -m export.to_trt mine.onnx --flavor rtx --compute-capability 8.6 8.9 12.0     # on any machine
    python -m export.to_trt best.pt --precision fp16 --batch 1 8 8 --shapes 800x1344 1344x800

A standard engine (TensorRT 10.12 or later, or 11) is built on the GPU that runs it. TensorRT for RTX builds ahead of
time for the GPUs that are named. Both take the precision from the file's own types (`python -m export.quantize`).
The JSON has what the engine can't tell: where it came from, hashes, versions, profiles, tensors, how to build it again.
From an exported file this needs `onnx` and the library, no torch: a deployment machine builds its own engines.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as `python export/to_trt.py`: become `python -m export.to_trt`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("export.to_trt", run_name="__main__", alter_sys=True)

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from runtime.backends.engine_file import SUFFIXES
from runtime.command_names import QUANTIZE, TO_ONNX, TO_TRT
from runtime.errors import EXIT_INTERRUPTED, UserError, run_main
from runtime.manifest import Precision

from .trt.library import choose_library
from .trt.profiles import make_profiles
from .trt.settings import RTX_CAPABILITIES, HardwareCompatibility, Settings, check_settings, default_capabilities

_CHECKPOINTS = (".pt", ".pth", ".ckpt")
_CHECKPOINT_ALONE = ("precision", "canvas", "images", "calibrate_on")  # options that make no sense of an exported file


class OptionError(UserError):
    """Options that contradict each other or the file, or a library that is not installed."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    path = Path(options.model)
    capabilities = tuple(dict.fromkeys(options.compute_capability))
    from_checkpoint = path.suffix in _CHECKPOINTS
    _check_options(options, path, from_checkpoint)
    precision: Precision = options.precision or "fp16"
    named = path.with_suffix(f".{precision}") if from_checkpoint else path.with_suffix("")
    outputs = output_paths(named, options.output, capabilities if options.separate else ())
    library = choose_library(options.flavor, capabilities)
    settings = Settings(
        profiles=(),
        compute_capabilities=capabilities,
        workspace_bytes=int(options.workspace * (1 << 30)) if options.workspace is not None else None,
        optimization_level=options.optimization_level,
        timing_cache=Path(options.timing_cache) if options.timing_cache else None,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
    )
    try:  # neither onnx nor torch is among what `runtime` needs
        from .trt.engine import build_engine, load_source
    except ModuleNotFoundError as error:
        raise _not_installed(error, "an engine is built of a file that onnx reads: pip install onnx") from error
    if from_checkpoint:
        check_settings(library, settings, precision)
        try:
            from .trt.from_checkpoint import export_checkpoint
        except ModuleNotFoundError as error:
            advice = f"export the checkpoint where it was trained ({TO_ONNX}), and give the .onnx file here"
            raise _not_installed(error, advice) from error
        path = export_checkpoint(
            path,
            outputs[0][0].parent,
            precision,
            batch=options.batch,
            shapes=options.shapes,
            canvas_hw=options.canvas,
            images=options.images,
            calibrate_on=options.calibrate_on,
        )
    source = load_source(path)
    settings = replace(settings, profiles=make_profiles(source.manifest, options.batch, options.shapes))
    for out, wanted in outputs:
        gpus = wanted or capabilities or default_capabilities(library, source.manifest.precision)
        wanted_settings = replace(settings, compute_capabilities=gpus)
        build_engine(library, source, wanted_settings, out, show_progress=sys.stderr.isatty())
    return 0


def output_paths(named: Path, output: str | None, separate: Sequence[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """The engines to write, and the GPUs that each is for (none: those that were named, in one engine)."""
    out = Path(output) if output else named.with_name(named.name + SUFFIXES[0])
    if out.suffix not in SUFFIXES:
        raise OptionError(f"-o {out}: expected a name that ends in {', '.join(SUFFIXES)}")
    if out.is_dir():
        raise OptionError(f"-o {out}: that is a folder; give the file's name as well")
    if not separate:
        return [(out, ())]
    return [(out.with_name(f"{out.stem}.sm{c.replace('.', '')}{out.suffix}"), (c,)) for c in separate]


def _check_options(options: argparse.Namespace, source: Path, from_checkpoint: bool) -> None:
    """Raise OptionError for what can't be meant, before anything is loaded."""
    if not from_checkpoint and source.suffix != ".onnx":
        raise OptionError(f"{source}: expected an exported file (.onnx) or a checkpoint (.pt)")
    given = [f"--{name.replace('_', '-')}" for name in _CHECKPOINT_ALONE if getattr(options, name) is not None]
    if given and not from_checkpoint:
        raise OptionError(
            f"{', '.join(given)}: {source.name} was exported already, with its precision and canvas; leave that out, "
            "or give the checkpoint (.pt); another precision of this file: " + QUANTIZE
        )
    if options.workspace is not None and not 0 < options.workspace < math.inf:
        raise OptionError(f"--workspace {options.workspace:g}: expected GiB, more than 0")
    if options.separate and not options.compute_capability:
        raise OptionError("--separate: one engine for each of which GPUs? Name them: --compute-capability 8.6 8.9 12.0")


def _not_installed(error: ModuleNotFoundError, advice: str) -> OptionError | ModuleNotFoundError:
    """What to raise where a library isn't installed; a missing module of our own is a defect and stays one."""
    if (error.name or "").split(".")[0] in ("export", "runtime", "train"):
        return error
    return OptionError(f"{error.name} is not installed; {advice}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=TO_TRT, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", metavar="MODEL", help="exported file (.onnx) or checkpoint (.pt)")
    add("-o", "--output", metavar="OUT.engine", help="file to write; default: MODEL.engine")
    add("--flavor", choices=("auto", "tensorrt", "rtx"), default="auto", help="auto: tensorrt where there is a GPU")
    add("--batch", type=int, nargs=3, metavar=("MIN", "OPT", "MAX"), help="default: the file's, tuned for the largest")
    add(
        "--shapes",
        nargs="+",
        metavar="HxW",
        help="an optimization profile each, one canvas or MIN:OPT:MAX; default: landscape and upright images",
    )
    add(
        "--compute-capability",
        nargs="+",
        default=[],
        metavar="CC",
        help=f"GPUs to build for ahead of time (rtx): {', '.join(RTX_CAPABILITIES)}; default: the one here, else all",
    )
    add("--separate", action="store_true", help="one engine for each compute capability: OUT.sm86.engine, …")
    add("--workspace", type=float, metavar="GIB", help="most scratch memory of a layer; default: the device's")
    add("--optimization-level", type=int, metavar="0-5", help="a higher one searches longer; default: the library's")
    add("--timing-cache", metavar="FILE", help="read and written; spares most of the next build's time (tensorrt)")
    add(
        "--hardware-compatibility",
        choices=get_args(HardwareCompatibility),
        default="none",
        help="which other GPUs may run it, at some cost in speed (tensorrt)",
    )
    add("--version-compatible", action="store_true", help="later versions may run it, at some cost (tensorrt)")
    checkpoint = parser.add_argument_group(
        "from a checkpoint",
        "Writes beside the engine, in the place of files of these names: CKPT.onnx, CKPT.PRECISION.onnx (not for "
        "fp32), and for int8 and fp8 CKPT.calibration.json (ranges, which are reused while they fit).",
    ).add_argument
    checkpoint("--precision", choices=get_args(Precision), help="default fp16")
    checkpoint("--canvas", type=int, nargs=2, metavar=("H", "W"), help="fix the canvas")
    checkpoint("--images", metavar="DIR", help="images to compare on; default: the validation set's")
    checkpoint("--calibrate-on", metavar="DIR", help="images for int8 and fp8; default: training's")
    return parser


if __name__ == "__main__":
    try:
        run_main(main)
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:
            # TensorRT for RTX leaves threads of a stopped build behind, which crash when the interpreter ends first.
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)
        raise
