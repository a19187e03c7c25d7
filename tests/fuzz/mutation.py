"""Hypothesis strategies that damage a valid input: JSON by its structure, and any file by its bytes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

Path = tuple[Any, ...]

# Texts that `json.dumps` cannot write: they stand in the document as marks and are put in afterwards.
_RAW = {
    "@raw-1e400@": "1e400",
    "@raw-400-digits@": "9" * 400,
    "@raw-5000-digits@": "9" * 5000,
    "@raw-deep@": "[" * 100_000 + "]" * 100_000,
    "@raw-deep-objects@": '{"a":' * 900 + "1" + "}" * 900,
    "@raw-minus-zero@": "-0",
    "@raw-nothing@": "",
}
_TWICE = "@twice@"  # ends a key that stands in the object a second time

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 256, 1.0, 0.5, -0.5, 1.5, 1e-9, 5e-324, 1e10, 1e30, 1e38, 1e39, 1e308, -1e308),
    *(math.nan, math.inf, -math.inf, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30),
    *("@raw-1e400@", "@raw-400-digits@", "@raw-5000-digits@", "@raw-minus-zero@"),
)
TEXTS: tuple[str, ...] = (
    *("", " ", "0", "1", "-1", "1.0", "1e3", " 1 ", "nan", "true", "false", "null", "None", "\ud800", "\x00", "a\x00b"),
    *(
        "\x1b[31mred\x1b[0m",
        "a\nb",
        "a\r\nb",
        "\u2028",
        "\u202e",
        "é",
        "日本語",
        "🎈",
        "x" * 3000,
        "%s%n{0}",
        "\\",
        '"',
    ),
    *(
        "../a.jpg",
        "../../../etc/passwd",
        "/etc/passwd",
        "C:\\a.jpg",
        "a\\b.jpg",
        "//server/a.jpg",
        "~",
        "-",
        "/dev/zero",
    ),
    *("http://example.invalid/a.jpg", "rgb", "person", "1_000", "０", "٣"),
)
OTHERS: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None] * 4, [1], [1, 2, 3, 4], [[1, 2, 3, 4]], [0, 0, 0, 0], {"a": 1}),
    *(["a", "b", "c", "d"], {"counts": [1, 2], "size": [2, 2]}, {"counts": "abc", "size": [9, 9]}, [1e30] * 4),
    *("@raw-deep@", "@raw-deep-objects@", "@raw-nothing@"),
)

odd_values: SearchStrategy[Any] = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(OTHERS),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
)


def places(document: Any, path: Path = ()) -> list[Path]:
    """The paths of all values in a JSON document but the document itself."""
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [one for key, value in inner for one in ((*path, key), *places(value, (*path, key)))]


def _holder(document: Any, path: Path) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def _replace(draw: DrawFn, holder: Any, key: Any, document: Any) -> None:
    holder[key] = copy.deepcopy(draw(odd_values))


def _drop(draw: DrawFn, holder: Any, key: Any, document: Any) -> None:
    del holder[key]


def _duplicate(draw: DrawFn, holder: Any, key: Any, document: Any) -> None:
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[key + _TWICE] = copy.deepcopy(draw(odd_values))


def _rename(draw: DrawFn, holder: Any, key: Any, document: Any) -> None:
    if isinstance(holder, dict):
        others = [key.upper(), key + "s", key[:-1], f" {key}", "", *holder, *TEXTS[:30]]
        holder[draw(st.sampled_from(others))] = holder.pop(key)
    else:
        holder.reverse()


def _retype(draw: DrawFn, holder: Any, key: Any, document: Any) -> None:
    """The same value written otherwise: what a tool with looser types would write."""
    value = holder[key]
    ways: list[Callable[[], Any]] = [lambda: str(value), lambda: [value], lambda: {"value": value}, lambda: [value] * 2]
    if isinstance(value, bool | int | float):
        ways += [lambda: -value, lambda: value + 0.5, lambda: bool(value), lambda: value * 1000]
        ways += [lambda: float(value) if abs(value) < 1e300 else 0.5]
    if isinstance(value, list) and value:
        ways += [lambda: value[0], lambda: value[:-1], lambda: value + value[-1:], lambda: value[::-1]]
    if isinstance(value, dict) and value:
        ways += [lambda: list(value.values()), lambda: next(iter(value.values()))]
    holder[key] = copy.deepcopy(draw(st.sampled_from(ways))())


def _exchange(draw: DrawFn, holder: Any, key: Any, document: Any) -> None:
    """Another value of the document in this place."""
    other = draw(st.sampled_from(places(document)))
    holder[key] = copy.deepcopy(_holder(document, other)[other[-1]])


_WAYS = (_replace, _replace, _replace, _drop, _duplicate, _rename, _retype, _retype, _exchange)


@st.composite
def changed(draw: DrawFn, document: Any, most: int = 4) -> Any:
    """A copy of a JSON document with up to `most` changes. May hold the marks that `as_json` replaces."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, most))):
        known = places(document)
        if not known:
            break
        # By depth first: the few fields at the top are as interesting as the many numbers at the bottom.
        depths = sorted({len(path) for path in known})
        depth = draw(st.sampled_from(depths))
        path = draw(st.sampled_from([path for path in known if len(path) == depth]))
        draw(st.sampled_from(_WAYS))(draw, _holder(document, path), path[-1], document)
    return document


