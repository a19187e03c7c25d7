"""An exported file, or a checkpoint, becomes a TensorRT engine: MODEL.engine, with MODEL.engine.json beside it.

    python export/to_trt.py mine.onnx
    python export/to_trt.py mine.onnx --flavor rtx --compute-capability 8.6 8.9 12.0     # on any machine
    python export/to_trt.py best.pt --precision fp16 --batch 1 8 8 --shapes 800x1344 1344x800

A standard engine (TensorRT 10.12 or later, or 11) is built on the GPU that runs it. TensorRT for RTX builds ahead of
time for the GPUs that are named. Both take the precision from the file's own types (`python -m export.quantize`).
The JSON has what the engine can't tell: where it came from, hashes, versions, profiles, tensors, how to build it again.
"""

from __future__ import annotations

if __name__ == "__main__" and not __package__:  # run as `python export/to_trt.py`: become `python -m export.to_trt`
    import runpy
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    runpy.run_module("export.to_trt", run_name="__main__", alter_sys=True)

import argparse
import hashlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx

from runtime.engine_file import SUFFIXES, EngineManifest, this_platform, write_engine
from runtime.errors import UserError, run_main
from runtime.files import require_writable
from runtime.manifest import Manifest, Precision

from . import to_onnx
from .layers import convolutions, summary, wrong_convolutions
from .network import load_deployed
from .trt_build import RTX_CAPABILITIES, Built, ParseError, Settings, build, check_settings
from .trt_inspect import wrong_precision
from .trt_library import Library, choose
from .trt_profiles import as_options, describe, make_profiles

# The first GPUs whose tensor cores know a type; TensorRT for RTX refuses earlier ones.
FIRST_CAPABILITY: dict[Precision, str] = {"bf16": "8.0", "fp8": "8.9"}
_CHECKPOINTS = (".pt", ".pth", ".ckpt")
_ROOM = 256 << 20  # bytes: an engine holds compiled kernels besides the weights


