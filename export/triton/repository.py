"""A model repository: NAME, the model in front, and NAME_network. Written all or nothing."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from runtime.backends.options import BACKENDS
from runtime.files import write_error

from ..arguments import ArgumentError
from .config import ServingOptions, as_text, front_config, network_config
from .network import Network, read_network

VERSION = "1"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_MODEL_PY = '''\
"""The model in front of {network}: images of any size in, detections in their pixels out."""

try:
    from runtime.triton.front import TritonPythonModel
except ImportError as error:
    raise ImportError(
        f"{{error}}: the Python of this server needs the toolkit: pip install atss-toolkit=={toolkit}"
    ) from error

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

    Everything is written into a folder beside it first; on an error nothing is left behind. Raises ArgumentError for a
    name that is taken, ModelError, EngineError, ManifestError, WriteError, MissingLibraryError.
    """
    options = options or ServingOptions()
    network = read_network(model)
    name = name or model.stem
    check_arguments(root, name, options)
    front = WrittenRepository(root, name, f"{name}_network" if options.placement == "triton" else None)
    contents = _contents(front, network, options)
    _require_free(root, [name, f"{name}_network"])
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", suffix=".tmp", dir=root.parent) as beside:
            for path, content in contents.items():
                target = Path(beside, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, target)
                else:
                    target.write_text(content, encoding="utf-8")
            Path(beside).chmod(0o755)
            _publish(Path(beside), root, list(dict.fromkeys(Path(path).parts[0] for path in contents)))
    except OSError as error:
        raise write_error(root, error) from error
    return front


def check_arguments(root: Path, name: str, options: ServingOptions) -> None:
    """Raise ArgumentError for a name, a folder or numbers that can't be meant."""
    if not _NAME.fullmatch(name):
        raise ArgumentError(f"--name {name}: expected letters, digits, '.', '_' and '-', as in a folder's name")
    if root.exists() and not root.is_dir():
        raise ArgumentError(f"-o {root}: a file; expected the folder of a model repository")
    if min(options.instances, options.front_instances) < 1 or options.queue_delay_us < 0:
        raise ArgumentError("expected at least one instance, and a queue delay of 0 or more")
    if options.backend not in ("auto", *BACKENDS):
        raise ArgumentError(f"--backend {options.backend}: expected auto, {', '.join(BACKENDS)}")
    if options.placement == "triton" and options.backend != "auto":
        raise ArgumentError("--backend is for --network inline: Triton's own backend runs the network")


def _contents(written: WrittenRepository, network: Network, options: ServingOptions) -> dict[str, str | Path]:
    """Files of the repository by path: their text, or the file that is copied. The network's come first."""
    from runtime.manifest import toolkit_version

    contents: dict[str, str | Path] = {}
    at_network = written.network or ""
    if written.network is not None:
        config = network_config(written.network, network, options)
        contents[f"{at_network}/config.pbtxt"] = as_text(config)
        contents[f"{at_network}/{VERSION}/{config.default_model_filename}"] = network.path
    else:
        contents |= {f"{written.front}/{VERSION}/{file.name}": file for file in network.files}
    front = front_config(written.front, at_network, network, options)
    contents[f"{written.front}/config.pbtxt"] = as_text(front)
    text = _MODEL_PY.format(network=written.network or network.path.name, toolkit=toolkit_version())
    contents[f"{written.front}/{VERSION}/model.py"] = text
    return contents


def _require_free(root: Path, names: list[str]) -> None:
    for name in names:
        if (root / name).exists():
            raise ArgumentError(f"{root / name}: the repository has a model of that name; remove it or choose --name")


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
