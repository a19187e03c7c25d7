"""Evaluates a torch detector with the runtime's own code: the network takes the place of the deployed graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from runtime.coco import CocoDataset, load_ground_truth, score
from runtime.coco.evaluation import Evaluation
from runtime.coco.results import empty_results
from runtime.coco.run import RunSettings, detect_dataset
from runtime.coco.shards import join_parts
from runtime.detections import RawOutputs
from runtime.detector_protocol import DetectorProtocol
from runtime.manifest import InputShapes, Manifest, toolkit_version
from runtime.stopwatch import Stopwatch

from ..build import build_postprocess
from ..checkpoint import Classes
from ..config import Config
from ..model.backbones import COARSEST
from ..model.detector import DetectorNetwork
from ..model.postprocess import select_candidates
from .distributed import ALONE, World, all_gather, gather_to_main

ANY_SIZE = InputShapes(1, 65536, COARSEST, 65536, COARSEST, 65536)  # ranges of batch, height and width


class TorchBackend:
    """A runtime backend that runs a torch detector in float32 and leaves NMS to the runtime.

    The detector stays on its device and is switched to evaluation mode for each batch.
    """

    def __init__(self, detector: DetectorNetwork, config: Config, classes: Classes) -> None:
        self.detector = detector
        self._postprocess = build_postprocess(config.model, config.thresholds)
        self.manifest = detector_manifest(config, classes, ANY_SIZE)
        self.device = detector.mean.device
        self.description = f"torch {torch.__version__} on {self.device}"

    @property
    def concurrency(self) -> int:
        """How many batches may run at once: one, since the module is switched to evaluation mode and back."""
        return 1

    @torch.inference_mode()
    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """Canvases uint8 [B, H, W, 3] and image sizes int32 [B, 2] → candidates, which the runtime filters by NMS.

        All rows of detections are unused and `nms_exact` is 0, so that the runtime runs NMS on the host.
        """
        with (stopwatch or Stopwatch()).measure("infer"):
            return self._infer(images, image_sizes)

    def _infer(self, images: np.ndarray, image_sizes: np.ndarray) -> RawOutputs:
        was_training = self.detector.training
        self.detector.eval()
        outputs = self.detector(torch.from_numpy(images).to(self.device))
        boxes, scores, classes = select_candidates(
            outputs,
            torch.from_numpy(image_sizes).to(self.device),
            self._postprocess,
        )
        self.detector.train(was_training)
        batch, rows = len(images), self._postprocess.thresholds.detections
        return RawOutputs(
            num_detections=np.zeros((batch, 1), np.int32),
            detection_boxes=np.zeros((batch, rows, 4), np.float32),
            detection_scores=np.zeros((batch, rows), np.float32),
            detection_classes=np.full((batch, rows), -1, np.int32),
            nms_exact=np.zeros((batch, 1), np.int32),
            candidate_boxes=boxes.cpu().numpy(),
            candidate_scores=scores.cpu().numpy(),
            candidate_classes=classes.cpu().numpy(),
        )

    def close(self) -> None:
        """Do nothing: the backend holds nothing but the detector, which is the caller's."""


def evaluate_distributed(
    detector: DetectorProtocol[Any],
    dataset: CocoDataset,
    world: World = ALONE,
    batch: int = 8,
    limit: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """COCO metrics of a detector, of which each process of `world` runs a part of the batches.

    Each image is processed once. Process 0 scores the results of all processes as it would score its own; the other
    processes receive the metrics without the results. `limit` uses the first images only; None uses all.
    """
    settings = RunSettings(batch, limit, part=(world.rank, world.size), progress=progress and world.is_main)
    mine = detect_dataset(detector, dataset, settings)
    parts = gather_to_main(mine, world)
    evaluation = None
    if world.is_main:
        found = join_parts(parts, dataset)
        metrics = score(load_ground_truth(dataset.json_path), found.results, found.image_ids)
        evaluation = Evaluation(metrics, found.results, found.speed)
    metrics, speed = all_gather(evaluation and (evaluation.metrics, evaluation.speed), world)[0]
    return evaluation or Evaluation(metrics, empty_results(), speed)


def detector_manifest(config: Config, classes: Classes, inputs: InputShapes) -> Manifest:
    """The manifest of a detector in float32 for a range of inputs.

    An exporter adds the checksums of the checkpoint and of the graph, and the AP.
    """
    return Manifest(
        classes=classes.names,
        category_ids=classes.category_ids,
        preprocess=config.preprocess,
        thresholds=config.thresholds,
        precision="fp32",
        inputs=inputs,
        recipe=config.recipe,
        checkpoint_sha256="",
        graph_sha256="",
        toolkit_version=toolkit_version(),
        libraries={"torch": torch.__version__},
    )