class EngineBuildError(UserError):
    """An engine that can't be built as asked."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    source = Path(options.model)
    capabilities = tuple(dict.fromkeys(options.compute_capability))
    library = choose(options.flavor, capabilities)
    from_checkpoint = source.suffix in _CHECKPOINTS
    if not from_checkpoint and source.suffix != ".onnx":
        raise EngineBuildError(f"{source}: expected an exported file (.onnx) or a checkpoint (.pt)")
    named = source.with_suffix(f".{options.precision}") if from_checkpoint else source.with_suffix("")
    outputs = output_paths(named, options.output, capabilities if options.separate else ())
    if from_checkpoint:
        check_capabilities(options.precision, capabilities)
        source = export_checkpoint(source, outputs[0][0].parent, options)
    model, manifest = load_deployed(source)
    check_precision(model, manifest, source)
    profiles = make_profiles(manifest, options.batch, options.shapes)
    for out, wanted in outputs:
        settings = Settings(
            profiles=profiles,
            compute_capabilities=wanted or capabilities or default_capabilities(library, manifest.precision),
            workspace_bytes=int(options.workspace * (1 << 30)) if options.workspace is not None else None,
            optimization_level=options.optimization_level,
            timing_cache=Path(options.timing_cache) if options.timing_cache else None,
            hardware_compatibility=options.hardware_compatibility,
            version_compatible=options.version_compatible,
        )
        build_engine(library, source, manifest, settings, out, show_progress=sys.stderr.isatty())
    return 0


def export_checkpoint(checkpoint: Path, folder: Path, options: argparse.Namespace) -> Path:
    """Export and convert a checkpoint as export/to_onnx.py does, comparisons included; the file to build of."""
    exported = folder / f"{checkpoint.stem}.onnx"
    words = [str(checkpoint), "-o", str(exported), "--precision", options.precision]
    if options.batch:
        words += ["--batch-max", str(options.batch[2])]
    if options.canvas:
        words += ["--canvas", *map(str, options.canvas)]
    if options.images:
        words += ["--images", options.images]
    if options.calibrate_on:
        words += ["--calibrate-on", options.calibrate_on]
    if to_onnx.main(words):
        raise EngineBuildError(f"{checkpoint}: its numbers change too much on the way (see the table): no engine")
    return exported if options.precision == "fp32" else exported.with_suffix(f".{options.precision}.onnx")


def build_engine(
    library: Library, source: Path, manifest: Manifest, settings: Settings, out: Path, show_progress: bool = False
) -> EngineManifest:
    """Build an engine of an exported file (`manifest` is its own) and write it with its description; print both.

    Nothing takes the name `out` before it is whole. Raises UserError.
    """
    check_settings(library, settings)
    check_capabilities(manifest.precision, settings.compute_capabilities)
    content = source.read_bytes()
    check_room(out, len(content))
    gpus = ", ".join(settings.compute_capabilities) or (library.device.name if library.device else "this machine")
    print(f"building {source.name} ({manifest.precision}) with {library.name} {library.version} for {gpus}", flush=True)
    for number, profile in enumerate(settings.profiles):
        print(f"  profile {number}: {describe(profile)}", flush=True)
    try:
        built = build(library, source, content, settings, show_progress)
    except ParseError as error:
        for line in error.nodes:
            print(line, file=sys.stderr)
        raise
    for line in built.warnings:
        print(f"TensorRT warns: {line}", file=sys.stderr)
    if problem := wrong_precision(built.layers, manifest.precision):
        raise EngineBuildError(
            f"{out}: NOT written, it isn't the {manifest.precision} engine that was asked for: {problem}; "
            f"please report it with the version, {library.name} {library.version}"
        )
    described = describe_engine(library, source, content, manifest, settings, built, out)
    write_engine(out, built.data, described)
    print(
        f"{out}  {len(built.data) / 1e6:.1f} MB in {built.seconds:.1f} s, for compute capability "
        f"{', '.join(built.compute_capabilities)}; {_layers(built.layers)}"
    )
    return described


def describe_engine(
    library: Library, source: Path, content: bytes, manifest: Manifest, settings: Settings, built: Built, out: Path
) -> EngineManifest:
    """What lies beside the engine."""
    return EngineManifest(
        manifest=manifest,
        flavor=library.flavor,
        library_version=library.version,
        compute_capabilities=built.compute_capabilities,
        platform=this_platform(),
        engine_sha256=hashlib.sha256(built.data).hexdigest(),
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        profiles=settings.profiles,
        tensors=built.tensors,
        rebuild=rebuild_command(library, source, settings, out),
        layers=built.layers,
        version_compatible=settings.version_compatible,
    )


def rebuild_command(library: Library, source: Path, settings: Settings, out: Path) -> str:
    """The command that builds this engine again, from its folder."""
    words = [f"python export/to_trt.py {shlex.quote(source.name)} -o {shlex.quote(out.name)} --flavor {library.flavor}"]
    if settings.compute_capabilities:
        words.append(f"--compute-capability {' '.join(settings.compute_capabilities)}")
    words.append(as_options(settings.profiles))
    if settings.workspace_bytes is not None:
        words.append(f"--workspace {settings.workspace_bytes / (1 << 30):g}")
    if settings.optimization_level is not None:
        words.append(f"--optimization-level {settings.optimization_level}")
    if settings.hardware_compatibility != "none":
        words.append(f"--hardware-compatibility {settings.hardware_compatibility}")
    if settings.version_compatible:
        words.append("--version-compatible")
    return " ".join(words)


def default_capabilities(library: Library, precision: Precision) -> tuple[str, ...]:
    """Without a GPU, all that TensorRT for RTX builds this precision for; with one, that one alone (empty)."""
    if library.flavor != "rtx" or library.device is not None:
        return ()
    return tuple(c for c in RTX_CAPABILITIES if _number(c) >= _number(FIRST_CAPABILITY.get(precision, "0.0")))


def check_capabilities(precision: Precision, capabilities: Sequence[str]) -> None:
    """Raise EngineBuildError for GPUs that don't know the precision's type."""
    first = FIRST_CAPABILITY.get(precision, "0.0")
    if early := [c for c in capabilities if _number(c) < _number(first)]:
        raise EngineBuildError(
            f"--compute-capability {' '.join(early)}: {precision} needs {first} or later; leave the earlier ones "
            "out, or build the fp16 file for them"
        )


def check_precision(model: onnx.ModelProto, manifest: Manifest, source: Path) -> None:
    """Raise EngineBuildError for a file that says one precision and has another: the engine would repeat the claim.

    And for one whose int8 is a CPU's.
    """
    if convolutions(model)["uint8"]:
        raise EngineBuildError(
            f"{source}: its int8 is for CPUs (asymmetric activations), which TensorRT lacks; convert the float32 "
            "file for it: python -m export.quantize MODEL.onnx --precision int8 --target tensorrt --images DIR"
        )
    if wrong_convolutions(model, manifest.precision):
        raise EngineBuildError(
            f"{source} says that it is {manifest.precision}, but its convolutions are: {summary(convolutions(model))}; "
            f"make it again: python -m export.quantize MODEL.onnx --precision {manifest.precision}"
        )


def check_room(out: Path, onnx_bytes: int) -> None:
    """Raise UserError before a build of minutes where its result couldn't be written."""
    require_writable(out)
    needed = onnx_bytes * 2 + _ROOM
    free = shutil.disk_usage(out.resolve().parent).free
    if free < needed:
        raise EngineBuildError(
            f"{out}: {free / 1e6:,.0f} MB are free there, the engine may need {needed / 1e6:,.0f}; free some space or "
            "name another folder with -o"
        )


