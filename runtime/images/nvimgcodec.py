"""Decodes JPEG files with NVIDIA's nvImageCodec, into a GPU's memory or, without a GPU, on the host."""

from __future__ import annotations

import threading
from typing import Any

from ..errors import UserError

NO_GPU = -99999  # the library's own number for it


class NvImageCodec:
    """A decoder on the GPU of an index; None: on the host. Any number of threads may use it.

    Raises UserError where the library is not installed.
    """

    name = "nvimgcodec"

    def __init__(self, device: int | None) -> None:
        try:
            from nvidia import nvimgcodec
        except ImportError as error:
            raise UserError(
                f"nvImageCodec cannot be imported ({error}); install it: pip install 'atss-toolkit[nvimgcodec]', or "
                "decode with OpenCV"
            ) from error
        self._library = nvimgcodec
        self._device = device
        self._own = threading.local()  # a decoder is for one thread

    @property
    def version(self) -> str:
        """The library's."""
        return str(self._library.__version__)

    @property
    def place(self) -> str:
        """Where images are decoded, which decides their pixels: "gpu" or "cpu"."""
        return "cpu" if self._device is None else "gpu"

    def __call__(self, data: bytes) -> Any | None:
        """The library's image of a JPEG file, uint8 [h, w, 3] RGB with its orientation applied; None: it cannot."""
        if not hasattr(self._own, "decoder"):
            self._own.decoder = self._open()
        return self._own.decoder.decode(data)

    def _open(self) -> Any:
        library = self._library
        if self._device is not None:
            return library.Decoder(device_id=self._device, max_num_cpu_threads=1)
        on_cpu = [library.Backend(library.BackendKind.CPU_ONLY)]
        return library.Decoder(device_id=NO_GPU, max_num_cpu_threads=1, backends=on_cpu)
