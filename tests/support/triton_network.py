"""The network's model for a Triton server that has no ONNX Runtime backend, in the server's Python."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format

from export.triton.config import import_messages

# Runs the graph with ONNX Runtime alone and takes every name, type and shape from the configuration, as Triton's own
# backend does. Where the environment asks for it, no NMS is exact and the detections are wrong: the one in front has to
# run NMS on the candidates.
NETWORK_PY = """
import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.batches = config["max_batch_size"] > 0
        self.inputs = {one["name"]: one for one in config["input"]}
        self.outputs = {one["name"]: one for one in config["output"]}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        folder = os.path.join(args["model_repository"], args["model_version"])
        path = os.path.join(folder, "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def check(self, array, one):
        shape = array.shape[1:] if self.batches else array.shape
        dims = [int(size) for size in one["dims"]]
        assert array.dtype == pb_utils.triton_string_to_numpy(one["data_type"]), (one, array.dtype)
        assert len(dims) == len(shape), (one, array.shape)
        assert all(size in (-1, given) for size, given in zip(dims, shape)), (one, array.shape)

    def execute(self, requests):
        responses = []
        for request in requests:
            feed = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for name, array in feed.items():
                self.check(array, self.inputs[name])
            found = dict(zip(self.outputs, self.session.run(list(self.outputs), feed)))
            if os.environ.get("ATSS_TEST_INEXACT"):
                found["nms_exact"][:] = 0
                found["detection_boxes"][:] = 7
            for name, array in found.items():
                self.check(array, self.outputs[name])
            wanted = request.requested_output_names()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor(name, found[name]) for name in wanted]))
        return responses
"""


def network_in_python(repository: Path, name: str) -> None:
    """Have Python run the network of a written repository: the test's server has no ONNX Runtime backend."""
    path = repository / name / "config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), import_messages().ModelConfig())
    assert config.backend == "onnxruntime"
    config.backend, config.default_model_filename = "python", "model.py"
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    (repository / name / "1" / "model.py").write_text(NETWORK_PY, encoding="utf-8")
