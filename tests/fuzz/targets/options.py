"""Command lines of every command: options with odd values, run in this process up to the work that takes long.

What a command would write lies in the input's folder, so no value names a place outside of it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from runtime.errors import UserError

from ..mutation import option_lists
from ..target import Target, require
from .records import require_manifest

SEEDS = "SEEDS"  # stands for the folder of the valid inputs
_DATA = ("--annotations", "SEEDS/annotations.json", "--images", "SEEDS/images")
_HERE = ("--backend", "cpu", "--threads", "1")
# Not among the options: a cluster is not at hand, another backend starts slowly, and help is no input.
_LEFT_OUT = {"--ray", "--ray-actors", "--help", "--pictures", "--tyro-print-completion", "--tyro-write-completion"}


class Reached(BaseException):
    """The command has accepted its options and begins its work."""


@dataclass(frozen=True)
class Command:
    """A command, a valid call, and the functions at which its work begins and that are not called."""

    module: str
    valid: tuple[str, ...]
    stops: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    takes_arguments: bool = True  # its main function takes them; else it reads sys.argv


_SIZES = ("64", "32x32", "64x64:96x96:128x128", "8.6", "12.0", "fp16", "int8", "cpu", "max", "0.5", "red", "7", "1e-3")
COMMANDS = {
    "detect": Command(
        "runtime.detect",
        ("SEEDS/red.onnx", "SEEDS/images", "-o", "out", *_HERE),
        ("runtime.detect.LiveStream", "runtime.detect.connected"),
    ),
    "evaluate": Command(
        "runtime.coco.command", ("SEEDS/red.onnx", *_DATA, *_HERE), ("runtime.coco.command.detect_on_cluster",)
    ),
    "evaluate results": Command(
        "runtime.coco.command", ("--results", "SEEDS/results.json", *_DATA), ("runtime.coco.command.detect_on_cluster",)
    ),
    "show": Command("runtime.show", ("SEEDS/results.json", *_DATA, "--out", "out")),
    "benchmark": Command(
        "runtime.benchmark.__main__",
        ("SEEDS/red.onnx", "--images", "SEEDS/images", *_HERE),
        ("runtime.benchmark.__main__.run_benchmark",),
    ),
    "export": Command(
        "export.to_onnx", ("SEEDS/checkpoint.pt", "-o", "m.onnx"), ("export.export_step.checkpoint_to_graph",), _SIZES
    ),
    "quantize": Command(
        "export.quantize",
        ("SEEDS/model.onnx", "-o", "q.onnx", "--precision", "fp16", "--images", "SEEDS/images"),
        ("export.quantize_step.convert_model", "export.quantize_step.calibrate_cached"),
        _SIZES,
    ),
    "engine": Command(
        "export.to_trt",
        ("SEEDS/model.onnx", "-o", "e.engine", "--flavor", "rtx"),
        ("export.trt.engine.build", "export.export_step.checkpoint_to_graph"),
        _SIZES,
    ),
    "deepstream": Command(
        "export.to_deepstream",
        ("SEEDS/model.onnx", "-o", "folder", "--canvas", "64", "96"),
        ("export.deepstream.verify.verify_variant",),
        _SIZES,
    ),
    "triton": Command("export.to_triton", ("SEEDS/model.onnx", "-o", "repository"), (), _SIZES),
    "verify": Command(
        "export.verify",
        ("SEEDS/checkpoint.pt", "SEEDS/model.onnx"),
        ("export.verification.checkpoint.verify_export", "export.verification.conversion.verify_conversion"),
    ),
    "validate": Command(
        "train.validate",
        ("SEEDS/checkpoint.pt", *_DATA),
        ("train.validate.evaluate_distributed",),
        takes_arguments=False,
    ),
    "pretrained": Command("train.pretrained.__main__", ("SEEDS/checkpoint.pt", "-o", "c.pt"), takes_arguments=False),
    "shapes": Command(
        "train.shapes.__main__",
        ("data", "--train", "1", "--val", "1", "--size", "64"),
        ("train.shapes.dataset._write_split",),
        takes_arguments=False,
    ),
    "show-assignment": Command(
        "train.show_assignment",
        ("atss_tiny", *_DATA, "--out", "out", "--count", "1"),
        ("train.show_assignment.draw_scene",),
        takes_arguments=False,
    ),
    "inspect": Command("train.inspect.__main__", ("SEEDS/annotations.json", "--images", "SEEDS/images")),
    "convert": Command("train.convert", ("coco:SEEDS/annotations.json", "-o", "out.json"), takes_arguments=True),
    "reproduce": Command(
        "train.reproduce.__main__",
        ("--out", "run"),
        ("train.shapes.generate", "train.reproduce.__main__.write_report"),
        takes_arguments=False,
    ),
}


def _silently(call: Callable[[], object]) -> str:
    """Run a command's main function. Returns what it printed; its end by a usage message is a UserError."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            call()
    except Reached:
        return "reached its work"
    except SystemExit as ended:
        if ended.code in (0, None):
            return "ended"
        require(ended.code == 2, f"exit code {ended.code}")
        told = err.getvalue() + out.getvalue()
        require("Traceback" not in told, told[-500:])
        # The options were typed by the one who reads this: they are repeated as they are.
        raise UserError(" ".join(re.sub(r"[^\x20-\x7e]", "?", told.split("error: ")[-1]).split())[:1900]) from ended
    require("Traceback" not in err.getvalue(), err.getvalue()[-500:])
    return "ran"


