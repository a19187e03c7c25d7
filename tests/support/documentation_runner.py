"""Runs the documentation's programs one after the other in one process, since importing torch takes seconds.

    python -m tests.support.documentation_runner < jobs.json > results.json

A job is {"where", "how", "name", "arguments"}. `how` is "run", "parse" (the program's own parser reads the arguments,
then the program is ended), "python" (the text in `name` is executed) or "compile" (it is compiled, its imports are
executed, and the keywords of calls to imported names are compared with their signatures). A result is an error or
null.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import io
import json
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tyro


class Parsed(BaseException):
    """The arguments were read, and the program is not to go on."""


def _then_end(parse: Callable[..., Any]) -> Callable[..., Any]:
    def parse_and_end(*arguments: Any, **keywords: Any) -> Any:
        parse(*arguments, **keywords)
        raise Parsed

    return parse_and_end


@contextlib.contextmanager
def only_parsing() -> Iterator[None]:
    """Programs end as soon as argparse or tyro has accepted their arguments."""
    parse_args, cli = argparse.ArgumentParser.parse_args, tyro.cli
    argparse.ArgumentParser.parse_args = _then_end(parse_args)  # type: ignore[method-assign]
    tyro.cli = _then_end(cli)
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
        tyro.cli = cli


def run_program(name: str, arguments: list[str]) -> None:
    """As `python -m NAME` or `python NAME.py`. Raises SystemExit as the program does."""
    sys.argv = [name, *arguments]
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def parse_program(name: str, arguments: list[str]) -> str | None:
    """Have the program's parser read the arguments; of torchrun, its own and then the program's behind it."""
    if name == "torch.distributed.run":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(arguments)
        assert given.module, "torchrun without -m"
        name, arguments = given.training_script, given.training_script_args
    try:
        with only_parsing():
            run_program(name, arguments)
    except Parsed:
        return None
    return "ended without reading its arguments"


def compile_text(text: str) -> str | None:
    """Compile Python, execute its imports, compare the keywords of calls to imported names with their signatures."""
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(body=[*imports], type_ignores=[]), "block", "exec"), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            parameters = inspect.signature(names[node.func.id]).parameters
            if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                continue
            unknown = {keyword.arg for keyword in node.keywords} - set(parameters)
            if unknown:
                return f"{node.func.id} has no parameter {', '.join(map(str, unknown))}"
    return None


def result_of(job: dict[str, Any]) -> str | None:
    """None, or what went wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            match job["how"]:
                case "run":
                    run_program(job["name"], job["arguments"])
                case "parse":
                    return parse_program(job["name"], job["arguments"])
                case "python":
                    exec(compile(job["name"], job["where"], "exec"), {"__name__": "block"})
                case "compile":
                    return compile_text(job["name"])
    except SystemExit as ended:
        return None if not ended.code else f"exit code {ended.code}: {said.getvalue()[-1500:]}"
    except Exception:
        return traceback.format_exc()[-1500:]
    return None


def main() -> None:
    """Read jobs from stdin, write results to the file that the first argument names."""
    warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)  # a program that runs again
    jobs = json.load(sys.stdin)
    target = Path(sys.argv[1]).resolve()
    target.write_text(json.dumps([result_of(job) for job in jobs]))


if __name__ == "__main__":
    main()
