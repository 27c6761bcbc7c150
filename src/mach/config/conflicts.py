"""Which parts of a config do not go together, and why?"""

from __future__ import annotations

from math import isinf
from typing import TYPE_CHECKING

from mach.errors import ConfigError

if TYPE_CHECKING:
    from mach.config.run import Config


def check_parts(config: Config) -> None:
    """Refuse soft targets, mixed inputs, corrections, answers and lost children that the rest of
    the run has no place for.

    Raises:
        ConfigError: with what is expected, and why.
    """
    _soft(config)
    _mixed(config)
    _correction(config)
    _answers(config)
    _lost_child(config)


def _soft(config: Config) -> None:
    if config.head.soft == 0:
        return
    needs = (
        (config.feedback > 0, "feedback above 0", "the parent's logits come with its gradient"),
        (config.schedule != "free", "schedule=delayed or sync", "free drops what comes late"),
        (not config.answers, "no predictor and no one_hop", "their gradients carry no logits"),
        (
            config.transport.wire_dtype != "int8",
            "transport.wire_dtype=float32 or bfloat16",
            "in int8 logits and gradients of a row would share one scale",
        ),
    )
    for met, expected, reason in needs:
        if not met:
            raise ConfigError(
                f"head.soft={config.head.soft}: expected {expected}, as {reason}. Set head.soft=0."
            )


def _mixed(config: Config) -> None:
    student, size = config.student, config.microbatch_size
    if config.components == 1 or not student.enabled or student.mix in (0, 1):
        return
    rows = round(student.mix * size)
    if rows in (0, size):
        raise ConfigError(
            f"student.mix={student.mix}: expected a part of a microbatch; got "
            f"{'none' if rows == 0 else 'all'} of microbatch_size={size}, as samples are whole. "
            "Set microbatch_size to more, or student.mix to 0 or 1."
        )


def _correction(config: Config) -> None:
    optim = config.optim
    if optim.correction == "prediction" and config.replay == "stash":
        raise ConfigError(
            "optim.correction=prediction: expected replay=recompute; got stash, which has kept "
            "the weights that are to be predicted. Set replay=recompute or "
            "optim.correction=none."
        )
    if optim.correction == "prediction" and config.schedule == "free":
        raise ConfigError(
            "optim.correction=prediction: expected schedule=delayed, which says for how many "
            "steps; got free. Set schedule=delayed or optim.correction=rate."
        )
    if optim.correction in ("prediction", "compensation", "shrink") and config.unlocked:
        raise ConfigError(
            f"optim.correction={optim.correction}: expected predictor.enabled=false; got true, "
            "under which nothing that a body learns from is late. Set optim.correction=none."
        )
    if optim.correction == "prediction" and config.one_hop:
        raise ConfigError(
            "optim.correction=prediction: expected one_hop=false; got true, under which "
            "parents answer at their forward. Set optim.correction=rate."
        )
    if optim.asks_head and config.replay == "stash":
        raise ConfigError(
            f"optim.correction={optim.correction}: expected replay=recompute; got stash, whose "
            "gradients belong to the activations that they meet. Set replay=recompute or "
            "optim.correction=rate."
        )
    if optim.asks_head and config.answers:
        raise ConfigError(
            f"optim.correction={optim.correction}: expected neither predictor nor one_hop; got "
            "one, under which parents answer at once. Set optim.correction=none."
        )
    stashed = optim.correction == "compensation" and config.replay == "stash"
    if stashed and optim.name != "sgd":
        raise ConfigError(
            "optim.correction=compensation: expected optim=sgd with replay=stash; got "
            f"{optim.name}, whose steps do not follow the gradient's size, in which the "
            "compensation is measured. Set optim=sgd, or replay=recompute, where the parent's "
            "gradient is compensated before any optimizer."
        )


def _answers(config: Config) -> None:
    if not config.answers:
        return
    key = "predictor.enabled=true" if config.unlocked else "one_hop=true"
    if config.feedback == 0:
        raise ConfigError(
            f"{key}: expected feedback above 0, as it is about the parents' gradients; got 0. "
            "Set feedback=1."
        )
    if config.schedule == "free":
        raise ConfigError(
            f"{key}: expected schedule=delayed or sync; got free, under which a component that "
            "gets no gradient learns from its local loss. Set schedule=delayed."
        )
    if config.one_hop and config.unlocked:
        raise ConfigError(
            "one_hop=true: expected predictor.enabled=false; got true. A predicted gradient "
            "stands for all that lies above, and goes down as it is. Set one of them."
        )
    if config.one_hop and config.head.weight == 0:
        raise ConfigError(
            "one_hop=true: expected head.weight above 0, as parents return the gradient of "
            "their head's loss alone; got 0. Set head.weight=1."
        )


def _lost_child(config: Config) -> None:
    """Refuse to lose a child for good where its parent would wait for it for ever."""
    if config.schedule != "free" or config.components == 1 or config.student.enabled:
        return
    launch, faults = config.launch, config.faults
    if config.supervised and launch.on_exhausted == "continue":
        raise ConfigError(
            "launch.on_exhausted=continue: expected students, as without one a component waits "
            "for its child for ever; got student.enabled=false. Set student.enabled=true or "
            "launch.on_exhausted=stop."
        )
    if faults.kind == "drop-link" and isinf(faults.duration_s):
        raise ConfigError(
            "faults.duration_s=inf: expected students, as without one a component whose link to "
            "its child is dropped for ever waits for ever; got student.enabled=false. Set "
            "student.enabled=true or a shorter duration."
        )
