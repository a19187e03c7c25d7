"""The map of the code for the page "How it works": every module with the first line of its docstring.

    python scripts/module_map.py

prints it. MkDocs calls `on_page_markdown` (mkdocs.yml names this file as a hook) and puts it in place of the page's
marker. Nothing is imported: the docstrings are read from the sources.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("runtime", "train", "export")  # from the bottom up
MARKER = "<!-- module map -->"


def purpose(module: Path) -> str:
    """The first line of a module's docstring; empty where the module or its docstring is missing."""
    if not module.is_file():
        return ""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].strip()


def rooms(package: Path) -> list[Path]:
    """A package's folders that hold modules, the package itself first."""
    return sorted({module.parent for module in package.rglob("*.py")})


def module_map(root: Path = ROOT) -> str:
    """The map as Markdown: a heading and a table for each room, a row for each module."""
    lines: list[str] = []
    for package in PACKAGES:
        for room in rooms(root / package):
            name = room.relative_to(root).as_posix()
            lines += [f"{'###' if room.parent == root else '####'} {name}/", "", purpose(room / "__init__.py"), ""]
            modules = [module for module in sorted(room.glob("*.py")) if module.name != "__init__.py"]
            if modules:
                rows = [f"| `{module.name}` | {purpose(module).replace('|', '∣')} |" for module in modules]
                lines += ["| module | purpose |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' hook: the page with the map in the marker's place."""
    return markdown.replace(MARKER, module_map()) if MARKER in markdown else markdown


if __name__ == "__main__":
    print(module_map())
