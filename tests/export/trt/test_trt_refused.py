"""Settings that the library refuses by a result, not by an exception: the build must not go on without them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from export.trt import build as trt_build
from export.trt.library import Library
from export.trt.settings import BuildError, Settings
from runtime.backends.engine_file import Profile

from ...support.rtx import LIBRARY, one_line, rtx


def test_a_profile_that_is_no_range(fixed: tuple[object, Path]) -> None:
    """The library answers -1, and would build an engine without the profile."""
    good, wrong = (1, 192, 224), (2, 192, 224)
    for profiles in ((Profile(wrong, good, good),), (Profile(good, good, good), Profile(good, wrong, good))):
        with pytest.raises(BuildError, match=r"does not take the profile batch .*: \S.*MIN<=OPT<=MAX") as caught:
            trt_build.build(LIBRARY, fixed[1], fixed[1].read_bytes(), Settings(profiles, ("8.6",)))
        one_line(caught.value)


def test_a_gpu_that_the_library_does_not_take(fixed: tuple[object, Path]) -> None:
    members = {**rtx.ComputeCapability.__members__, "SM86": rtx.ComputeCapability.NONE}
    refusing = SimpleNamespace(**{**vars(rtx), "ComputeCapability": SimpleNamespace(__members__=members)})
    shape = (1, 192, 224)
    settings = Settings((Profile(shape, shape, shape),), ("8.9", "8.6"))
    with pytest.raises(BuildError, match=r"does not build for compute capability 8\.6: \S.*cannot be kNONE") as caught:
        trt_build.build(Library("rtx", refusing, None), fixed[1], fixed[1].read_bytes(), settings)
    one_line(caught.value)
