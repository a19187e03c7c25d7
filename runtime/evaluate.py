"""COCO AP of a deployed model, of several side by side, or of results that exist already."""

from .coco.command import main
from .errors import run_main

if __name__ == "__main__":
    run_main(main)
