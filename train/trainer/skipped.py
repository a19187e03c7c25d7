"""The images that a run could not read: each is named once, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MOST = 1000  # images that are named; a run of many epochs must not collect ever more texts


class Skipped:
    """What a process could not read, by the messages of `data.loader`, one for each image that is wrong in one way."""

    def __init__(self) -> None:
        self.reads = 0
        self.messages: set[str] = set()

    def add(self, problems: Iterable[str]) -> Iterator[str]:
        """Count the problems of a batch; the lines to print about those that are new."""
        for problem in problems:
            self.reads += 1
            if problem in self.messages or len(self.messages) > MOST:
                continue
            self.messages.add(problem)
            if len(self.messages) <= MOST:
                yield f"warning: skipped an image: {problem}"
            else:
                yield f"warning: more than {MOST} images can't be read; the others are not named"


def total(everyone: Iterable[Skipped]) -> str | None:
    """The line at the end of a run whose processes skipped these; None where all images could be read."""
    processes = list(everyone)
    reads, messages = sum(p.reads for p in processes), set[str]().union(*(p.messages for p in processes))
    if not reads:
        return None
    count = f"more than {MOST}" if len(messages) > MOST else f"{len(messages)}"
    images, times = ("image" if len(messages) == 1 else "images"), ("time" if reads == 1 else "times")
    return f"warning: {count} {images} could not be read: skipped {reads} {times}"
