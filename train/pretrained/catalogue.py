"""The catalogue: published checkpoints by name, with address, hash, licence, and the AP that their authors report.

Addresses and AP are those of the publishers' own lists: the `metafile.yml` of mmdetection's configs/atss, configs/fcos
and configs/retinanet, and torchvision's weight enums. For FCOS that list names the publisher's storage; here all files
have the address of its download host. Both publishers put the first eight digits of a file's SHA-256 into its name.
Sizes are torchvision's; mmdetection publishes none.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from runtime.errors import UserError

from .dialects import DialectName

MEBIBYTE = 1 << 20
_NAME_WITH_HASH = re.compile(r".+-([0-9a-f]{8})\.pth")
_TRAINED_ON = "trained on COCO 2017 (annotations: CC BY 4.0; images: terms of Flickr)"


@dataclass(frozen=True)
class Publisher:
    """Who publishes checkpoints: the title, the licence, and the page that states it."""

    title: str
    licence: str
    page: str


@dataclass(frozen=True)
class Published:
    """A published checkpoint: its address, its dialect and the COCO AP, in percent, that its publisher reports.

    `mebibytes` is the size that the publisher states, rounded to three digits; None where the publisher states none.
    """

    url: str
    dialect: DialectName
    average_precision: float
    publisher: Publisher
    mebibytes: float | None = None

    @property
    def file(self) -> str:
        """The file's name at its publisher, which mirrors and the cache keep."""
        return self.url.rpartition("/")[2]

    @property
    def sha256(self) -> str:
        """The first eight digits of the file's SHA-256, from its name."""
        found = _NAME_WITH_HASH.fullmatch(self.file)
        if found is None:
            raise ValueError(f"{self.file} has no hash in its name")
        return found[1]

    @property
    def bytes_range(self) -> tuple[int, int] | None:
        """The least and the most bytes that the rounded size allows; None where no size is known."""
        if self.mebibytes is None:
            return None
        return tuple(int((self.mebibytes + half) * MEBIBYTE) for half in (-0.0005, 0.0005))  # type: ignore[return-value]


OPENMMLAB = Publisher("OpenMMLab's mmdetection", "Apache-2.0", "https://github.com/open-mmlab/mmdetection")
TORCHVISION = Publisher(
    "torchvision",
    "BSD-3-Clause for the library; it states no other licence for these weights",
    "https://docs.pytorch.org/vision/stable/models.html",
)
_MM = "https://download.openmmlab.com/mmdetection/v2.0"
_TV = "https://download.pytorch.org/models"


def _mm(path: str, dialect: DialectName, average_precision: float) -> Published:
    return Published(f"{_MM}/{path}", dialect, average_precision, OPENMMLAB)


def _retinanet(folder: str, file: str, average_precision: float) -> Published:
    return _mm(f"retinanet/{folder}/{folder}_{file}.pth", "mm_retinanet", average_precision)


def _fcos(folder: str, sha256: str, average_precision: float) -> Published:
    return _mm(f"fcos/{folder}/{folder}-{sha256}.pth", "mm_fcos", average_precision)


def _tv(file: str, dialect: DialectName, average_precision: float, mebibytes: float) -> Published:
    return Published(f"{_TV}/{file}", dialect, average_precision, TORCHVISION, mebibytes)


