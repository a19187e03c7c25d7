"""A model repository: NAME, the model in front, and NAME_network. Written all or nothing."""

from __future__ import annotations

import dataclasses
import errno
import re
import shutil
from contextlib import suppress
from pathlib import Path

from runtime.backends.options import BACKENDS
from runtime.files import write_error
from runtime.temporaries import temporary_folder

from ..arguments import ArgumentError
from .config import ServingOptions, as_text, front_config, network_config
from .network import Network, read_network

VERSION = "1"
_MOST = 2**31 - 1  # the fields of a configuration have 32 bits
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)  # the server's Python may not open others
_MODEL_PY = '''\
"""The model in front of {network}: images of any size in, detections in their pixels out."""

try:
    from runtime.triton.front import TritonPythonModel
except ImportError as error:
    raise ImportError(f"{{error}}: the Python of this server needs the toolkit: pip install atss-toolkit") from error

__all__ = ["TritonPythonModel"]
'''


@dataclasses.dataclass(frozen=True)
class WrittenRepository:
    """What `write_repository` wrote."""

    root: Path
    front: str  # the name of the model that clients ask
    network: str | None  # the name of the network's own model; None: it is inside the model in front


def write_repository(
    model: Path, root: Path, name: str | None = None, options: ServingOptions | None = None
) -> WrittenRepository:
    """Write the models that serve a deployed file into the repository `root`, which may have other models.

    Everything is written into a temporary folder first; on an error nothing is left behind. Raises ArgumentError for a
    name that is taken, ModelError, EngineError, ManifestError, WriteError, MissingLibraryError.
    """
    options = options or ServingOptions()
    name = name or model.stem
    check_arguments(root, name, options)
    network = read_network(model)
    written = WrittenRepository(root, name, f"{name}_network" if options.placement == "triton" else None)
    contents = _inline(written, network, options) if written.network is None else _apart(written, network, options)
    _require_free(root, [name, f"{name}_network"])
    try:
        _write(contents, root)
    except OSError as error:
        raise write_error(root, error) from error
    return written


def check_arguments(root: Path, name: str, options: ServingOptions) -> None:
    """Raise ArgumentError for a name, a folder or numbers that can't be meant."""
    if not _NAME.fullmatch(name):
        raise ArgumentError(f"--name {name}: expected ASCII letters, digits, '.', '_' and '-', as in a folder's name")
    if root.exists() and not root.is_dir():
        raise ArgumentError(f"-o {root}: a file; expected the folder of a model repository")
    batch_max = 1 if options.batch_max is None else options.batch_max
    counts = (options.instances, options.front_instances, batch_max)
    if min(counts) < 1 or options.queue_delay_us < 0:
        raise ArgumentError("expected at least one instance, batches of at least 1, and a queue delay of 0 or more")
    if max(*counts, options.queue_delay_us) > _MOST:
        raise ArgumentError(f"expected instances, batches, and a queue delay in µs of at most {_MOST}")
    if options.backend not in ("auto", *BACKENDS):
        raise ArgumentError(f"--backend {options.backend}: expected auto, {', '.join(BACKENDS)}")
    if options.placement == "triton" and options.backend != "auto":
        raise ArgumentError("--backend is for --network inline: Triton's own backend runs the network")


Contents = dict[str, bytes]  # files of the repository, by path


def _apart(written: WrittenRepository, network: Network, options: ServingOptions) -> Contents:
    """The network in a backend of Triton, and the model in front of it. The network's files come first."""
    name = f"{written.network}"
    config = network_config(name, network, options)
    return {
        f"{name}/config.pbtxt": as_text(config).encode(),
        f"{name}/{VERSION}/{config.default_model_filename}": network.content,
        **_front(written, network, options),
    }


def _inline(written: WrittenRepository, network: Network, options: ServingOptions) -> Contents:
    """The model in front alone, with the network's file."""
    files = {f"{written.front}/{VERSION}/{file}": content for file, content in network.files.items()}
    return {**files, **_front(written, network, options)}


def _front(written: WrittenRepository, network: Network, options: ServingOptions) -> Contents:
    config = front_config(written.front, written.network, network, options)
    text = _MODEL_PY.format(network=written.network or network.file_name)
    return {
        f"{written.front}/config.pbtxt": as_text(config).encode(),
        f"{written.front}/{VERSION}/model.py": text.encode(),
    }


def _require_free(root: Path, names: list[str]) -> None:
    for name in names:
        if (root / name).exists():
            raise ArgumentError(f"{root / name}: the repository has a model of that name; remove it or choose --name")


def _write(contents: Contents, root: Path) -> None:
    """Write the files into a folder beside the repository, or in it where none can be renamed from there.

    A repository can be a mounted volume, whose parent is another file system, or one that this user can't write to.
    """
    place = root.resolve()  # what a link leads to
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_from(place.parent, contents, place)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS) or not place.is_dir():
            raise
        _write_from(place, contents, place)


def _write_from(folder: Path, contents: Contents, root: Path) -> None:
    with temporary_folder(folder / root.name) as beside:
        for path, content in contents.items():
            target = beside / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        _publish(beside, root, list(dict.fromkeys(Path(path).parts[0] for path in contents)))


def _publish(beside: Path, root: Path, names: list[str]) -> None:
    """Rename the models' folders into the repository. The one in front comes last: nothing asks for the others."""
    made = not root.exists()
    root.mkdir(exist_ok=True)
    done: list[str] = []
    try:
        for name in names:
            (beside / name).rename(root / name)
            done.append(name)
    except OSError:
        for name in done:
            shutil.rmtree(root / name, ignore_errors=True)
        if made:
            with suppress(OSError):
                root.rmdir()
        raise
