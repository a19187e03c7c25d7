"""The configurations of nvinfer and of `deepstream-app` for a model, in the syntax of GLib's key files."""

from __future__ import annotations

import configparser
import dataclasses
import io
from collections.abc import Mapping

from runtime.errors import UserError
from runtime.manifest import Manifest

from .contract import (
    CROPPING_VERSIONS,
    NET_SCALE_FACTOR,
    OFFSETS,
    OUTPUTS,
    PARSER,
    PARSER_LIBRARY,
    STRONGLY_TYPED_VERSIONS,
    Version,
)

MODEL, LABELS = "model.onnx", "labels.txt"
INFER, APP = "config_infer_primary.txt", "deepstream_app_config.txt"
SAMPLE = "file:///opt/nvidia/deepstream/deepstream/samples/streams/sample_1080p_h264.mp4"
PERIOD_US = 40_000  # how long the muxer waits for a full batch: a frame at 25 frames per second

Groups = Mapping[str, Mapping[str, object]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a configuration says beside the manifest."""

    version: Version
    batch: int  # frames at a time: as many as there are sources
    score: float  # the lowest score of a detection, 0–1
    frame_hw: tuple[int, int]  # px, of the frames that reach nvinfer


def engine_name(batch: int) -> str:
    """The name under which nvinfer keeps the engine that it builds of the model, and looks for it the next time."""
    return f"{MODEL}_b{batch}_gpu0_fp32.engine"


def infer_groups(manifest: Manifest, settings: Settings) -> Groups:
    """The groups and keys of nvinfer's configuration. `manifest` is that of a variant with a single canvas.

    `network-mode` is float32 for every precision: a strongly typed network has the types of the graph, and TensorRT
    refuses the flags that another mode sets.
    """
    height, width = manifest.inputs.largest_canvas
    typed = {"strongly-typed": 1} if settings.version in STRONGLY_TYPED_VERSIONS else {}
    cropped = {"crop-objects-to-roi-boundary": 1} if settings.version in CROPPING_VERSIONS else {}
    return {
        "property": {
            "gpu-id": 0,
            "gie-unique-id": 1,
            "process-mode": 1,
            "interval": 0,
            "onnx-file": MODEL,
            "model-engine-file": engine_name(settings.batch),
            "labelfile-path": LABELS,
            "batch-size": settings.batch,
            "network-mode": 0,
            **typed,
            "network-type": 0,
            "num-detected-classes": len(manifest.classes),
            "infer-dims": _joined((3, height, width)),
            "network-input-order": 0,
            "model-color-format": 0,
            "net-scale-factor": f"{NET_SCALE_FACTOR:g}",
            "offsets": _joined(OFFSETS),
            "maintain-aspect-ratio": 1,
            "symmetric-padding": 0,
            "scaling-filter": 1,
            "output-blob-names": _joined(OUTPUTS),
            "cluster-mode": 4,
            **cropped,
            "parse-bbox-func-name": PARSER,
            "custom-lib-path": PARSER_LIBRARY,
        },
        "class-attrs-all": {
            "pre-cluster-threshold": f"{settings.score:g}",
            "topk": manifest.thresholds.detections,
        },
    }


def app_groups(settings: Settings) -> Groups:
    """The groups and keys of a configuration of `deepstream-app`: a sample video, detected and measured, not shown."""
    height, width = settings.frame_hw
    return {
        "application": {"enable-perf-measurement": 1, "perf-measurement-interval-sec": 5},
        "source0": {"enable": 1, "type": 3, "uri": SAMPLE, "num-sources": settings.batch, "gpu-id": 0},
        "streammux": {
            "gpu-id": 0,
            "live-source": 0,
            "batch-size": settings.batch,
            "batched-push-timeout": PERIOD_US,
            "width": width,
            "height": height,
        },
        "primary-gie": {"enable": 1, "gpu-id": 0, "gie-unique-id": 1, "config-file": INFER},
        "osd": {"enable": 1, "gpu-id": 0},
        "sink0": {"enable": 1, "type": 1, "sync": 0, "source-id": 0, "gpu-id": 0},
        "tests": {"file-loop": 0},
    }


def key_file(groups: Groups, comment: str) -> str:
    """Groups as the text of a key file, with a comment at its head."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # nvinfer's keys distinguish case
    parser.read_dict(groups)
    text = io.StringIO()
    parser.write(text, space_around_delimiters=False)
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return f"{head}{text.getvalue().rstrip()}\n"


def label_lines(classes: tuple[str, ...]) -> str:
    """The content of a label file. Raises UserError for a name that nvinfer would cut or take for several."""
    for name in classes:
        if not name.strip() or any(sign in name for sign in ";\r\n"):
            raise UserError(
                f"the class {name!r} can't stand in DeepStream's {LABELS}, whose lines are names, cut at a semicolon; "
                "rename the class in the data set's categories"
            )
    return "".join(f"{name}\n" for name in classes)


def _joined(values: tuple[object, ...]) -> str:
    return ";".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