def as_json(document: Any) -> str:
    """JSON text of a changed document, with the marks replaced by what they stand for."""
    text = json.dumps(document)
    for mark, raw in _RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.replace(_TWICE, "")


@st.composite
def json_files(draw: DrawFn, valid: Any, most: int = 4) -> bytes:
    """A JSON file with changes to its structure, in rare cases also to its encoding or bytes."""
    way = draw(st.sampled_from(("structure",) * 20 + ("whole", "bytes", "bytes", "coding")))
    text = as_json(draw(odd_values if way == "whole" else changed(valid, most)))
    coding = draw(st.sampled_from(("utf-8-sig", "utf-16", "utf-32"))) if way == "coding" else "utf-8"
    data = text.encode(coding, "surrogatepass")
    return draw(damaged(data)) if way == "bytes" else data


@st.composite
def damaged(draw: DrawFn, data: bytes, most: int = 3, first: int = 0) -> bytes:
    """Bytes after up to `most` accidents (at least one), all behind the first `first` bytes."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(min(first, len(found)), max(len(found) - 1, min(first, len(found)))))
        length = draw(st.sampled_from((1, 1, 2, 4, 8, 16, 64, 512, 4096)))
        match draw(st.sampled_from(("bit", "bit", "bit", "byte", "cut", "insert", "drop", "zeros", "ones", "copy"))):
            case "bit":
                if at < len(found):
                    found[at] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                found[at : at + 1] = bytes([draw(st.sampled_from((0, 1, 9, 10, 0x22, 0x7F, 0x80, 0xD9, 0xFE, 0xFF)))])
            case "cut":
                del found[at:]
            case "insert":
                found[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "drop":
                del found[at : at + length]
            case "zeros":
                found[at : at + length] = bytes(min(length, len(found) - at))
            case "ones":
                found[at : at + length] = b"\xff" * min(length, len(found) - at)
            case "copy":
                other = draw(st.integers(0, max(0, len(found) - 1)))
                found[at : at + length] = found[other : other + length]
    return bytes(found)


@st.composite
def option_lists(draw: DrawFn, valid: Sequence[str], options: Sequence[str], values: Sequence[str]) -> list[str]:
    """A command line: a valid one with options and values put in, exchanged or taken out."""
    found = list(valid)
    texts = (*values * 3, *map(str, NUMBERS), *TEXTS)
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 1, 1, 1, 2, 2, 3)))):
        match draw(st.sampled_from(("option",) * 6 + ("bare", "bare", "value", "text", "drop"))):
            case "option":
                count = draw(st.sampled_from((1, 1, 1, 1, 2, 3)))
                found += [draw(st.sampled_from(options)), *(draw(st.sampled_from(texts)) for _ in range(count))]
            case "bare":
                found.append(draw(st.sampled_from(options)))
            case "value":
                at = draw(st.integers(0, max(0, len(found) - 1)))
                found[at : at + 1] = [draw(st.sampled_from(texts))]
            case "text":
                found.insert(draw(st.integers(0, len(found))), draw(st.text(max_size=8)))
            case "drop":
                at = draw(st.integers(0, max(0, len(found) - 1)))
                del found[at : at + 1]
    return [text for text in found if not text.startswith("@raw")]
