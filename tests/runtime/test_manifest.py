from __future__ import annotations

import dataclasses
import json

import pytest

from runtime.manifest import (
    MANIFEST_VERSION,
    InputShapes,
    ManifestError,
    Preprocess,
    Thresholds,
    from_json,
    to_json,
    toolkit_version,
)

from ..support.fakes import MANIFEST, manifest_with


def changed(**changes: object) -> str:
    """JSON of MANIFEST with fields set, by dotted path with __ for the dot; ... removes the field."""
    fields = json.loads(to_json(MANIFEST))
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = fields
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[name]
        else:
            place[name] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    "manifest",
    [
        MANIFEST,
        manifest_with(ap=0.413, precision="int8", libraries={}, classes=("größe",), category_ids=(0,)),
        manifest_with(
            preprocess=Preprocess(320, 640, 64, (0, 0, 0), (127.5,) * 3, (127.5,) * 3, "bgr"),
            inputs=InputShapes(1, 16, 64, 512, 64, 512),
        ),
        manifest_with(thresholds=Thresholds(0.01, 10, 0.5, 7)),
    ],
)
def test_round_trip(manifest) -> None:
    again = from_json(to_json(manifest), "x")
    assert again == manifest
    assert isinstance(again.classes, tuple)
    assert isinstance(again.preprocess.mean, tuple)
    assert isinstance(again.preprocess.mean[0], float)


def test_the_defaults_are_the_papers() -> None:
    assert Thresholds() == Thresholds(score=0.05, candidates_per_level=1000, nms_iou=0.6, detections=100)


