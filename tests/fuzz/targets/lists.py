"""Lists of images in texts and Parquet files, the log of a run, and the names of streams."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from pyarrow import parquet

from ..mutation import TEXTS, changed, damaged, json_files
from ..target import Target, require


@st.composite
def _texts(draw: DrawFn, valid: bytes) -> dict[str, bytes]:
    if not draw(st.booleans()):
        return {"list.txt": draw(damaged(valid)) if draw(st.integers(0, 9)) else valid}
    names = st.one_of(st.sampled_from(TEXTS), st.text(max_size=30), st.just("x" * 5000), st.just("a.jpg"))
    lines = draw(st.lists(names, max_size=5))
    coding = draw(st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16")))
    return {"list.txt": "\n".join(lines).encode(coding, "surrogatepass")}


def _read_text(folder: Path, seeds: Path) -> str:
    from runtime.errors import UserError
    from runtime.images import decode
    from runtime.images.sources import find_sources

    found = find_sources([folder / "list.txt"], folder / "out")
    require(len({source.name for source in found}) == len(found), "two drawings of one name")
    for source in found:
        require("\0" not in source.name and ".." not in Path(source.name).parts, f"a drawing named {source.name!r}")
        if not source.is_video:
            try:
                decode(source.path)
            except UserError as error:
                str(error)
    return f"{len(found)} sources"


@st.composite
def _tables(draw: DrawFn, valid: bytes) -> dict[str, bytes]:
    if not draw(st.booleans()):
        return {"i.parquet": draw(damaged(valid)) if draw(st.integers(0, 9)) else valid}
    names = ["path", "bytes", "image", "other"]
    values = st.one_of(
        st.none(), st.text(max_size=5), st.binary(max_size=5), st.integers(-5, 2**40), st.floats(), st.booleans()
    )
    columns = {}
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=3)):
        value = draw(values)
        column = [value, draw(st.sampled_from((None, value)))]
        if draw(st.integers(0, 3)) == 0:
            column = [{"path": "a.jpg", "bytes": item} for item in column]
        columns[name] = column[: draw(st.integers(0, 2))] if len(columns) == 0 else column
    sink = pyarrow.BufferOutputStream()
    try:
        parquet.write_table(pyarrow.table(columns), sink)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
        return {"i.parquet": valid}
    return {"i.parquet": sink.getvalue().to_pybytes()}


def _read_table(folder: Path, seeds: Path) -> str:
    from runtime.images.stored import holds_images, named_paths, read_group, row_groups

    path = folder / "i.parquet"
    if not holds_images(path):
        return f"{len(named_paths(path))} names"
    groups = row_groups(path)
    images = [image for group in groups for image in read_group(group)]
    require(len(images) == sum(group.rows for group in groups), "rows are missing")
    require(all(isinstance(n, str) and isinstance(d, bytes) for n, d in images), "rows of another type")
    return f"{len(images)} images"


_LOG = [
    {"kind": "train", "step": 20, "classification": 1.0, "box": 0.5, "centerness": 0.6, "learning_rate": 0.01},
    {"kind": "val", "step": 20, "AP": 0.2, "AP50": 0.3, "AP75": 0.1},
]


@st.composite
def _logs(draw: DrawFn) -> dict[str, bytes]:
    if draw(st.booleans()):
        lines = [json.dumps(line).encode() for line in _LOG]
        return {"run/log.jsonl": draw(damaged(b"\n".join(lines)))}
    lines = draw(changed(_LOG, 2))
    made = [draw(json_files(line, 1)) for line in (lines if isinstance(lines, list) else _LOG)]
    return {"run/log.jsonl": b"\n".join(made)}


def _read_log(folder: Path, seeds: Path) -> str:
    from runtime.training_log import LOG, read_log

    lines = read_log(folder / "run" / LOG)
    require(all(isinstance(line, dict) for line in lines), "a line that is no object")
    return f"{len(lines)} lines"


_ADDRESSES = ("rtsp://u:p@host/a", "triton://host:8001/m", "camera:0", "http://host/a.mp4", "triton+http://h:1/m")


@st.composite
def _addresses(draw: DrawFn) -> dict[str, bytes]:
    return {"address": draw(damaged(draw(st.sampled_from(_ADDRESSES)).encode()))}


def _read_address(folder: Path, seeds: Path) -> str:
    from runtime.backends.triton.address import TritonAddress, is_address
    from runtime.images.stream import file_name, is_stream, public_name
    from runtime.model_spec import ModelSpec

    text = (folder / "address").read_bytes().decode("utf-8", "surrogateescape")
    ModelSpec.parse(text)
    name = file_name(text)
    require("/" not in name and "\0" not in name, f"a file named {name!r}")
    if is_stream(text):
        require("u:p@" not in public_name(text), "a password in a public name")
    if is_address(text):
        found = TritonAddress.parse(text)
        require(TritonAddress.parse(str(found)) == found, f"{found} is another address when it is read again")
    return name[:50]


TARGETS = {
    "lists of images": Target(lambda seeds: _texts((seeds / "list.txt").read_bytes()), _read_text, 1, 30),
    "images in Parquet": Target(lambda seeds: _tables((seeds / "images.parquet").read_bytes()), _read_table, 1, 25),
    "log of a run": Target(lambda seeds: _logs(), _read_log, 0.5, 20),
    "addresses": Target(lambda seeds: _addresses(), _read_address, 0.5, 30),
}
