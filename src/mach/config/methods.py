"""What does a named method need of the config, and why?

A method is a set of values (`conf/method/`). Whoever changes one of them has a method of their own,
which may be what they want; but without some of them the name would be wrong.
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
    "more than 0",
    lambda c: c.feedback > 0,
    "It learns from the loss at the top; method=dgl learns from local losses.",
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

NEEDS: dict[str, tuple[Need, ...]] = {
    "backprop": (
        _GRADIENT,
        Need(
            "delay",
            "0, or schedule=sync",
            lambda c: c.effective_delay == 0,
            "Its gradients are exact; method=mach learns from late ones.",
        ),
    ),
    "dgl": (
        Need(
            "feedback",
            "0",
            lambda c: c.feedback == 0,
            "It learns from local losses; method=mach learns from its parent as well.",
        ),
    ),
    "ddg": (_GRADIENT, _OLD_GRAPH),
    "features_replay": (_GRADIENT, _PRESENT_WEIGHTS),
    "fdg": (
        _GRADIENT,
        _OLD_GRAPH,
        Need(
            "optim.correction",
            "shrink",
            lambda c: c.optim.correction == "shrink",
            "Shrinking is what it adds to method=ddg.",
        ),
    ),
    "ampnet": (_GRADIENT, _PRESENT_WEIGHTS),
    "dni": (_GRADIENT, _PREDICTOR),
    "takd": (
        _GRADIENT,
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
    ),
    "mach2019": (
        _GRADIENT,
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
        _GRADIENT,
        _PREDICTOR,
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