def test_bytes_serve_too() -> None:
    assert from_json(to_json(MANIFEST).encode(), "x") == MANIFEST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x: the manifest is not JSON"),
        (to_json(MANIFEST)[:50], "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "is a list, expected an object"),
        ("{}", f"manifest version None, .* reads version {MANIFEST_VERSION}"),
        (changed(version=99), "manifest version 99"),
        (changed(version=True), "manifest version True"),
        (changed(recipe=...), "'recipe' is missing"),
        (changed(preprocess__mean=...), "'preprocess.mean' is missing"),
        (changed(extra=1), "unknown field 'extra'"),
        (changed(inputs__depth=1), "unknown field 'inputs.depth'"),
        (changed(recipe=3), r"'recipe' is a number \(3\), expected str"),
        (changed(classes="red"), r"'classes' is a text \('red'\), expected tuple"),
        (changed(classes=["a", 1]), r"'classes\[1\]' is a number"),
        (changed(preprocess="no"), "'preprocess' is a text"),
        (changed(preprocess__short_side=1.5), "'preprocess.short_side' is a number"),
        (changed(preprocess__short_side=True), "'preprocess.short_side' is a boolean"),
        (changed(preprocess__mean=[1, 2]), "'preprocess.mean' is a list"),
        (changed(preprocess__mean=[1, 2, float("nan")]), "the manifest is not JSON .NaN is no number of JSON"),
        (changed(preprocess__mean=[1, 2, 1e5]), r"'preprocess.mean\[2\]' is a number \(100000.0\)"),
        (changed(preprocess__mean=[1, 2, 10**400]), r"'preprocess.mean\[2\]' is a number \(1000+ …\), expected float"),
        (changed(thresholds__score=-(10**400)), "'thresholds.score' is a number"),
        (changed(inputs__batch_max=10**400), "'inputs.batch_max' is a number"),
        (changed().replace("100", "1" * 5000), "not JSON .a number has too many digits"),
        (changed().replace('"recipe"', '"ap": 1, "recipe"', 1), "the name 'ap' occurs twice"),
        (changed().encode("utf-16")[:-1], "not JSON: .* at byte"),
        (b"\xff\xfe\xfd", "not JSON"),
        (changed(recipe="\ud800"), r"'recipe' is a text \('\\ud800'\)"),
        (changed(classes=["a", "\x1b[31mb"]), r"'classes\[1\]' is a text \('\\x1b\[31mb'\), expected .* control"),
        (changed(classes=["a", ""]), r"'classes\[1\]' is a text \(''\), expected"),
        (changed(category_ids=[7, 10**30]), r"'category_ids\[1\]' is a number \(10+\), expected at least -9"),
        (changed(graph_sha256=""), "'graph_sha256' is a text .*, expected a SHA-256"),
        (changed(preprocess__size_divisor=7), "'preprocess.size_divisor' is a number .7., expected a multiple of 32"),
        (changed(preprocess__size_divisor=64), "'inputs.height_min' is a number .32., expected a multiple of pre"),
        (changed(preprocess__channel_order="gbr"), "'preprocess.channel_order'"),
        (changed(precision="fp64"), "'precision'"),
        (changed(libraries={"torch": 2}), "'libraries.torch' is a number"),
        (changed(ap="high"), "'ap' is a text"),
        (changed(ap=41.3), "'ap' is a number .41.3., expected at least 0 and at most 1"),
        (changed(classes=[]), "'classes' is a list .*, expected 1 to"),
        (changed(category_ids=[7]), "'category_ids' is a list .7., expected as many ids as classes"),
        (changed(category_ids=[7, 7]), "expected .* distinct values"),
        (changed(preprocess__std=[1, 0, 1]), "'preprocess.std.1.' is a number .0., expected at least 0.0001"),
        (changed(preprocess__long_side=1), "'preprocess.long_side'"),
        (changed(preprocess__pad_value=[0, 0, 256]), "'preprocess.pad_value.2.'"),
        (changed(thresholds__nms_iou=0), "'thresholds.nms_iou'"),
        (changed(inputs__batch_min=0), "'inputs.batch_min'"),
        (changed(inputs__width_max=1), "'inputs.width_max' is a number .1., expected at least width_min"),
    ],
)
def test_a_bad_manifest_names_the_field_and_the_cure(text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        from_json(text, "x")
    assert str(caught.value).startswith("x: ")
    assert "python -m export.to_onnx" in str(caught.value)


def test_nonsense_is_not_written_either() -> None:
    with pytest.raises(ManifestError, match="category_ids"):
        to_json(manifest_with(category_ids=(1,)))


def test_every_field_is_required_on_reading() -> None:
    """But for those that files of before lack: they say what that means."""
    for field in dataclasses.fields(MANIFEST):
        if "absent" in field.metadata:
            assert getattr(from_json(changed(**{field.name: ...}), "x"), field.name) == field.metadata["absent"]
            continue
        with pytest.raises(ManifestError, match=field.name):
            from_json(changed(**{field.name: ...}), "x")


def test_toolkit_version_is_a_text() -> None:
    assert toolkit_version()


SHAPES = InputShapes(2, 8, 64, 512, 96, 768)


def test_input_shapes_name_their_ranges() -> None:
    assert SHAPES.ranges == {"batch": (2, 8), "height": (64, 512), "width": (96, 768)}
    assert (SHAPES.smallest_canvas, SHAPES.largest_canvas) == ((64, 96), (512, 768))
    assert not SHAPES.has_one_canvas
    assert dataclasses.replace(SHAPES, height_min=512, width_min=768).has_one_canvas
    assert not dataclasses.replace(SHAPES, height_min=512).has_one_canvas


def test_what_is_in_range_is_left_as_it_is_and_the_rest_moved_to_the_nearest() -> None:
    """Against the definition: among all sizes in range, the nearest."""
    for side in (1, 64, 95, 96, 300, 512, 513, 768, 5000):
        height, width = SHAPES.nearest_canvas((side, side))
        assert height == min(range(64, 513), key=lambda one: abs(one - side))
        assert width == min(range(96, 769), key=lambda one: abs(one - side))
        assert SHAPES.nearest_batch(side) == min(range(2, 9), key=lambda one: abs(one - side))


@pytest.mark.parametrize(
    ("needed", "canvas"),
    [((32, 32), (64, 96)), ((64, 128), (64, 128)), ((512, 768), (512, 768)), ((513, 96), None), ((64, 800), None)],
)
def test_the_canvas_for_an_image(needed: tuple[int, int], canvas: tuple[int, int] | None) -> None:
    assert SHAPES.canvas_for(needed) == canvas


def test_the_summary_of_input_shapes() -> None:
    assert SHAPES.summary() == "canvases 64×96 to 512×768, batch 2-8"
    assert InputShapes(1, 16, 64, 64, 96, 96).summary() == "canvas 64×96 (height × width), batch 1-16"