def output_paths(named: Path, output: str | None, separate: Sequence[str]) -> list[tuple[Path, tuple[str, ...]]]:
    """The engines to write, and the GPUs that each is for (none: those that were named, in one engine)."""
    out = Path(output) if output else named.with_name(named.name + SUFFIXES[0])
    if out.suffix not in SUFFIXES:
        raise EngineBuildError(f"-o {out}: expected a name that ends in {', '.join(SUFFIXES)}")
    if out.is_dir():
        raise EngineBuildError(f"-o {out}: that is a folder; give the file's name as well")
    if not separate:
        return [(out, ())]
    return [(out.with_name(f"{out.stem}.sm{c.replace('.', '')}{out.suffix}"), (c,)) for c in separate]


def _layers(layers: dict[str, int]) -> str:
    if not layers:
        return "its layers' precisions could not be read (that needs the GPU that it is for)"
    return "convolutions: " + ", ".join(f"{count} {name}" for name, count in sorted(layers.items()))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def _capability(text: str) -> str:
    if text not in RTX_CAPABILITIES:
        raise argparse.ArgumentTypeError(f"{text!r}, expected some of {', '.join(RTX_CAPABILITIES)}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="export/to_trt.py", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", metavar="MODEL", help="exported file (.onnx) or checkpoint (.pt)")
    add("-o", "--output", metavar="OUT.engine", help="file to write; default: MODEL.engine")
    add("--flavor", choices=("auto", "tensorrt", "rtx"), default="auto", help="auto: tensorrt where there is a GPU")
    add("--batch", type=int, nargs=3, metavar=("MIN", "OPT", "MAX"), help="default: the file's, tuned for the largest")
    add(
        "--shapes",
        nargs="+",
        metavar="HxW",
        help="an optimization profile each, one canvas or MIN:OPT:MAX; default: landscape and upright pictures",
    )
    known = ", ".join(RTX_CAPABILITIES)
    add(
        "--compute-capability",
        type=_capability,
        nargs="+",
        default=[],
        metavar="CC",
        help=f"GPUs to build for ahead of time (rtx): {known}; default: the one here, else all",
    )
    add("--separate", action="store_true", help="one engine for each compute capability: OUT.sm86.engine, …")
    add("--workspace", type=float, metavar="GIB", help="most scratch memory of a layer")
    add("--optimization-level", type=int, metavar="0-5", help="a higher one searches longer; default: the library's")
    add("--timing-cache", metavar="FILE", help="read and written; spares most of the next build's time (tensorrt)")
    add(
        "--hardware-compatibility",
        choices=("none", "ampere-plus", "same-compute-capability"),
        default="none",
        help="which other GPUs may run it, at some cost in speed (tensorrt)",
    )
    add("--version-compatible", action="store_true", help="later versions may run it, at some cost (tensorrt)")
    checkpoint = parser.add_argument_group("from a checkpoint").add_argument
    checkpoint("--precision", choices=("fp32", "fp16", "bf16", "int8", "fp8"), default="fp16", help="default fp16")
    checkpoint("--canvas", type=int, nargs=2, metavar=("H", "W"), help="fix the canvas")
    checkpoint("--images", metavar="DIR", help="pictures to compare on; default: the validation set's")
    checkpoint("--calibrate-on", metavar="DIR", help="pictures for int8 and fp8; default: training's")
    return parser


if __name__ == "__main__":
    run_main(main)
