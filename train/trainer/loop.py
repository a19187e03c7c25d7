"""The training loop, in full view."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from runtime.coco import CocoDataset, load_coco
from runtime.detector import Detector as RuntimeDetector
from runtime.errors import UserError

from ..config import Config
from ..config.check import check_config
from ..data.loader import images_to_train_on, training_batches
from ..loss.criterion import (
    Losses,
    Normalizers,
    Targets,
    assign_targets,
    at_least_one,
    criterion,
    normalizers_of,
    rows_of,
)
from ..model.build import build_detector
from ..model.detector import DetectorNetwork
from .checkpoint import (
    Checkpoint,
    CheckpointError,
    Classes,
    initialize_from,
    load_weights,
    read_checkpoint,
    save_checkpoint,
)
from .device import pick_device, pick_precision
from .distributed import (
    ALONE,
    World,
    all_gather,
    all_reduce,
    data_parallel,
    local_batch_size,
    no_sync,
    require_agreement,
)
from .evaluation import TorchBackend, evaluate_distributed
from .optim import (
    AveragedWeights,
    build_optimizer,
    clip_gradients,
    in_steps,
    learning_rate_factor,
    resume_optimizer,
    set_learning_rate,
)
from .progress import Progress, say
from .run_log import RunLog

LAST = "last.pt"  # goes on with --resume
BEST = "best.pt"  # of highest AP among the run's evaluations on all images


class TrainingError(UserError):
    """A run that can't go on."""


def train_detector(config: Config, out: Path, resume: bool = False, world: World = ALONE) -> Path:
    """Train a recipe and return the path of its last checkpoint.

    `out` receives `last.pt`, `best.pt`, `log.jsonl` and TensorBoard's files. A run that is interrupted at any moment
    and resumed takes the same steps as one that ran through. The processes of a `world` take the steps that one
    process would; the first one writes.
    """
    check_config(config)
    train_set, val_set = _datasets(config, report=world.is_main)
    share = local_batch_size(config.schedule.batch, config.run.accumulate, world)
    images_in_epoch = len(images_to_train_on(train_set, config.data.keep_empty))
    config = dataclasses.replace(config, schedule=in_steps(config.schedule, images_in_epoch))
    classes = Classes(train_set.classes, train_set.category_ids)
    state = _start(config, classes, out, resume)
    require_agreement({"the configuration": config, "the classes": classes, "the step to go on at": state.step}, world)
    device, dtype = pick_device(config.run.device), pick_precision(config)
    model, average, schedule = state.model, state.average, config.schedule
    parameters = [p for p in model.parameters() if p.requires_grad]
    network = data_parallel(model, world, compiled=config.run.compile)
    unchecked = _Unchecked(out, world)
    ap, best_ap = None, state.best_ap

    def save(name: str, step: int) -> None:
        if not world.is_main:
            return
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
                ap,
                best_ap,
            ),
        )

    with RunLog(out, first_step=state.step, writes=world.is_main) as run_log:
        run_log.start(config, device, dtype, world.size, len(train_set), sum(p.numel() for p in model.parameters()))
        batches = training_batches(train_set, config, state.step, world)
        progress = Progress(batches, state.step, schedule.steps, shown=world.is_main)
        started = time.perf_counter()
        image_count = 0
        for step, batch in enumerate(progress, start=state.step):
            model.train()
            set_learning_rate(state.optimizer, learning_rate_factor(step, schedule))
            images = batch.images.to(device, non_blocking=True)
            targets = Targets(*(t.to(device, non_blocking=True) for t in batch.targets))
            state.optimizer.zero_grad(set_to_none=True)
            losses = backward(network, images, targets, config, dtype, state.scaler, world)
            state.scaler.unscale_(state.optimizer)
            norm = clip_gradients(parameters, schedule.clip_norm)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            if average is not None:
                average.update(model, step)
            image_count += share * world.size
            run_log.problems(batch.problems)

            done = step + 1
            # A gradient that isn't finite spoils the weights, and with them the next checkpoint. fp16's scaler expects
            # some, and leaves those steps out.
            unchecked.add(done, losses, batch.image_ids, None if state.scaler.is_enabled() else norm)
            log = done % config.run.log_every == 0 or done == schedule.steps
            evaluate = val_set is not None and (done % config.run.evaluate_every == 0 or done == schedule.steps)
            save_now = done % config.run.checkpoint_every == 0 or done == schedule.steps
            # On a GPU, looking at a loss makes the host wait: they are looked at together, before they are relied on.
            if log or evaluate or save_now or device.type == "cpu":
                losses = unchecked.check()
            if log:
                rate = image_count / (time.perf_counter() - started)
                run_log.step(done, losses, norm, state.optimizer.param_groups[0]["lr"], rate)
                progress.note = f"loss {losses.total.item():.3f}  {rate:.1f} images/s"
            if evaluate:
                assert val_set is not None
                limit = config.run.evaluate_limit if done < schedule.steps else 0
                evaluated = average.model if average is not None else model
                figures = evaluate_model(evaluated, config, classes, val_set, limit, world)
                run_log.evaluation(done, figures, limit)
                ap = figures["AP"] if limit == 0 else None
                # A lucky part of the images must not beat the AP on all of them.
                if ap is not None and ap > best_ap:
                    best_ap = ap
                    save(BEST, done)
                started, image_count = time.perf_counter(), 0
            if save_now:
                save(LAST, done)
    return out / LAST