CATALOGUE = {
    "mm_atss_r50": _mm("atss/atss_r50_fpn_1x_coco/atss_r50_fpn_1x_coco_20200209-985f7bd0.pth", "mm_atss", 39.4),
    "mm_atss_r101": _mm("atss/atss_r101_fpn_1x_coco/atss_r101_fpn_1x_20200825-dfcadd6f.pth", "mm_atss", 41.5),
    "mm_retinanet_r50": _retinanet("retinanet_r50_fpn_1x_coco", "20200130-c2398f9e", 36.5),
    "mm_retinanet_r50_2x": _retinanet("retinanet_r50_fpn_2x_coco", "20200131-fdb43119", 37.4),
    "mm_retinanet_r50_3x": _retinanet("retinanet_r50_fpn_mstrain_3x_coco", "20210718_220633-88476508", 39.5),
    "mm_retinanet_r101": _retinanet("retinanet_r101_fpn_1x_coco", "20200130-7a93545f", 38.5),
    "mm_retinanet_r101_2x": _retinanet("retinanet_r101_fpn_2x_coco", "20200131-5560aee8", 38.9),
    "mm_retinanet_r101_3x": _retinanet("retinanet_r101_fpn_mstrain_3x_coco", "20210720_214650-7ee888e0", 41.0),
    "mm_retinanet_x101_64x4d": _retinanet("retinanet_x101_64x4d_fpn_1x_coco", "20200130-366f5af1", 41.0),
    "mm_retinanet_x101_64x4d_2x": _retinanet("retinanet_x101_64x4d_fpn_2x_coco", "20200131-bca068ab", 40.8),
    "mm_retinanet_x101_64x4d_3x": _retinanet(
        "retinanet_x101_64x4d_fpn_mstrain_3x_coco", "20210719_051838-022c2187", 41.6
    ),
    "mm_fcos_r50": _fcos("fcos_r50_caffe_fpn_gn-head_1x_coco", "821213aa", 36.6),
    "mm_fcos_r50_2x": _fcos("fcos_r50_caffe_fpn_gn-head_mstrain_640-800_2x_coco", "d92ceeea", 38.5),
    "mm_fcos_r101": _fcos("fcos_r101_caffe_fpn_gn-head_1x_coco", "0e37b982", 39.1),
    "mm_fcos_r101_2x": _fcos("fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco", "511424d6", 40.8),
    "tv_retinanet_r50": _tv("retinanet_resnet50_fpn_coco-eeacb38b.pth", "tv_retinanet", 36.4, 130.267),
    "tv_retinanet_r50_v2": _tv("retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", "tv_retinanet_v2", 41.5, 146.037),
    "tv_fcos_r50": _tv("fcos_resnet50_fpn_coco-99b0c9b7.pth", "tv_fcos", 39.2, 123.608),
}

# The ATSS authors' models by name, with the AP on COCO test-dev of their README. They are not downloaded: the licence
# is for non-commercial purposes, and the files are on Google Drive and Baidu, without a hash and without a lasting
# address.
AUTHORS = {
    "authors_atss_r50": 39.3,
    "authors_atss_r101_2x": 43.6,
    "authors_atss_x101_32x8d_2x": 45.1,
    "authors_atss_x101_64x4d_2x": 45.6,
    "authors_atss_dcnv2_r50": 43.0,
    "authors_atss_dcnv2_r101_2x": 46.3,
    "authors_atss_dcnv2_x101_32x8d_2x": 47.7,
    "authors_atss_dcnv2_x101_64x4d_2x": 47.7,
}
_AUTHORS_PAGE = "https://github.com/sfzhang15/ATSS"


def find(name: str) -> Published:
    """The entry of a name. Raises UserError for a name of the authors' models, and for an unknown one."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    if name in AUTHORS:
        raise UserError(
            f"{name} is not downloaded: its licence is for non-commercial purposes, and its authors publish it without "
            f"a hash, on Google Drive and Baidu; get it from {_AUTHORS_PAGE} and give the file"
        )
    near = difflib.get_close_matches(name, [*CATALOGUE, *AUTHORS], n=1, cutoff=0.4)
    hint = f", did you mean {near[0]}?" if near else ";"
    raise UserError(f"no file and no published checkpoint {name}{hint} --list shows the names")


def describe(name: str, published: Published) -> str:
    """What a user should know before using a checkpoint: three lines with its source, licence and training data."""
    publisher = published.publisher
    return "\n".join(
        [
            f"{name}: COCO AP {published.average_precision:.1f} as reported by {publisher.title}",
            f"source:  {published.url}",
            f"licence: {publisher.licence}, see {publisher.page}; {_TRAINED_ON}",
        ]
    )


def list_names() -> str:
    """The text of `--list`: a table of names, AP, sizes and licences."""
    rows = [("name", "AP", "MiB", "publisher and licence")]
    for name, published in CATALOGUE.items():
        size = "-" if published.mebibytes is None else f"{published.mebibytes:.0f}"
        publisher = published.publisher
        licence = f"{publisher.title}: {publisher.licence.partition(';')[0]}"
        rows.append((name, f"{published.average_precision:.1f}", size, licence))
    rows += [(name, f"{ap:.1f}", "-", "ATSS authors: non-commercial, by file only") for name, ap in AUTHORS.items()]
    table = [f"{name:<33} {ap:>4} {size:>4}  {licence}" for name, ap, size, licence in rows]
    return "\n".join(
        [*table, "", f"AP as the publishers report it (the ATSS authors: test-dev). All were {_TRAINED_ON}."]
    )
