"""Measures what decoding by another library than OpenCV does to a model's AP, and notes it beside the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

from runtime.backends.receiving import Receiver
from runtime.coco.dataset import CocoDataset
from runtime.coco.evaluation import score_detector
from runtime.coco.metrics import NOTHING, is_measured
from runtime.decoders import Decode, Measured, note_path, open_decoder, write_note
from runtime.detector import Detector
from runtime.errors import UserError
from runtime.images import Decoded
from runtime.images.preprocess import WantedHw
from runtime.manifest import Preprocess

from .checks import DECODER, Check, Verification

MAX_AP_LOSS = 0.1  # of 100


def verify_decoder(model: Path, name: Decode, dataset: CocoDataset, **options: Any) -> Verification:
    """The AP that decoder `name` loses against OpenCV on a data set; noted beside the model if within the limit.

    `options` are fields of `BackendOptions`. The decoder runs on the backend's GPU if that takes images there, else on
    the host. Raises UserError.
    """
    with Detector(model, **options) as detector:
        decoder = open_decoder(name, Receiver(detector.backend).device)
        if decoder is None:
            raise UserError(f"--decode {name}: this is what others are compared with; expected nvimgcodec")
        by_opencv = score_detector(detector, dataset)
        read = _DecodedDataset(**vars(dataset), detector=Detector(detector.backend, decode=decoder))
        by_other = score_detector(detector, read)
        graph_sha256 = detector.manifest.graph_sha256
    if by_other.speed.images != by_opencv.speed.images:
        unread = next(iter(by_other.speed.skipped))
        raise UserError(f"{decoder.name} {decoder.version} reads fewer images than OpenCV does; the first: {unread}")
    if not is_measured(by_opencv.metrics.values):
        raise UserError(f"{dataset.json_path}: {NOTHING}; give annotations with objects")
    aps = by_opencv.metrics.values["AP"], by_other.metrics.values["AP"]
    images = by_opencv.speed.images
    told = f"AP {100 * aps[1]:.2f} with {decoder.name} {decoder.version} on the {decoder.place.upper()}, "
    told += f"{100 * aps[0]:.2f} with OpenCV ({images} images)"
    check = Check("data set", DECODER, images, max(0.0, 100 * (aps[0] - aps[1])), MAX_AP_LOSS, told)
    if not check.passed:
        return Verification((check,))
    write_note(model, Measured(name, decoder.version, decoder.place, graph_sha256, images, *aps))
    return Verification((check,), confirmed=(f"{told} → {note_path(model)}",))


@dataclasses.dataclass(frozen=True)
class _DecodedDataset(CocoDataset):
    """A data set whose files a detector reads, by the decoder that it was given."""

    detector: Detector

    def load(
        self, index: int, pre: Preprocess | None, max_pixels: int | None = None, wanted_hw: WantedHw | None = None
    ) -> Any:
        image = self.detector.load(self.path(index), max_pixels or self.max_pixels)
        return self._checked(index, cast(Decoded, image))  # or a DeviceImage
