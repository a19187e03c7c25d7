"""Small files of foreign data sets, read with limits: text, YAML and XML that cannot do more than say something."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from runtime.errors import UserError

from .labeled import LayoutError

MOST_TEXT = 64 << 20  # bytes of a list of images, a label file or an XML file
MOST_YAML = 256 << 10  # bytes; PyYAML needs seconds for more
DEEPEST = 50  # elements inside each other; Pascal VOC has five


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A text in UTF-8, or as Windows' editors write it in UTF-16. Bytes of other encodings become U+FFFD.

    Raises LayoutError where the file cannot be read, is no regular file, or is larger than `most` bytes.
    """
    data = read_bytes(path, most)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """The bytes of a file. Raises LayoutError as `read_text`."""
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise LayoutError(f"{path}: not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise LayoutError(f"{path}: {size / 1e6:.1f} MB, more than such a file can need ({most / 1e6:.1f} MB)")
            return file.read()
    except OSError as error:
        raise LayoutError(f"{path}: cannot read it: {error.strerror or error}; check the path") from error
    except ValueError as error:  # a NUL in the name
        raise LayoutError(f"{os.fspath(path)!r}: not a file name") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Scalars stay texts, as written: `no` is a class, not false.

    Raises LayoutError for a file that is no mapping or uses aliases, which can make a small file fill the memory, and
    UserError where PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError(
            "data.yaml files are read with PyYAML, which is not installed: install atss-toolkit[train], or pyyaml"
        ) from error
    text = read_text(path, MOST_YAML)
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.BaseLoader)):
            raise LayoutError(f"{path}: uses a YAML alias (*name); write its value out")
        content = yaml.load(text, Loader=yaml.BaseLoader)  # texts, lists and mappings only
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LayoutError(f"{path}: not valid YAML ({reason})") from error
    if not isinstance(content, dict):
        raise LayoutError(f"{path}: expected a mapping with names, train and val")
    return content


def read_xml(path: Path) -> Element:
    """The root element of an XML file. Raises LayoutError for invalid XML, for entities and for deep nesting.

    A small XML file expands to gigabytes, or reads other files, by its own entities; Pascal VOC needs none.
    """
    data = read_bytes(path)
    builder, depth = TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise LayoutError(f"{path}: elements are nested more than {DEEPEST} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(name: str, *_: Any) -> None:
        raise LayoutError(f"{path}: declares the entity {name[:40]!r}, which no annotation needs")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise LayoutError(f"{path}: not valid XML ({error})") from error
