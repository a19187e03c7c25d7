"""The exported file on ONNX Runtime's CUDA provider against the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.verification.matching import count_unmatched
from runtime.backends import open_backend
from runtime.detections import postprocess

from ..conftest import Exported


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_cuda_provider_gives_the_cpus_detections(exported: Exported) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 192, 256, 3), dtype=np.uint8)
    sizes = np.full((3, 2), (192, 256), np.int32)
    cpu, gpu = (open_backend(exported.model, backend=name) for name in ("cpu", "cuda"))
    limits = cpu.manifest.thresholds
    expected, given = postprocess(cpu.infer(images, sizes), limits), postprocess(gpu.infer(images, sizes), limits)
    assert sum(map(len, expected)) > 0
    for a, b in zip(expected, given, strict=True):
        assert count_unmatched(a, b) + count_unmatched(b, a) <= 2
