"""The command `python -m runtime.evaluate`. Code calls the function instead: `from runtime import evaluate`."""

if __name__ not in ("__main__", "__mp_main__"):  # imported, this module would take the function's place in the package
    raise ImportError(f"{__name__} is a command only; use `from runtime import evaluate` or runtime.coco.command.main")

if __name__ == "__main__":  # before the other imports, which take their time: Ctrl-C ends them in one line
    from runtime.interrupts import end_at_once

    end_at_once()

from .coco.command import main
from .errors import run_main
from .report.write import report_evaluation

if __name__ == "__main__":
    run_main(lambda: main(reporter=report_evaluation))
