"""Pascal VOC: an XML file for each image, in a folder of annotations or beside the images.

VOC counts pixels from 1, and its corners belong to the box: (1, 1, 10, 10) covers the first ten pixels of each side, in
the toolkit's coordinates 0 to 10. So `xmin` and `ymin` lose 1, and `xmax` and `ymax` stay. Many tools write VOC files
with corners that count from 0; `zero_based` reads these as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from runtime.images.decoding import SUFFIXES
from runtime.images.finder import find_files, find_images

from .files import read_text
from .labeled import SPLITS, Collector, LabeledObject, LabeledSet, LayoutError, numbered
from .voc_xml import VocFile, read_voc_file

ANNOTATIONS = "Annotations"
IMAGE_FOLDERS = ("JPEGImages", "images", "Images")
LISTS = ("ImageSets/Main", "ImageSets")
WHOLE = "default"  # CVAT's list of all images, which belongs to no split


class Home(NamedTuple):
    """A folder of annotation files and the folder of their images."""

    annotations: Path
    images: Path
    lists: Path | None  # the folder with a list of names for each split


def read_voc(path: Path, split: str, zero_based: bool = False) -> LabeledSet:
    """A split of a VOC data set. Category ids count from 1 in the order of all names in the folder, whatever the split.

    The folder is VOC's own (Annotations, JPEGImages, ImageSets/Main), or several of these, or one where the XML files
    lie beside the images, with a folder for each split or without. Objects marked `difficult` are regions to ignore.
    An image without an XML file, and an XML file without an image, are left out. Raises LayoutError.
    """
    if not path.is_dir():
        raise LayoutError(f"{path}: expected the folder of a Pascal VOC data set")
    found = Collector(path.absolute())
    files, names = dict[Path, VocFile](), set[str]()
    broken: dict[Path, str] = {}
    for xml in find_files(path, (".xml",)).paths:
        xml = xml.absolute()
        try:
            files[xml] = read_voc_file(xml)
            names |= {item.name for item in files[xml].objects if item.name}
        except LayoutError as error:
            broken[xml] = str(error).removeprefix(f"{xml}: ")
    if not files and not broken:
        raise LayoutError(f"{path}: no XML file in this folder; expected a Pascal VOC data set")
    ids = {name: number for number, name in numbered(sorted(names)).items()}
    for home in homes(path.absolute(), split):
        images = _Images(home, found)
        for xml in _chosen(home, split, [*files, *broken], found):
            if xml in broken:
                found.problems.add(
                    "annotation file that cannot be read, left out", f"{found.name(xml)} ({broken[xml]})"
                )
            elif (image := images.of(xml, files[xml])) is not None:
                _add(image, files[xml], xml, ids, zero_based, found)
        images.name_unused()
    return found.finish(f"{'voc0' if zero_based else 'voc'}:{path}#{split}", numbered(sorted(names)))


def homes(path: Path, split: str) -> list[Home]:
    """The folders that hold a split's annotations."""
    inside = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
    standard = [folder for folder in inside if (folder / ANNOTATIONS).is_dir()]
    if standard:
        return [
            Home(
                folder / ANNOTATIONS,
                next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), folder),
                next((folder / name for name in LISTS if any((folder / name).glob("*.txt"))), None),
            )
            for folder in standard
        ]
    folders = [path / name for names in SPLITS.values() for name in names if (path / name).is_dir()]
    if not folders:
        return [Home(path, path, None)]
    own = [path / name for name in SPLITS.get(split, (split,)) if (path / name).is_dir()]
    if not own:
        there = ", ".join(folder.name for folder in folders)
        raise LayoutError(f"{path}: no folder for split {split!r} (there are {there}); name another: #SPLIT")
    return [Home(own[0], own[0], None)]


def _chosen(home: Home, split: str, known: Iterable[Path], found: Collector) -> list[Path]:
    """The annotation files of a split: those that its list names, or all of the folder where there are no lists."""
    below = {xml.relative_to(home.annotations).with_suffix("").as_posix(): xml for xml in known if _in(xml, home)}
    if home.lists is None:
        return list(below.values())
    file = home.lists / f"{split}.txt"
    if not file.is_file():
        there = sorted(other.stem for other in home.lists.glob("*.txt"))
        if there != [WHOLE]:
            shown = ", ".join(there[:12]) + (" …" if len(there) > 12 else "")
            raise LayoutError(f"{home.lists}: no list {file.name} (splits there: {shown}); name another: #SPLIT")
        file = home.lists / f"{WHOLE}.txt"
    chosen = []
    for line in read_text(file).splitlines():
        if line.strip():
            xml = next((below[name] for name in _spellings(line.strip()) if name in below), None)
            if xml is None:
                found.problems.add("name in the list without an XML file, left out", f"{line.strip()[:80]}")
            else:
                chosen.append(xml)
    return list(dict.fromkeys(chosen))