def backward(
    network: nn.Module,
    images: Tensor,
    targets: Targets,
    config: Config,
    dtype: torch.dtype,
    scaler: torch.amp.GradScaler,
    world: World = ALONE,
) -> Losses:
    """Add the gradients of a batch to the parameters, and return its losses.

    The batch is a process's share. Gradients and losses are such that their means over the processes are those of the
    whole batch, into however many pieces it is cut.
    """
    canvas_hw, pieces = (images.shape[1], images.shape[2]), config.run.accumulate
    # Once for the whole share: it needs no outputs, and is small beside a piece's activations.
    assigned = assign_targets(targets, canvas_hw, config.model)
    normalizers = None
    if pieces > 1 or world.size > 1:
        counts = all_reduce(torch.stack(normalizers_of(targets, canvas_hw, config.model, assigned)), world)
        # The sum over the processes of what each divides by its part of the counts is divided by their number again.
        normalizers = Normalizers(*(count / world.size for count in at_least_one(Normalizers(*counts))))
    parts = []
    for piece in range(pieces):
        rows = slice(piece * len(images) // pieces, (piece + 1) * len(images) // pieces)
        with contextlib.nullcontext() if piece == pieces - 1 else no_sync(network):
            with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
                outputs = network(images[rows])
            part, its_own = Targets(*(t[rows] for t in targets)), rows_of(assigned, rows)
            losses = criterion(outputs, part, canvas_hw, config.model, normalizers, its_own)
            scaler.scale(losses.total).backward()
        parts.append(torch.stack(losses).detach())
    return Losses(*torch.stack(parts).sum(dim=0))


def evaluate_model(
    model: DetectorNetwork, config: Config, classes: Classes, dataset: CocoDataset, limit: int = 0, world: World = ALONE
) -> dict[str, float]:
    """COCO figures (0–1) of a torch detector, by the runtime's evaluator; `limit` images, 0 all."""
    detector = RuntimeDetector(TorchBackend(model, config, classes))
    return evaluate_distributed(detector, dataset, world, limit=limit or None, progress=False).figures.figures


class _State(NamedTuple):
    """What a run starts from."""

    model: DetectorNetwork
    average: AveragedWeights | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int
    best_ap: float


class _Unchecked:
    """Losses that nobody has looked at yet, with the images they came from."""

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


def _start(config: Config, classes: Classes, out: Path, resume: bool) -> _State:
    """A fresh start, or the state of `last.pt`."""
    device = pick_device(config.run.device)
    last = out / LAST
    if not resume and last.exists():
        raise TrainingError(f"{last} exists already: add --resume to go on with it, or choose another --out")
    checkpoint = read_checkpoint(last) if resume and last.exists() else None
    torch.manual_seed(config.run.seed)
    model = build_detector(config.model, len(classes.names), config.preprocess)
    if config.run.init and checkpoint is None:
        initialize_from(model, Path(config.run.init))
    model = model.to(device)
    if config.run.channels_last:
        model = model.to(memory_format=torch.channels_last)
    average = AveragedWeights(model, config.schedule.ema) if config.schedule.ema > 0 else None
    optimizer = build_optimizer(model, config.schedule)
    scaler = torch.amp.GradScaler(device.type, enabled=pick_precision(config) == torch.float16)
    if checkpoint is None:
        return _State(model, average, optimizer, scaler, 0, -1.0)
    _check_same_run(checkpoint, config, classes, last)
    load_weights(model, checkpoint.model, last)
    if average is not None:  # one that is switched on only now starts at the trained weights
        load_weights(average.model, checkpoint.averaged if checkpoint.averaged is not None else checkpoint.model, last)
    resume_optimizer(optimizer, checkpoint.optimizer)
    scaler.load_state_dict(checkpoint.scaler)
    return _State(model, average, optimizer, scaler, checkpoint.step, checkpoint.best_ap)


def _check_same_run(checkpoint: Checkpoint, config: Config, classes: Classes, last: Path) -> None:
    """A resumed run may log, save and schedule otherwise, but must be about the same model and classes."""
    if checkpoint.classes != classes:
        raise CheckpointError(
            f"{last} was trained on the classes {', '.join(checkpoint.classes.names)}; the data now has "
            f"{', '.join(classes.names)}: resume with the same data, or choose another --out"
        )
    before = checkpoint.config.schedule.optimizer
    if before != config.schedule.optimizer:
        raise CheckpointError(
            f"{last} holds the state of {before}, not of {config.schedule.optimizer}: "
            f"resume with --schedule.optimizer {before}, or choose another --out"
        )
    then, now = ((c.preprocess.mean, c.preprocess.std, c.preprocess.channel_order) for c in (checkpoint.config, config))
    if then != now:
        raise CheckpointError(
            f"{last} was trained on images normalised by {then}, not by {now}: resume with the same --preprocess "
            "options, or choose another --out"
        )
    if dataclasses.replace(checkpoint.config.model, loss=config.model.loss) != config.model:
        raise CheckpointError(f"{last} holds another model than this recipe: resume with the same options")


def _datasets(config: Config, report: bool) -> tuple[CocoDataset, CocoDataset | None]:
    """The training set and, where one is named, the validation set; their problems are reported where asked for."""
    data = config.data
    if not data.train_json or not data.train_images:
        raise TrainingError(
            "no training data: give --data.train-json and --data.train-images (COCO format), "
            "or make some with: python -m train.shapes data/shapes"
        )
    train_set = load_coco(data.train_json, data.train_images)
    val_set = load_coco(data.val_json, data.val_images) if data.val_json else None
    for dataset in ([train_set] if val_set is None else [train_set, val_set]) if report else []:
        for problem in dataset.problems:
            say(f"warning: {dataset.json_path}: {problem}")
    if val_set is not None:
        found, expected = (dict(zip(s.category_ids, s.classes, strict=True)) for s in (val_set, train_set))
        if found != expected:
            raise TrainingError(
                f"{data.val_json} has the categories {found}, {data.train_json} has {expected}: "
                "both must list the same categories"
            )
    return train_set, val_set
