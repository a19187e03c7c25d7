"""The training loop, in full view."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from runtime.coco import CocoDataset
from runtime.detector import Detector as RuntimeDetector
from runtime.interrupts import Interrupted, held

from ..build import build_criterion, build_training_batches
from ..checkpoint import Checkpoint, Classes, checked_classes, save_checkpoint
from ..config import Config
from ..config.check import check_config
from ..data.loader import TrainBatch
from ..loss.criterion import Criterion, Losses, Targets
from ..model.detector import DetectorNetwork
from ..tracking.trackers import require_trackers
from .backward import backward
from .compilation import (
    CompiledCriterion,
    CompiledNetwork,
    Compiler,
    compiles_loss,
    has_fixed_canvas,
    uses_cuda_graphs,
)
from .data_in_coco import data_in_coco
from .device import pick_device, pick_precision
from .distributed import (
    ALONE,
    World,
    all_gather,
    all_reduce,
    data_parallel,
    gather_to_main,
    local_batch_size,
    require_agreement,
)
from .elastic import continues
from .estimate import Run, with_estimate
from .evaluation import TorchBackend, evaluate_distributed
from .optim import clip_gradients, learning_rate_factor, set_learning_rate
from .progress import Progress, say
from .run_folder import run_folder
from .run_log import RunLog
from .skipped import total
from .start import (
    BEST,
    LAST,
    TrainingError,
    in_steps_of,
    load_datasets,
    require_data,
    start_or_resume,
    starting_notes,
    without_missing,
)
from .stopping import BestAp, measured_ap, require_measurable


class TrainingResult(NamedTuple):
    """What a run left behind."""

    last: Path  # checkpoint of the last step
    best: Path | None  # checkpoint of the highest AP; None without evaluations on the whole validation set
    steps: int  # steps done, including the steps before a resume
    ap: float | None  # 0–1, after the last step; None where that wasn't evaluated by this call
    best_ap: float | None  # 0–1, of `best`


class BatchSource(Protocol):
    """What makes the training batches of a run; `build_training_batches` reads and augments images on the host."""

    def __call__(
        self, dataset: CocoDataset, settings: Config, first_step: int, share: int, rank: int
    ) -> Iterator[TrainBatch]:
        """The batches from step `first_step` on, of each batch the `share` images of process `rank`.

        They may lie on the device already.
        """
        ...


def train_detector(
    config: Config,
    out: Path,
    resume: bool = False,
    world: World = ALONE,
    make_batches: BatchSource | None = None,
) -> TrainingResult:
    """Train the detector of a configuration on the batches of `make_batches`, by default `build_training_batches`.

    `out` receives `last.pt`, `best.pt`, `log.jsonl`, the files of trackers, and `data/` for data of another layout than
    COCO's. A run that is interrupted at any moment and resumed takes the identical step sequence as one that ran
    through. A command that Ctrl-C or SIGTERM ends finishes its step and writes `last.pt` first, unless it evaluates or
    has other processes beside it. The processes of a `world` together take the steps that a single process would;
    process 0 writes. Under `torchrun --max-restarts` a restarted run is resumed without `resume`. Raises UserError for
    settings and data that can't work and where another run works in `out`, TrainingError where the loss is no longer
    finite. With `schedule.patience` a run may end before its last step.
    """
    check_config(config)
    require_data(config.data, out / LAST if resume else None)
    if world.is_main:
        require_trackers(config.run.log)
    with run_folder(config, out, world):
        return _train(config, out, resume, world, make_batches or build_training_batches)


def _train(config: Config, out: Path, resume: bool, world: World, make_batches: BatchSource) -> TrainingResult:
    config = data_in_coco(config, out, resume, world)
    train_set, val_set = load_datasets(config, report=world.is_main)
    train_set = without_missing(train_set, config, world)
    share = local_batch_size(config.schedule.batch, config.run.accumulate, world)
    require_measurable(config, val_set)
    config = in_steps_of(config, train_set)
    classes = checked_classes(train_set.classes, train_set.category_ids, config.data.train_json)
    state = start_or_resume(config, classes, out, continues(out, resume, world))
    require_agreement({"the configuration": config, "the classes": classes, "the first step": state.step}, world)
    device, dtype = pick_device(config.run.device), pick_precision(config)
    model, average, schedule = state.model, state.average, config.schedule
    parameters = [p for p in model.parameters() if p.requires_grad]
    compiler = Compiler(warn=say if world.is_main else lambda line: None)
    network = data_parallel(_network_of(model, config, compiler, device, world), world)
    criterion = _criterion_of(config, compiler, device)
    unchecked = _Unchecked(out, world)
    ap, best = None, BestAp(state.best_ap, state.since_best)
    ap_step = state.step  # the step whose weights have this AP: a checkpoint of later ones must not state it

    def save(name: str, step: int) -> None:
        if not world.is_main:
            return
        with held():
            save_checkpoint(
                out / name,
                Checkpoint(
                    config,
                    classes,
                    step,
                    model.state_dict(),
                    average.model.state_dict() if average is not None else None,
                    state.optimizer.state_dict(),
                    state.scaler.state_dict(),
                    ap if step == ap_step else None,
                    best.ap,
                    best.since,
                ),
            )

    done = saved = evaluated = state.step  # the last step that was finished, that `last.pt` has, that was evaluated

    def save_the_rest() -> None:
        # A resumed run would leave out an evaluation that is due. Several processes are rarely at the same step.
        if world.size == 1 and done > saved and not (evaluated < done and _is_evaluated(done, config, val_set)):
            if unchecked.entries:
                unchecked.check()
            save(LAST, done)

    with RunLog(out, state.step, world.is_main, config.run.log) as run_log, _if_interrupted(save_the_rest):
        run_log.start(config, device, dtype, world.size, len(train_set), sum(p.numel() for p in model.parameters()))
        for line in starting_notes(state, config):
            run_log.say(line)
        batches: Iterator[TrainBatch] = iter(())
        if best.ends(done, schedule):
            run_log.say(best.reason(done, schedule))
        else:
            batches = make_batches(train_set, config, state.step, share, world.rank)
            if world.is_main:
                left = schedule.steps - state.step
                run = Run(model, config, train_set, share, world.size, device, dtype, left)
                batches = with_estimate(batches, run, say)
        progress = Progress(batches, state.step, schedule.steps, shown=world.is_main)
        started = time.perf_counter()
        image_count = 0
        for step, batch in enumerate(progress, start=state.step):
            with held():  # an interrupted run has taken a step as a whole, or not begun it
                model.train()
                set_learning_rate(state.optimizer, learning_rate_factor(step, schedule))
                images = batch.images.to(device, non_blocking=True)
                targets = Targets(*(t.to(device, non_blocking=True) for t in batch.targets))
                state.optimizer.zero_grad(set_to_none=True)
                regions = None if batch.regions is None else batch.regions.to(device, non_blocking=True)
                losses = backward(
                    network, criterion, images, targets, config.run.accumulate, dtype, state.scaler, world, regions
                )
                state.scaler.unscale_(state.optimizer)
                norm = clip_gradients(parameters, schedule.clip_norm)
                state.scaler.step(state.optimizer)
                state.scaler.update()
                if average is not None:
                    average.update(model, step)
                image_count += share * world.size
                run_log.problems(batch.problems)

                done = step + 1
                # A gradient that isn't finite spoils the weights, and with them the next checkpoint. fp16's scaler
                # expects such gradients and skips their steps.
                unchecked.add(
                    done, losses, [*batch.image_ids, *batch.mosaic_ids], None if state.scaler.is_enabled() else norm
                )
                log = done % config.run.log_every == 0 or done == schedule.steps
                evaluate = _is_evaluated(done, config, val_set)
                save_now = done % config.run.checkpoint_every == 0 or done == schedule.steps
                # On a GPU, reading a loss makes the host wait, so losses are read together, before anything relies on
                # them.
                if log or evaluate or save_now or device.type == "cpu":
                    losses = unchecked.check()
                if log:
                    rate = image_count / (time.perf_counter() - started)
                    run_log.step(done, losses, norm, state.optimizer.param_groups[0]["lr"], rate)
                    progress.note = f"loss {losses.total.item():.3f}  {rate:.1f} images/s"
            if evaluate:
                assert val_set is not None
                limit = config.run.evaluate_limit if done < schedule.steps else 0
                limit = limit if limit < len(val_set) else 0  # it leaves nothing out: the AP is the whole set's
                scored = average.model if average is not None else model
                metrics = evaluate_model(scored, config, classes, val_set, limit, world)
                run_log.evaluation(done, metrics, limit)
                ap, ap_step = measured_ap(metrics, limit), done
                if best.add(ap):
                    save(BEST, done)
                evaluated = done
                started, image_count = time.perf_counter(), 0
            ends = evaluate and best.ends(done, schedule)
            if save_now or ends:
                save(LAST, done)
                saved = done
            if ends:
                run_log.stopped(done, best.ap, best.since)
                run_log.say(best.reason(done, schedule))
                break
        if (skipped := total(gather_to_main(run_log.skipped, world))) is not None:
            run_log.say(skipped)
    return TrainingResult(
        last=out / LAST,
        best=out / BEST if (out / BEST).exists() else None,
        steps=done,
        ap=ap,
        best_ap=best.ap if best.ap >= 0 else None,
    )


def _is_evaluated(step: int, config: Config, val_set: CocoDataset | None) -> bool:
    """Whether the run evaluates after `step` steps."""
    return val_set is not None and (step % config.run.evaluate_every == 0 or step == config.schedule.steps)


@contextlib.contextmanager
def _if_interrupted(write: Callable[[], None]) -> Iterator[None]:
    """Call `write` where a signal ends the block."""
    try:
        yield
    except Interrupted:
        write()
        raise


def _network_of(
    model: DetectorNetwork, config: Config, compiler: Compiler, device: torch.device, world: World
) -> nn.Module:
    if not config.run.compile:
        return model
    return CompiledNetwork(model, compiler, has_fixed_canvas(config), uses_cuda_graphs(config, device, world))


def _criterion_of(config: Config, compiler: Compiler, device: torch.device) -> Criterion | CompiledCriterion:
    criterion = build_criterion(config.model)
    if not compiles_loss(config, device):
        return criterion
    return CompiledCriterion(criterion, compiler, has_fixed_canvas(config))


def evaluate_model(
    model: DetectorNetwork, config: Config, classes: Classes, dataset: CocoDataset, limit: int = 0, world: World = ALONE
) -> dict[str, float]:
    """COCO metrics (0–1) of a torch detector by the runtime's evaluator, on the first `limit` images (0: on all)."""
    detector = RuntimeDetector(TorchBackend(model, config, classes))
    found = evaluate_distributed(detector, dataset, world, limit=limit or None, progress=False)
    if world.is_main and (skipped := found.speed.skipped):
        total = len(skipped) + found.speed.images
        say(f"warning: {len(skipped)} of {total} images are left out of the score, the first: {skipped[0]}")
    return found.metrics.values


