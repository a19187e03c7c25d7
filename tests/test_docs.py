"""The documentation: its commands and its Python run, its links lead somewhere, its messages exist.

All pages tell one story in one folder, in the order of the site's navigation: what a page makes, a later one uses.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime.cli import COMMANDS
from tests.support.documentation import Block, blocks, commands, program

ROOT = Path(__file__).parent.parent
PACKAGES = ("train", "export", "runtime")
# The site's order; the README's commands are the pages'.
STORY = (
    "index",
    "install",
    "train",
    "layouts",
    "annotations",
    "recipes",
    "pretrained",
    "export",
    "precision",
    "engines",
    "deepstream",
    "triton",
)
STORY = (*STORY, "run", "evaluate", "report", "tiling", "cluster", "hand-over", "benchmark", "contracts", "results")
STORY = (*STORY, "how-it-works", "damaged-files", "troubleshooting")
PAGES = (*(f"docs/{name}.md" for name in STORY), "README.md", "CONTRIBUTING.md")
# Appended to commands that are run, so that they take seconds.
SMALL = ("--preprocess.short-side", "96", "--preprocess.long-side", "128", "--augment.crop", "128", "128")
SMALL = (
    *SMALL,
    "--augment.short-side-min",
    "96",
    "--augment.short-side-max",
    "96",
    "--run.precision",
    "fp32",
    "--run.log-every",
    "2",
)
DRAWN = ("--train", "12", "--val", "6", "--size", "128")
LONGER = "150"  # steps; then int8's verification passes


def shorter(arguments: tuple[str, ...], steps: str) -> list[str]:
    """The arguments of `atss`, with those appended that make a command short."""
    if arguments[:1] == ("train",) and "--help" not in arguments:
        return [*arguments, *SMALL, "--schedule.steps", steps, "--schedule.batch", "4", "--schedule.warmup-steps", "2"]
    return [*arguments, *(DRAWN if arguments[:1] == ("shapes",) else ())]


def extras() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def jobs_of(found: list[Block], is_slow: bool, steps: str = "6") -> list[dict[str, Any]]:
    """What the runner has to do for these blocks. A command that occurs twice is run once."""
    jobs: list[dict[str, Any]] = []
    known = extras()
    for block in found:
        runs = not block.mark or (block.mark == "slow" and is_slow)
        if block.language == "python":
            assert block.mark != "only parsed", f"{block.where}: Python is only compiled, not only parsed"
            jobs.append(job(block, "python" if runs else "compile", block.text, []))
        elif block.language == "bash":
            assert block.mark != "only compiled", f"{block.where}: commands are only parsed, not only compiled"
            for words in commands(block.text):
                called = program(words, ROOT, known)
                if called is not None:
                    arguments = shorter(called.arguments, steps) if runs else list(called.arguments)
                    jobs.append(job(block, "run" if runs else "parse", called.name, arguments))
    once: dict[str, dict[str, Any]] = {}
    for one in jobs:
        once.setdefault(json.dumps([one["how"], one["name"], one["arguments"]]), one)
    return list(once.values())


def job(block: Block, how: str, name: str, arguments: list[str]) -> dict[str, Any]:
    return {"where": block.where, "how": how, "name": name, "arguments": arguments}


def failures(jobs: list[dict[str, Any]], folder: Path) -> list[str]:
    """What went wrong with which job, in a process whose working folder is `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.documentation_runner", folder / "results.json.of.the.test"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json.of.the.test").read_text())
    named = [f"{one['where']}: {one['how']} {one['name'][:60]} {' '.join(one['arguments'])}" for one in jobs]
    return [f"{name}\n{error}" for name, error in zip(named, results, strict=True) if error is not None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the pages take for given: photographs, a list of some, and a checkpoint that `atss pretrained` converted."""
    drawn = subprocess.run(
        [sys.executable, "-m", "train.shapes", "data/shapes", *DRAWN],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert drawn.returncode == 0, drawn.stderr
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(sorted((tmp_path / "data/shapes/val").glob("*.jpg"))[:5]):
        shutil.copy(image, tmp_path / "photos" / f"{number}.jpg")
    shutil.copy(tmp_path / "photos/0.jpg", tmp_path / "photo.jpg")
    (tmp_path / "list.txt").write_text("photo.jpg\nphotos/0.jpg\n", encoding="utf-8")
    return tmp_path


def story() -> list[Block]:
    return [block for page in PAGES for block in blocks(ROOT / page, page)]


def in_order(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that run first: what they make, parsers may read."""
    copy = "import shutil; shutil.copy('runs/shapes/last.pt', 'model.pt')"
    converted = {"where": "tests", "how": "python", "name": copy, "arguments": []}
    doing = [one for one in jobs if one["how"] in ("run", "python")]
    return [*doing, converted, *(one for one in jobs if one not in doing)]


def test_every_page_is_part_of_the_story() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    for page in pages - set(PAGES):
        assert all(block.language == "text" for block in blocks(ROOT / page, page)), f"{page}: add it to STORY"


def test_the_pages_run(folder: Path) -> None:
    jobs = jobs_of(story(), is_slow=False)
    assert sum(one["how"] in ("run", "python") for one in jobs) > 20
    assert sum(one["how"] in ("parse", "compile") for one in jobs) > 20
    if failed := failures(in_order(jobs), folder):
        pytest.fail("\n\n".join(failed), pytrace=False)


@pytest.mark.slow
def test_the_pages_run_with_their_slow_blocks(folder: Path) -> None:
    if failed := failures(in_order(jobs_of(story(), is_slow=True, steps=LONGER)), folder):
        pytest.fail("\n\n".join(failed), pytrace=False)


def page(tmp_path: Path, text: str) -> list[Block]:
    (tmp_path / "page.md").write_text(text)
    return blocks(tmp_path / "page.md", "page.md")


WRONG = [
    ("bash", "atss detect model.onnx photo.jpg --scoer 0.5", "unrecognized arguments: --scoer 0.5"),
    ("bash", "atss detect model.onnx", "required: input"),
    ("bash", "atss evaluate model.onnx --annotations a.json --backend gpu", "invalid choice: 'gpu'"),
    ("bash", "python -m runtime.show a.json --annotations b.json --images i", "required: --out"),
    ("bash", "atss train atss_tniy --out o", "did you mean atss_tiny?"),
    ("bash", "torchrun --nproc-per-node 8 -m runtime.show a.json", "required: --annotations, --images, --out"),
    ("bash", "torchrun --nproc-per-nod3 8 -m runtime.show a.json", "exit code 2"),
    ("bash", "python benchmarks/gate_limits.py --no-such-option", "required: model"),
    ("python", "from runtime.nms import no_such_name", "cannot import name 'no_such_name'"),
    (
        "python",
        "from runtime.errors import describe_os_error\ndescribe_os_error(OSError(), reason='')",
        "no parameter reason",
    ),
    ("python", "f(", "SyntaxError"),
]


def test_a_planted_wrong_option_is_found(tmp_path: Path) -> None:
    """In each kind of block; and the same commands without the mistakes pass."""
    marks = {"bash": "<!-- only parsed: a test -->", "python": "<!-- only compiled: a test -->"}
    text = "".join(f"{marks[language]}\n```{language}\n{line}\n```\n" for language, line, _ in WRONG)
    found = failures(jobs_of(page(tmp_path, text), is_slow=False), tmp_path)
    assert len(found) == len(WRONG)
    for (_, _, expected), told in zip(WRONG, found, strict=True):
        assert expected in told
    right = (
        "atss detect model.onnx photo.jpg --score 0.5\npython -m runtime.show a.json --annotations b --images i --out o"
    )
    assert failures(jobs_of(page(tmp_path, f"{marks['bash']}\n```bash\n{right}\n```\n"), is_slow=False), tmp_path) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```bash\nrm -rf runs\n```", "rm -rf runs: neither"),
        ("```bash\natss exprot x.pt\n```", "no such command"),
        ("```bash\npython -m train.loss\n```", "not a command"),
        ("```bash\npython benchmarks/no_such.py\n```", "no such script"),
        ("```bash\nscripts/setup.sh edgy\n```", "no extra {'edgy'}"),
        ("```bash\npip install -e '.[cpuu]'\n```", "no such extra"),
        ("```bash\nscripts/quickstart.sh --fast\n```", "neither"),
        ("```sh\natss doctor\n```", "a block of 'sh'"),
        ("<!-- only parsed -->\n```bash\natss doctor\n```", "without a reason"),
        ("<!-- not tested -->\n```bash\natss doctor\n```", "expected"),
        ("```bash\natss doctor\n", "without an end"),
    ],
)
def test_a_planted_block_that_cannot_be_checked_is_found(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises((AssertionError, RuntimeError)) as raised:
        jobs_of(page(tmp_path, text), is_slow=False)
    assert expected in str(raised.value) + str(raised.value.__cause__)


def test_commands_are_split_as_a_shell_splits_them() -> None:
    text = "# a comment\nA=b atss detect m.onnx \\\n    'two words'   # why\n\natss doctor"
    assert commands(text) == [["atss", "detect", "m.onnx", "two words"], ["atss", "doctor"]]


PATH = re.compile(r"`(?:python )?((?:benchmarks|scripts|tests|runtime|train|export)/[\w/.-]*)")


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_paths_inside_sentences_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"`atss ([\w-]+)", text):
        assert name in COMMANDS, f"atss {name}"
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []


LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    """Of the pages outside the site; the site's own are checked by `mkdocs build --strict`."""
    for target in LINK.findall((ROOT / name).read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def texts() -> str:
    """Every string of the sources; the parts that a message fills in are `…`."""
    found = []
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                    found.append("".join(map(str, parts)))
    return "\n".join(found)


def unknown_messages(page: str, known: str) -> list[str]:
    """Quoted messages of which a part of three letters or more is in no string."""
    quoted = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(quoted) > 20
    pieces = {message: [piece.strip() for piece in message.split("…")] for message in quoted}
    return [message for message, parts in pieces.items() if not all(part in known for part in parts if len(part) > 2)]


def test_the_messages_that_are_explained_exist() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert unknown_messages(page, texts()) == []
    assert unknown_messages(page.replace("has no timm", "") + "\n### `the flux is … low`\n", texts()) == [
        "the flux is … low"
    ]


@pytest.fixture(scope="module")
def mapping() -> ModuleType:
    spec = importlib.util.spec_from_file_location("module_map", ROOT / "scripts/module_map.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_is_in_the_map(mapping: ModuleType) -> None:
    marker = "a\n<!-- module map -->\nb"
    drawn = mapping.on_page_markdown(marker)
    assert drawn.startswith("a\n### runtime/")
    rows = re.findall(r"^\| `(\S+\.py)` \| (.*) \|$", drawn, re.MULTILINE)
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    assert sorted(name for name, _ in rows) == sorted(path.name for path in modules)
    assert [name for name, purpose in rows if not purpose] == []
    headings = re.findall(r"^#{3,4} (\S+)/\n\n(.*)$", drawn, re.MULTILINE)
    assert {name for name, _ in headings} == {path.parent.relative_to(ROOT).as_posix() for path in modules}
    assert mapping.MARKER in (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")


def test_the_map_shows_a_module_without_a_purpose(mapping: ModuleType, tmp_path: Path) -> None:
    for package in mapping.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('"""What the room is for."""')
    (tmp_path / "train" / "new.py").write_text('"""Does a | b.\n\nMore."""')
    (tmp_path / "train" / "bare.py").write_text("x = 1\n")
    drawn = mapping.module_map(tmp_path)
    assert "| `new.py` | Does a ∣ b. |" in drawn
    assert "| `bare.py` |  |" in drawn


Build = Callable[[Path], subprocess.CompletedProcess[str]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds the site strictly, with the API pages' packages in sight."""
    pytest.importorskip("mkdocs", reason="pip install 'atss-toolkit[docs]'")
    pytest.importorskip("material", reason="pip install 'atss-toolkit[docs]'")

    def run(root: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path / "site"],
            cwd=root,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
            capture_output=True,
            text=True,
        )

    return run


def test_the_site_builds_and_needs_no_network(build: Build, tmp_path: Path) -> None:
    done = build(ROOT)
    assert done.returncode == 0, done.stderr
    for written in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', written.read_text("utf-8"))
        assert loaded == [], written
