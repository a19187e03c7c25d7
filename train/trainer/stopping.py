"""Early stopping: a run ends when its validation AP has not risen for some evaluations."""

from __future__ import annotations

from runtime.coco import CocoDataset
from runtime.coco.metrics import NOTHING, is_measured
from runtime.coco.report import percent

from ..config import Config, Schedule
from .start import BEST, TrainingError


class BestAp:
    """The highest AP of a run's evaluations on the whole validation set, and how many evaluations ago it was."""

    def __init__(self, ap: float, since: int) -> None:
        self.ap = ap  # 0–1; −1 before the first evaluation
        self.since = since  # evaluations on the whole set without a better AP

    def add(self, ap: float | None) -> bool:
        """Take an evaluation's AP and return whether it is the highest; None was not measured and does not count."""
        if ap is None:
            return False
        is_better = ap > self.ap
        self.ap, self.since = (ap, 0) if is_better else (self.ap, self.since + 1)
        return is_better

    def ends(self, step: int, schedule: Schedule) -> bool:
        """Whether early stopping ends the run after `step` steps, before its last one."""
        return step < schedule.steps and 0 < schedule.patience <= self.since

    def reason(self, step: int, schedule: Schedule) -> str:
        """The line that says why the run ended after `step` steps."""
        evaluations = "1 evaluation" if self.since == 1 else f"{self.since} evaluations"
        return (
            f"stopped early at step {step} of {schedule.steps}: {evaluations} without a better AP than "
            f"{percent(self.ap)} (--schedule.patience {schedule.patience}); {BEST} has the best weights"
        )


def measured_ap(metrics: dict[str, float], limit: int) -> float | None:
    """The AP of an evaluation, or None where it says nothing of the whole set: of `limit` images (0: all), or of none.

    A lucky subset of the images must not beat the AP on all of them.
    """
    return metrics["AP"] if limit == 0 and is_measured(metrics) else None


def require_measurable(config: Config, val_set: CocoDataset | None) -> None:
    """Raise TrainingError where a run with early stopping has no object to measure AP on."""
    if config.schedule.patience and val_set is not None and val_set.crowd.all():
        raise TrainingError(
            f"--schedule.patience {config.schedule.patience} can't work: {config.data.val_json}: {NOTHING}; "
            "give a validation set with objects, or --schedule.patience 0"
        )


def idle_patience(config: Config) -> str | None:
    """A line for the user where early stopping can't end the run: too few evaluations come before its last step.

    The first evaluation always is the best so far, so a patience of n needs n + 1.
    """
    patience, count = config.schedule.patience, (config.schedule.steps - 1) // config.run.evaluate_every
    if not 0 < patience >= count:
        return None
    return (
        f"--schedule.patience {patience} can't end this run: it needs {patience + 1} evaluations before the last step, "
        f"and there {'is' if count == 1 else 'are'} {count} (--run.evaluate-every {config.run.evaluate_every})"
    )