class _Unchecked:
    """The losses that the host hasn't read yet, with the images that they came from."""

    def __init__(self, out: Path, world: World) -> None:
        self.out = out
        self.world = world
        self.entries: list[tuple[int, Losses, list[int], Tensor | None]] = []

    def add(self, step: int, losses: Losses, image_ids: list[int], gradient_norm: Tensor | None) -> None:
        """Remember a step's losses in this process, and the norm of the gradient of all, where it matters."""
        self.entries.append((step, losses, image_ids, gradient_norm))

    def check(self) -> Losses:
        """The last step's losses, over all processes. Raises TrainingError at the first that isn't finite."""
        local = torch.stack([torch.stack(losses) for _, losses, _, _ in self.entries])  # [steps, 4]
        means = all_reduce(local, self.world) / self.world.size
        norms = [losses.total.new_zeros(()) if norm is None else norm for _, losses, _, norm in self.entries]
        good = (means[:, 0] + 0 * torch.stack(norms)).isfinite().tolist()
        if not all(good):
            first = good.index(False)
            self._raise(first, local[first, 0].item())
        self.entries.clear()
        return Losses(*means[-1])

    def _raise(self, entry: int, loss: float) -> None:
        step, _, image_ids, _ = self.entries[entry]
        found = all_gather((loss, image_ids), self.world)
        # Where no loss is at fault but the gradient, which is everyone's, any image may be.
        bad = [(value, ids) for value, ids in found if not math.isfinite(value)]
        image_ids = [image_id for _, ids in bad or found for image_id in ids]
        value = bad[0][0] if bad else math.nan
        last = self.out / LAST
        kept = f"{last} holds the last good checkpoint" if last.exists() else "no checkpoint was written yet"
        raise TrainingError(
            f"the loss or its gradient became {value} at step {step}, on the images with ids {image_ids}; {kept}. "
            "Look at those annotations, or resume with a lower --schedule.learning-rate"
        )
