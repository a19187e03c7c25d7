"""What a file says about itself against what it was made of: a runtime takes names, sizes and thresholds from there.

A graph's hash leaves the manifest out, so that a wrong one shows nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from runtime.manifest import Manifest

from .checks import MANIFEST, Check

# Of the file and of its making; the hashes are checked by themselves, precision by the convolutions.
_OF_THE_FILE = ("precision", "sums_fit_16_bits", "graph_sha256", "libraries", "ap")
_OF_THE_EXPORT = (*_OF_THE_FILE, "inputs", "checkpoint_sha256", "toolkit_version")


def check_conversion(manifest: Manifest, original: Manifest) -> Check:
    """A conversion changes no more than precision, hash, libraries and the AP that was measured."""
    return _check(manifest, original, _OF_THE_FILE)


def check_export(manifest: Manifest, described: Manifest) -> Check:
    """Classes, preprocessing, thresholds and recipe are the checkpoint's, as training describes it."""
    return _check(manifest, described, _OF_THE_EXPORT)


def _check(manifest: Manifest, expected: Manifest, left_out: Collection[str]) -> Check:
    given, wanted = (_fields(dataclasses.asdict(side), left_out) for side in (manifest, expected))
    unlike = sorted(name for name in wanted if given[name] != wanted[name])
    return Check("file", MANIFEST, len(wanted), len(unlike), 0, ", ".join(unlike))


def _fields(record: dict[str, object], left_out: Collection[str]) -> dict[str, object]:
    """Values by name, those of a record inside as "preprocess.short_side"."""
    found: dict[str, object] = {}
    for name, value in record.items():
        if name in left_out:
            continue
        inner = _fields(value, ()) if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{key}".rstrip("."): part for key, part in inner.items()}
    return found
