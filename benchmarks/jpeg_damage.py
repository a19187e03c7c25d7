"""How often damage to a JPEG is noticed: every image of a folder, damaged in several ways, is decoded.

    python -m benchmarks.jpeg_damage photos/ [--seed 0]

The damage lies in the compressed data, behind the header. Undamaged files are decoded first: none may be refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from runtime.errors import UserError, run_main
from runtime.images import ImageError, decode
from runtime.images.finder import find_images

Damage = Callable[[bytes, int, np.random.Generator], bytes]  # of a file, the start of its compressed data, a generator
START_OF_SCAN = b"\xff\xda"


def _place(data: bytes, start: int, length: int, rng: np.random.Generator) -> int:
    """A place in the compressed data with `length` bytes behind it, before the two end bytes."""
    return int(rng.integers(start, max(start + 1, len(data) - 2 - length)))


def _replaced(length: Callable[[int], int], fill: Callable[[int, np.random.Generator], bytes]) -> Damage:
    """Put `fill` over a stretch; `length` is a function of the compressed data's."""

    def damage(data: bytes, start: int, rng: np.random.Generator) -> bytes:
        count = length(len(data) - start)
        place = _place(data, start, count, rng)
        return data[:place] + fill(count, rng) + data[place + count :]

    return damage


def _nothing(count: int, rng: np.random.Generator) -> bytes:
    return b""


def _noise(count: int, rng: np.random.Generator) -> bytes:
    return rng.bytes(count)


def _changed_byte(data: bytes, start: int, rng: np.random.Generator) -> bytes:
    place = _place(data, start, 1, rng)
    return data[:place] + bytes([data[place] ^ int(rng.integers(1, 256))]) + data[place + 1 :]


DAMAGES: dict[str, Damage] = {
    "second half zeros": lambda data, start, rng: (
        data[: len(data) // 2] + bytes(len(data) - len(data) // 2 - 2) + data[-2:]
    ),
    "a tenth zeros": _replaced(lambda size: size // 10, lambda count, rng: bytes(count)),
    "a third cut out": _replaced(lambda size: size // 3, _nothing),
    "half of it ones": _replaced(lambda size: size // 2, lambda count, rng: b"\xff" * count),
    "cut short": lambda data, start, rng: data[: _place(data, start, 2, rng)],
    "512 bytes of noise": _replaced(lambda size: min(512, size // 2), _noise),
    "a hole of 100 bytes": _replaced(lambda size: min(100, size // 2), _nothing),
    "one byte missing": _replaced(lambda size: 1, _nothing),
    "one byte changed": _changed_byte,
}


def is_read(data: bytes) -> bool:
    """Whether the bytes are decoded without a complaint."""
    try:
        decode(data)
    except ImageError:
        return False
    return True


def main() -> None:
    """Count what is refused of each kind of damage, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of JPEG files")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (%(default)s)")
    options = parser.parse_args()
    files = [path.read_bytes() for path in find_images(options.images).paths]
    files = [data for data in files if START_OF_SCAN in data]
    if not files:
        raise UserError(f"{options.images}: no JPEG file there")
    print(f"{len(files)} JPEG files of {options.images}, each damaged once in each way, seed {options.seed}")
    print("| damage | refused |\n| --- | --- |")
    print(f"| none | {sum(not is_read(data) for data in files)} of {len(files)} |")
    for name, damage in DAMAGES.items():
        rng = np.random.default_rng(options.seed)
        damaged = [damage(data, data.rindex(START_OF_SCAN) + 14, rng) for data in files]
        print(f"| {name} | {sum(not is_read(data) for data in damaged)} of {len(files)} |", flush=True)


if __name__ == "__main__":
    run_main(main)
