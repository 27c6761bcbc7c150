"""What does a named method need of the config, and why?

A method is a set of values (`conf/method/`). Whoever changes one of them has a method of their own,
which may be what they want; but without some of them, or with what makes another method of it, the
name would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from mach.errors import ConfigError

if TYPE_CHECKING:
    from mach.config.run import Config


@dataclass(frozen=True)
class Need:
    """A value without which a method is not what its name says."""

    key: str
    """As on the command line."""
    expected: str
    """What is asked for, in words."""
    met: Callable[[Config], bool]
    reason: str
    """Why, and what to do instead."""


_GRADIENT = Need(
    "feedback",
    "1",
    lambda c: c.feedback == 1,
    "It learns from the loss at the top, in full; method=mach may scale what comes down.",
)
_OLD_GRAPH = Need(
    "replay",
    "stash",
    lambda c: c.replay == "stash",
    "It back-propagates the graph of the forward through the weights of then; "
    "method=features_replay goes through the present ones.",
)
_PRESENT_WEIGHTS = Need(
    "replay",
    "recompute",
    lambda c: c.replay == "recompute",
    "It back-propagates through the present weights; method=ddg goes through those of the forward.",
)
_PREDICTOR = Need(
    "predictor.enabled",
    "true",
    lambda c: c.predictor.enabled,
    "It learns from predicted gradients.",
)
_UNSHRUNK = Need(
    "optim.correction",
    "anything but shrink",
    lambda c: c.optim.correction != "shrink",
    "Shrinking is what method=fdg adds.",
)

_PROBES = Need(
    "head.weight",
    "0",
    lambda c: c.head.weight == 0,
    "It has one loss, at the top, and its heads are probes; method=mach lets bodies feel them.",
)
_UNASKED = Need(
    "optim.correction",
    "one that asks no head",
    lambda c: c.surrogate == 0,
    "It has one loss, at the top, and its heads are probes; in method=mach they may stand in for "
    "the parents.",
)
_REAL_INPUTS = Need(
    "student.mix",
    "0",
    lambda c: c.student.mix == 0 or not c.student.enabled,
    "Its bodies learn on what comes from below; method=mach2019 mixes in what students make.",
)

_FROM_THE_TOP = (
    Need(
        "predictor.enabled",
        "false",
        lambda c: not c.predictor.enabled,
        "Its gradients come from above; method=dni learns from predicted ones.",
    ),
    Need(
        "one_hop",
        "false",
        lambda c: not c.one_hop,
        "Its gradients come from the top; in method=mach2019 they come from the parent's head.",
    ),
    _PROBES,
    _UNASKED,
    _REAL_INPUTS,
)

NEEDS: dict[str, tuple[Need, ...]] = {
    "backprop": (
        Need(
            "feedback",
            "1",
            lambda c: c.feedback == 1,
            "Its gradients are exact; method=mach may scale them, method=dgl does without.",
        ),
        Need(
            "schedule",
            "sync, or delayed with delay=0",
            lambda c: c.schedule != "free",
            "Its gradients are exact; under free what comes late is made up or left out.",
        ),
        Need(
            "delay",
            "0, or schedule=sync",
            lambda c: c.effective_delay == 0,
            "Its gradients are exact; method=mach learns from late ones.",
        ),
        *_FROM_THE_TOP,
    ),
    "dgl": (
        Need(
            "feedback",
            "0",
            lambda c: c.feedback == 0,
            "It learns from local losses; method=mach learns from its parent as well.",
        ),
        _REAL_INPUTS,
    ),
    "ddg": (
        _GRADIENT,
        _OLD_GRAPH,
        *_FROM_THE_TOP,
        _UNSHRUNK,
    ),
    "features_replay": (_GRADIENT, _PRESENT_WEIGHTS, _UNSHRUNK, *_FROM_THE_TOP),
    "fdg": (
        _GRADIENT,
        _OLD_GRAPH,
        Need(
            "optim.correction",
            "shrink",
            lambda c: c.optim.correction == "shrink",
            "Shrinking is what it adds to method=ddg.",
        ),
        *_FROM_THE_TOP,
    ),
    "ampnet": (_GRADIENT, _PRESENT_WEIGHTS, _UNSHRUNK, *_FROM_THE_TOP),
    "dni": (_PREDICTOR, _PROBES, _REAL_INPUTS),
    "takd": (
        Need(
            "head.soft",
            "more than 0",
            lambda c: c.head.soft > 0,
            "Every exit listens to the next larger one.",
        ),
        Need(
            "student.enabled",
            "true",
            lambda c: c.student.enabled,
            "Windows are what it distils into.",
        ),
        Need(
            "student.soft",
            "more than 0",
            lambda c: c.student.soft > 0,
            "Every window listens to the exit it ends at.",
        ),
        Need(
            "student.task_weight",
            "more than 0",
            lambda c: c.student.task_weight > 0,
            "Every window listens to the exit it ends at, by its task loss.",
        ),
    ),
    "mach2019": (
        Need(
            "model.raw_input",
            "true",
            lambda c: c.model.raw_input,
            "Its components see the raw input beside their child's activation.",
        ),
        Need(
            "one_hop",
            "true",
            lambda c: c.one_hop,
            "Its gradients stop at the child; method=mach passes them on.",
        ),
        Need(
            "student.enabled",
            "true",
            lambda c: c.student.enabled,
            "Half of each batch goes through the student.",
        ),
        Need(
            "student.mix",
            "more than 0",
            lambda c: c.student.mix > 0,
            "Half of each batch goes through the student.",
        ),
    ),
    "synthetic_inputs": (
        _PREDICTOR,
        _PROBES,
        Need(
            "student.enabled",
            "true",
            lambda c: c.student.enabled,
            "Bodies learn on what students make; method=dni has real inputs.",
        ),
        Need(
            "student.mix",
            "1",
            lambda c: c.student.mix == 1,
            "Bodies learn on what students make alone; method=dni has real inputs.",
        ),
    ),
}
"""By method. One that is not here needs nothing: `mach`, or one of your own."""


def check_method(config: Config) -> None:
    """Refuse a config that contradicts the method it names.

    Raises:
        ConfigError: with what the method needs, and why.
    """
    for need in NEEDS.get(config.method, ()):
        if not need.met(config):
            got: object = reduce(getattr, need.key.split("."), config)
            raise ConfigError(
                f"method={config.method}: expected {need.key}={need.expected}; got {got}. "
                f"{need.reason}"
            )
