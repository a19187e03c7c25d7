"""The limit of megapixels: the same option for every command, and in a data set for whatever reads its images."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.coco import load_coco
from runtime.images import MAX_PIXELS, ImageError
from runtime.images.limit import add_limit_argument, max_pixels


def parsed(*arguments: str) -> int:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_limit_argument(parser)
    return max_pixels(parser.parse_args(arguments).max_megapixels)


def test_the_option_counts_in_megapixels() -> None:
    assert parsed() == MAX_PIXELS
    assert parsed("--max-megapixels", "0.5") == 500_000
    assert parsed("--max-megapixels", "1e-6") == 1


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "0", "-1", "1e400", "9" * 400, "", "many"])
def test_a_value_that_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=r"expected at least 1e-06 and at most 1e\+06"):
        parsed(f"--max-megapixels={text}")


def test_a_data_set_has_a_limit(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((30, 40, 3), np.uint8))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
        "annotations": [],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = load_coco(tmp_path / "a.json", tmp_path)
    assert dataset.image(0).shape == (30, 40, 3)
    small = dataclasses.replace(dataset, max_pixels=30 * 40 - 1)
    for read in (lambda: small.image(0), lambda: small.load(0, None)):
        with pytest.raises(ImageError, match="--max-megapixels"):
            read()
    assert small.image(0, max_pixels=30 * 40).shape == (30, 40, 3)