def _spellings(line: str) -> list[str]:
    """The name that a line of a list means: all of it, without a suffix, without the 1 or −1 of a class's list."""
    names = [line]
    head, _, last = line.rpartition(" ")
    if last in ("1", "0", "-1") and head.strip():
        names.append(head.strip())
    plain = [name[: -len(suffix)] for name in names for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return [*names, *plain, *(name.rpartition("/")[2] for name in plain)]


def _in(xml: Path, home: Home) -> bool:
    return xml.is_relative_to(home.annotations)


class _Images:
    """The images of a home, found by the names of their annotation files."""

    def __init__(self, home: Home, found: Collector) -> None:
        self.home, self.found = home, found
        self.paths = [path.absolute() for path in find_images(home.images).paths]
        self.used: set[Path] = set()
        self.by_place: dict[str, list[Path]] = {}  # by the path below the folder, without suffix
        self.by_name: dict[str, list[Path]] = {}  # by the file's name alone
        for path in self.paths:
            place = path.relative_to(home.images).with_suffix("").as_posix()
            self.by_place.setdefault(place, []).append(path)
            for name in {path.name, path.stem}:
                self.by_name.setdefault(name, []).append(path)

    def of(self, xml: Path, content: VocFile) -> Path | None:
        """The image of an annotation file: that of its own name, or the one that <filename> names; else a problem.

        The file's own name comes first, as all readers of VOC have it: <filename> is often that of another machine.
        """
        place = xml.relative_to(self.home.annotations).with_suffix("").as_posix()
        said = PurePosixPath(content.filename).name
        for candidates in (
            self.by_place.get(place, []),
            self.by_name.get(xml.stem, []),
            self.by_name.get(said, []) if said else [],
        ):
            exact = [path for path in candidates if path.name == said]
            if len(candidates) == 1 or len(exact) == 1:
                image = candidates[0] if len(candidates) == 1 else exact[0]
                self.used.add(image)
                return image
            if candidates:
                names = ", ".join(self.found.name(path) for path in candidates[:3])
                self.found.problems.add("XML file with several images, left out", f"{self.found.name(xml)} ({names})")
                self.used |= set(candidates)
                return None
        self.found.problems.add("XML file without an image, left out", self.found.name(xml))
        return None

    def name_unused(self) -> None:
        """Add the images without an XML file to the problems, where every XML file of the folder was to be read."""
        for path in self.paths if self.home.lists is None else []:
            if path not in self.used:
                kind = "image without an XML file, left out (one without objects needs a file without objects)"
                self.found.problems.add(kind, self.found.name(path))


def _add(image: Path, content: VocFile, xml: Path, ids: dict[str, int], zero_based: bool, found: Collector) -> None:
    size_hw = found.size_of(image)
    if size_hw is None:
        return
    if content.size_hw not in (None, size_hw):
        (said_h, said_w), (height, width) = content.size_hw or (0, 0), size_hw
        kind = "image of another size than its XML file says, left out (correct its <size>, or delete it)"
        found.problems.add(kind, f"{found.name(xml)} (says {said_w}×{said_h}, is {width}×{height})")
        return
    objects = []
    for number, item in enumerate(content.objects, start=1):
        name = f"{os.fspath(found.name(xml))}, object {number}"
        if item.problem:
            found.problems.add(f"{item.problem}, dropped", name)
            continue
        xmin, ymin, xmax, ymax = item.corners
        if xmax < xmin or ymax < ymin:
            found.problems.add("bndbox with its corners exchanged, put in order", name)
            (xmin, xmax), (ymin, ymax) = sorted((xmin, xmax)), sorted((ymin, ymax))
        if not zero_based:
            if min(xmin, ymin) < 1:
                kind = "bndbox that begins before pixel 1, where VOC begins (if the files count from 0, read voc0:)"
                found.problems.add(kind, name)
            xmin, ymin = xmin - 1, ymin - 1
        box = found.box((xmin, ymin, xmax, ymax), size_hw, name)
        if box is not None:
            objects.append(LabeledObject(ids[item.name], box, item.is_difficult))
    found.add(image, size_hw, objects)
