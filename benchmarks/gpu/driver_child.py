"""A part of the step `driver` in a process of its own, which may hang or die: rows go to its standard output.

python -m benchmarks.gpu.driver_child calls|life|speed --binding cuda-python [--real] [--small]
python -m benchmarks.gpu.driver_child verdicts [--real] --skip 12
python -m benchmarks.gpu.driver_child planted
"""

from __future__ import annotations

import argparse
import ctypes

import benchmarks.gpu.driver_graphs
import benchmarks.gpu.driver_sequences  # noqa: F401  both register sequences
from benchmarks.gpu.driver_backend import life
from benchmarks.gpu.driver_calls import calls
from benchmarks.gpu.driver_site import open_site, out
from benchmarks.gpu.driver_speed import speed
from benchmarks.gpu.driver_verdicts import SEQUENCES, run_driver
from runtime.cuda import open_cuda
from tests.support.standin.trt_on_gpu import Kernels

PARTS = {"calls": calls, "life": life, "speed": speed}
# Ways of letting pycuda's primary context go, and the runtime's way, which keeps it.
WAYS = ("dropped", "detached", "detached while pushed", "opened and closed")


def context(way: str) -> None:
    """Whether the primary context is current, and alive, after pycuda has let it go in a way."""
    import cuda.bindings.driver as driver

    if way == "opened and closed":
        opened_and_closed()
    else:
        let_go(way)
    current = driver.cuCtxGetCurrent()
    is_current = bool(int(current[1])) if int(current[0]) == 0 else current[0].name
    is_alive = bool(driver.cuDevicePrimaryCtxGetState(driver.CUdevice(0))[2])
    more = {"check": way, "result": "FAILED: it stays current"} if way == "opened and closed" and is_current else {}
    out("driver: pycuda's context", way=way, is_current_afterwards=is_current, is_alive_afterwards=is_alive, **more)


def let_go(way: str) -> None:
    """Retain pycuda's primary context, use it and let it go."""
    import pycuda.driver as pycuda

    pycuda.init()
    primary = pycuda.Device(0).retain_primary_context()
    primary.push()
    pycuda.mem_alloc(1 << 20).free()
    if way == "detached while pushed":
        primary.detach()
        return
    pycuda.Context.pop()
    if way == "detached":
        primary.detach()


def opened_and_closed() -> None:
    """Open and close the device through the runtime, several times."""
    for _ in range(5):
        cuda = open_cuda(0, "pycuda")
        with cuda.current():
            cuda.free(cuda.alloc(1 << 20))
        cuda.close()


def planted() -> None:
    """A kernel that writes behind its memory, for the sanitizer to find."""
    cuda = open_cuda(0, "cuda-python")
    with cuda.current():
        kernels, memory, stream = Kernels(cuda.device.compute_capability), cuda.alloc(1024), cuda.create_stream()
        arguments = [(cuda.address(memory), ctypes.c_void_p), (1024 // 4, ctypes.c_int)]
        kernels.launch("out_of_bounds", (1, 1), cuda.address(stream), arguments)
        cuda.synchronize_stream(stream)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "verdicts", "planted", *WAYS])
    parser.add_argument("--binding", choices=["cuda-python", "pycuda"], default="cuda-python")
    parser.add_argument("--real", action="store_true", help="the real driver, in place of the stand-in")
    parser.add_argument("--small", action="store_true", help="small sizes and no errors on purpose: under a sanitizer")
    parser.add_argument("--skip", type=int, default=0, help="how many of the sequences were run")
    parser.add_argument("--reset", action="store_true", help="reset the device at the end, which tells what leaked")
    options = parser.parse_args()
    if options.part == "verdicts":
        run_driver(list(SEQUENCES)[options.skip :], options.real)
    elif options.part in WAYS:
        context(options.part)
    elif options.part == "planted":
        planted()
    else:
        site = open_site(options.binding, options.real, options.small)
        PARTS[options.part](site)
        site.close()
    if options.reset:
        import cuda.bindings.runtime as cudart

        out("reset", result=cudart.cudaDeviceReset()[0].name)


if __name__ == "__main__":
    main()