def _stopped(*_: Any, **__: Any) -> None:
    raise Reached


def _read(command: Command) -> Callable[[Path, Path], object]:
    def read(folder: Path, seeds: Path) -> str:
        module: Any = importlib.import_module(command.module)
        given = [text.replace(SEEDS, str(seeds)) for text in json.loads((folder / "arguments.json").read_bytes())]
        with ExitStack() as stack:
            for name in command.stops:
                place, _, attribute = name.rpartition(".")
                stack.enter_context(mock.patch.object(importlib.import_module(place), attribute, _stopped))
            if command.takes_arguments:
                return _silently(lambda: module.main(given))
            stack.enter_context(mock.patch.object(sys, "argv", [command.module, *given]))
            return _silently(module.main)

    return read


@functools.cache
def _options_of(name: str) -> list[str]:
    """All options of a command, from its own help."""
    command, printed = COMMANDS[name], io.StringIO()
    module: Any = importlib.import_module(command.module)
    with redirect_stdout(printed), suppress(SystemExit), mock.patch.object(sys, "argv", [command.module, "--help"]):
        if command.takes_arguments:
            module.main(["--help"])
        else:
            module.main()
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", printed.getvalue())) - _LEFT_OUT)


def _is_safe(text: str) -> bool:
    """Whether a text names no file outside the folder in which the command runs."""
    value = text.partition("=")[2] or text
    return not value.startswith(("/", "~", "\\")) and ".." not in value and "://" not in value and "\0" not in value


@st.composite
def _inputs(draw: DrawFn, valid: Sequence[str], options: Sequence[str], values: Sequence[str]) -> dict[str, bytes]:
    found = [text for text in draw(option_lists(valid, options, values)) if _is_safe(text)]
    return {"arguments.json": json.dumps([text for text in found if text not in _LEFT_OUT]).encode()}


def _target(name: str) -> Target:
    command = COMMANDS[name]
    return Target(
        lambda seeds: st.deferred(lambda: _inputs(command.valid, _options_of(name), command.values)),
        _read(command),
        0.6,
        12,
    )


_TRAIN = (
    "atss_tiny",
    "--out",
    "run",
    "--data.train-json",
    "SEEDS/annotations.json",
    "--data.train-images",
    "SEEDS/images",
)


@functools.cache
def _settings() -> list[str]:
    from train.config.overrides import setting_names
    from train.config.recipes import RECIPES

    return ["--" + name.replace("_", "-") for name in setting_names(RECIPES["atss_tiny"]())]


def _read_train(folder: Path, seeds: Path) -> str:
    """Settings that are accepted give a checkpoint's record and a manifest that are valid, and build their parts."""
    import torch

    from runtime.records import record_from_dict
    from train.__main__ import parse
    from train.config import Config
    from train.trainer.optim import OPTIMIZERS, in_steps

    given = [text.replace(SEEDS, str(seeds)) for text in json.loads((folder / "arguments.json").read_bytes())]
    kept: list[Config] = []
    if not given or "-h" in given:
        return "help"
    said = _silently(lambda: kept.append(parse(given)[0]))
    if not kept:
        return said
    (config,) = kept
    again = record_from_dict(Config, json.loads(json.dumps(dataclasses.asdict(config))), "again")
    require(again == config, "another configuration after writing and reading")
    require_manifest(config, ("a",), (1,))
    steps = in_steps(config.schedule, 100)
    require(1 <= steps.steps < 2**63, f"{steps.steps} steps")
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS[steps.optimizer]([{"params": [parameter]}], steps)
    parameter.grad = torch.ones(2)
    optimizer.step()
    require(bool(torch.isfinite(parameter).all()), "a step of the optimizer to numbers that are not finite")
    return "accepted"


TARGETS = {f"options of {name}": _target(name) for name in COMMANDS} | {
    "options of train": Target(
        lambda seeds: st.deferred(lambda: _inputs(_TRAIN, _settings(), ("adamw", "cosine", "fp32", "0.5", "true"))),
        _read_train,
        3,
        40,
    )
}
