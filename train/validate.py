"""Evaluation of a torch detector by the runtime's own code: it only stands in for the deployed graph.

python -m train.validate runs/NAME/last.pt --annotations val.json --images val/
torchrun --nproc-per-node 8 -m train.validate runs/NAME/last.pt --annotations val.json --images val/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.coco import CocoDataset, load_coco, load_ground_truth, score
from runtime.coco.evaluation import Evaluation
from runtime.coco.report import metrics_as_json, metrics_as_table
from runtime.coco.results import empty_results
from runtime.coco.run import RunSettings, detect_dataset
from runtime.coco.shards import join_parts
from runtime.detections import RawOutputs
from runtime.detector import Detector as RuntimeDetector
from runtime.detector import DetectorProtocol
from runtime.errors import run_main
from runtime.files import atomic_write
from runtime.manifest import InputShapes, Manifest, toolkit_version
from runtime.stopwatch import Stopwatch
from runtime.tta import add_tta_arguments, parse_tta, with_tta

from .config import Config
from .model.backbones import COARSEST
from .model.detector import Detector
from .model.postprocess import candidates
from .trainer.checkpoint import Classes, load_detector
from .trainer.distributed import ALONE, World, gather, gather_on_main, joined

ANY_SIZE = InputShapes(1, 65536, COARSEST, 65536, COARSEST, 65536)  # batch, height, width


class TorchBackend:
    """A runtime backend that runs a torch detector in float32 and leaves NMS to the runtime."""

    def __init__(self, detector: Detector, config: Config, classes: Classes) -> None:
        self.detector = detector
        self.config = config
        self.manifest = describe(config, classes, ANY_SIZE)
        self.device = detector.mean.device
        self.description = f"torch {torch.__version__} on {self.device}"

    @property
    def concurrency(self) -> int:
        return 1  # the detector is one module, switched to inference and back

    @torch.inference_mode()
    def infer(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        *,
        all_candidates: bool = False,
        stopwatch: Stopwatch | None = None,
    ) -> RawOutputs:
        """Canvases uint8 [B, H, W, 3] and image sizes int32 [B, 2] → candidates, all flagged for host NMS."""
        with (stopwatch or Stopwatch()).measure("infer"):
            return self._infer(images, image_sizes)

    def _infer(self, images: np.ndarray, image_sizes: np.ndarray) -> RawOutputs:
        was_training = self.detector.training
        self.detector.eval()
        outputs = self.detector(torch.from_numpy(images).to(self.device))
        boxes, scores, classes = candidates(
            outputs,
            torch.from_numpy(image_sizes).to(self.device),
            self.config.model,
            self.config.thresholds,
        )
        self.detector.train(was_training)
        batch, rows = len(images), self.config.thresholds.detections
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
        """Nothing is held."""


def evaluate_together(
    detector: DetectorProtocol[Any],
    dataset: CocoDataset,
    world: World = ALONE,
    batch: int = 8,
    limit: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """As the runtime's `score_detector`, each process of `world` detecting on its part of the batches.

    Every image is detected on once. Process 0 scores all results, as those of one process are; the other processes
    receive the metrics without the results.
    """
    settings = RunSettings(batch, limit, part=(world.rank, world.size), progress=progress and world.is_main)
    mine = detect_dataset(detector, dataset, settings)
    parts = gather_on_main(mine, world)
    evaluation = None
    if world.is_main:
        found = join_parts(parts, dataset)
        metrics = score(load_ground_truth(dataset.json_path), found.results, found.image_ids)
        evaluation = Evaluation(metrics, found.results, found.speed)
    metrics, speed = gather(evaluation and (evaluation.metrics, evaluation.speed), world)[0]
    return evaluation or Evaluation(metrics, empty_results(), speed)


def describe(config: Config, classes: Classes, inputs: InputShapes) -> Manifest:
    """The manifest of a float32 detector; an exporter adds where the file comes from."""
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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m train.validate", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="last.pt or best.pt of a run")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO json")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the metrics here")
    add_tta_arguments(parser)
    options = parser.parse_args()
    with joined(torch.cuda.is_available()) as world:
        loaded = load_detector(options.checkpoint)
        loaded.detector.to("cuda" if torch.cuda.is_available() else "cpu")
        dataset = load_coco(options.annotations, options.images)
        detector = RuntimeDetector(TorchBackend(loaded.detector, loaded.config, loaded.classes))
        bar = sys.stderr.isatty()
        seen = with_tta(detector, parse_tta(options))
        evaluation = evaluate_together(seen, dataset, world, options.batch, progress=bar)
        if world.is_main:
            print(metrics_as_table(evaluation.metrics))
            if options.json is not None:
                atomic_write(options.json, metrics_as_json(evaluation.metrics, evaluation.speed))
    return 0


if __name__ == "__main__":
    run_main(main)
