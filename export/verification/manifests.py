"""Compare a file's manifest with that of what it was made of: a runtime takes classes, sizes and thresholds from it.

No other check covers the manifest, because a graph's hash leaves it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from runtime.manifest import Manifest

from .checks import MANIFEST, Check

# Fields that differ by right. Hashes are checked elsewhere, and the precision by the convolutions.
_OF_THE_FILE = ("precision", "sums_fit_16_bits", "graph_sha256", "libraries", "ap")
_OF_THE_EXPORT = (*_OF_THE_FILE, "inputs", "interface", "checkpoint_sha256", "toolkit_version")


def check_conversion(manifest: Manifest, original: Manifest) -> Check:
    """Passes where a conversion changed only precision, sums_fit_16_bits, hash, libraries and the measured AP."""
    return _check(manifest, original, _OF_THE_FILE)


def check_export(manifest: Manifest, described: Manifest) -> Check:
    """Passes where classes, preprocessing, thresholds and recipe are those of the checkpoint's description."""
    return _check(manifest, described, _OF_THE_EXPORT)


def _check(manifest: Manifest, expected: Manifest, left_out: Collection[str]) -> Check:
    given, wanted = (_fields(dataclasses.asdict(side), left_out) for side in (manifest, expected))
    unlike = sorted(name for name in wanted if given[name] != wanted[name])
    return Check("file", MANIFEST, len(wanted), len(unlike), 0, ", ".join(unlike))


def _fields(record: dict[str, object], left_out: Collection[str]) -> dict[str, object]:
    """The values of a record by name; those of an inner record are named like "preprocess.short_side"."""
    found: dict[str, object] = {}
    for name, value in record.items():
        if name in left_out:
            continue
        inner = _fields(value, ()) if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{key}".rstrip("."): part for key, part in inner.items()}
    return found
