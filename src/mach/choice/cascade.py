"""When is a cheap model sure enough, so that a larger one need not be asked?

    # p  largest probability that the small model gives a sample (Hendrycks and Gimpel, 2017)
    # t  threshold
    # p > t: the small model answers; else the large one does (Wang et al., "IDK Cascades", 2018)
    # t = 0: the small one alone; t = 1: the large one always

The threshold is found on samples that neither was trained on, and what it is worth is told of the
test split, which is looked at once, when everything is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor, nn

from mach.checkpoint import consolidated
from mach.config import CascadeConfig
from mach.config.window import Name, name_of
from mach.data import Batches
from mach.errors import ConfigError
from mach.inference import Run
from mach.metrics import Score

# B batch, N samples, C classes


class Cascade(nn.Module):
    """A small model, and a large one that is asked where the small one is not sure."""

    def __init__(self, small: nn.Module, large: nn.Module, threshold: float) -> None:
        """
        Args:
            small: from samples [B, ..] to logits [B, C].
            large: the same, of the same classes.
            threshold: t, 0 to 1.
        """
        super().__init__()
        self.small, self.large, self.threshold = small, large, threshold
        self.asked = 0
        """Samples that the large one has been asked about."""
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """From samples [B, ..] to logits [B, C], each of the model that answers."""
        logits_BC: Tensor = self.small(x)
        unsure = confidence(logits_BC) <= self.threshold
        count = int(unsure.sum())
        self.asked += count
        if count:
            logits_BC = logits_BC.clone()
            logits_BC[unsure] = self.large(x[unsure])
        return logits_BC


def confidence(logits_NC: Tensor) -> Tensor:
    """p of each sample, float64 [N]; above 0 and at most 1."""
    return logits_NC.double().softmax(-1).amax(-1)


@dataclass(frozen=True)
class Answers:
    """What is known of both models on the same samples."""

    sure: Tensor
    """Confidence of the small one, float64 [N]."""
    small: Tensor
    """Whether it is right, bool [N]."""
    large: Tensor
    """Whether the large one is, bool [N]."""


@dataclass(frozen=True)
class Point:
    """A cascade at one threshold, on some samples."""

    threshold: float
    accuracy: float
    asked: float
    """Fraction of samples the large model is asked about."""
    flops: float
    """Of a sample, on the mean: the small model's, and the large one's where it is asked."""


def curve(answers: Answers, small_flops: int, large_flops: int) -> list[Point]:
    """All there are, from the small model alone to the large one always."""
    values_M, place_N = answers.sure.unique(return_inverse=True)
    gain_N = answers.large.long() - answers.small.long()
    gained = torch.zeros(len(values_M), dtype=torch.int64).index_add_(0, place_N, gain_N).cumsum(0)
    asked = torch.bincount(place_N, minlength=len(values_M)).cumsum(0)
    total, right = len(place_N), int(answers.small.sum())
    thresholds = [0.0, *values_M[:-1].tolist(), 1.0]
    return [
        Point(t, (right + g) / total, a / total, small_flops + a / total * large_flops)
        for t, g, a in zip(thresholds, [0, *gained.tolist()], [0, *asked.tolist()], strict=True)
    ]


def calibrated(points: Sequence[Point], accuracy: float | None) -> Point | None:
    """The cheapest that is so accurate; None: none is.

    Args:
        points: of `curve`.
        accuracy: None is that of the large model.
    """
    wished = points[-1].accuracy if accuracy is None else accuracy
    return next((point for point in points if point.accuracy >= wished), None)


@dataclass(frozen=True)
class Found:
    """A cascade of a run, and what it is worth."""

    small: Name
    large: Name
    threshold: float
    points: list[Point]
    """On the validation split; none where the threshold was given."""
    chosen: Point | None
    """Of them."""
    samples: dict[str, int]
    """By split."""
    test: dict[str, Point]
    """On the test split: small, cascade, large."""


def cascade(config: CascadeConfig) -> Found:
    """Find a threshold, and what the cascade is worth.

    Raises:
        MachError: the run has no such models, nothing to calibrate by, or none is so accurate.
    """
    run = Run(config.run)
    _refuse_text(run)
    top = run.config.components - 1
    large = name_of(config.large, top)
    names = _cheaper(run, large) if config.small is None else [name_of(config.small)]
    for name in (large, *names):
        run.check(name.first, name.last)
    costs = run.assembly.costs()
    flops = {name: costs.model(name.first, name.last).flops for name in (large, *names)}
    for name in names:
        if flops[name] >= flops[large]:
            raise ConfigError(
                f"small={name}: expected a model that costs less than large={large}, "
                f"{flops[large]:,} FLOPs a sample; got {flops[name]:,}. Choose another: mach "
                f"models {run.run_dir}"
            )
    models = {name: run.model(name) for name in (large, *names)}
    small, threshold = names[0], config.threshold
    points: list[Point] = []
    chosen: Point | None = None
    if threshold is None:
        small, points, chosen = _calibrate(run, config, large, names, models, flops)
        threshold = chosen.threshold
    batches = Batches(run.dataset, 0, config.batch, run.device)
    pair = (flops[small], flops[large])
    return Found(
        small=small,
        large=large,
        threshold=threshold,
        points=points,
        chosen=chosen,
        samples={s: run.dataset.split(s).samples for s in ("validation", "test")[chosen is None :]},
        test=_tested(batches, run, models[small], models[large], threshold, *pair),
    )


def answers_of(
    run: Run, smalls: Sequence[nn.Module], large: nn.Module, batches: Batches
) -> list[Answers]:
    """Of each small model, beside the same large one, on the split that `batches` evaluates."""
    targets = run.assembly.family.targets
    rows: list[list[tuple[Tensor, Tensor]]] = [[] for _ in smalls]
    large_right: list[Tensor] = []
    with torch.inference_mode():
        for batch in range(batches.evaluation_batches()):
            x, y = batches.evaluation(batch)
            y = targets(y)
            large_right.append(large(x).argmax(-1) == y)
            for own, small in zip(rows, smalls, strict=True):
                logits_BC = small(x)
                own.append((confidence(logits_BC), logits_BC.argmax(-1) == y))
    found = []
    for own in rows:
        sure, right = zip(*own, strict=True)
        found.append(Answers(torch.cat(sure), torch.cat(right), torch.cat(large_right)))
    return found


def _calibrate(
    run: Run,
    config: CascadeConfig,
    large: Name,
    names: Sequence[Name],
    models: Mapping[Name, nn.Module],
    flops: dict[Name, int],
) -> tuple[Name, list[Point], Point]:
    """The small model whose cascade is the cheapest, all its points, and the one that is chosen."""
    if not run.dataset.validation:
        raise ConfigError(
            "mach cascade: expected samples that the run never trained on, to find a threshold "
            f"by; the run in {run.run_dir} has data.validation=0. Train with data.validation=N, or "
            "give small= and threshold=."
        )
    batches = Batches(run.dataset, 0, config.batch, run.device, split="validation")
    found = answers_of(run, [models[name] for name in names], models[large], batches)
    sane = [bool(answers.sure.isfinite().all()) for answers in found]
    if not any(sane):
        raise ConfigError(
            f"small={names[0]}: expected a model that gives probabilities; it has diverged, and "
            f"gives none. Choose another: mach models {run.run_dir}"
        )
    names, found = list(compress(names, sane)), list(compress(found, sane))
    curves = [curve(a, flops[n], flops[large]) for n, a in zip(names, found, strict=True)]
    chosen = [(n, c, calibrated(c, config.accuracy)) for n, c in zip(names, curves, strict=True)]
    able = [(point.flops, n, points, point) for n, points, point in chosen if point is not None]
    if not able:
        best = max((point for points in curves for point in points), key=lambda p: p.accuracy)
        raise ConfigError(
            f"accuracy={config.accuracy}: expected what a cascade reaches on the validation split; "
            f"the most is {best.accuracy:.4f}. Wish less, or choose other models: mach models "
            f"{run.run_dir}"
        )
    _, name, points, point = min(able, key=lambda one: one[0])
    return name, points, point


def _tested(
    batches: Batches,
    run: Run,
    small: nn.Module,
    large: nn.Module,
    threshold: float,
    small_flops: int,
    large_flops: int,
) -> dict[str, Point]:
    both = Cascade(small, large, threshold)
    scores = {"small": Score(run.device), "cascade": Score(run.device), "large": Score(run.device)}
    seen = 0
    with torch.inference_mode():
        for batch in range(batches.evaluation_batches()):
            x, y = batches.evaluation(batch)
            seen += len(x)
            for name, model in (("small", small), ("cascade", both), ("large", large)):
                scores[name].add(model(x), run.assembly.family.targets(y))
    accuracy = {name: score.result(run.task)["accuracy"] for name, score in scores.items()}
    asked = both.asked / seen
    mean_flops = small_flops + asked * large_flops
    return {
        "small": Point(0.0, accuracy["small"], 0.0, small_flops),
        "cascade": Point(threshold, accuracy["cascade"], asked, mean_flops),
        "large": Point(1.0, accuracy["large"], 1.0, large_flops),
    }


def _cheaper(run: Run, large: Name) -> list[Name]:
    """Every model of the run that costs less."""
    top, costs = run.config.components - 1, run.assembly.costs()
    firsts = range(top + 1) if run.config.student.enabled else range(1)
    names = [Name(j, i) for j in firsts for i in range(j, top + 1)]
    names += [entry.name for entry in consolidated.entries(run.run_dir)]
    most = costs.model(large.first, large.last).flops
    found = [name for name in names if costs.model(name.first, name.last).flops < most]
    if not found:
        raise ConfigError(
            f"large={large}: expected a model that costs more than another of the run; got the "
            f"cheapest, {most:,} FLOPs a sample. Choose another: mach models {run.run_dir}"
        )
    return found


def _refuse_text(run: Run) -> None:
    if run.task.metric != "accuracy":
        raise ConfigError(
            f"run={run.run_dir}: expected a run whose models name a class for each sample; these "
            f"are language models, in {run.task.metric}. A cascade of them is not made."
        )
