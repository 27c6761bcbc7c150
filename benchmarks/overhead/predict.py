"""How fast should a schedule be if messages cost nothing?

Plays the action lists of all components against each other with the times that their parts took
by themselves. What a measurement falls short of this is the price of messages, of threads beside
the computing one, and of mach's own Python.
"""

from __future__ import annotations

from variants import Settings, Variant, order

from mach.config import Config
from mach.schedule import Action, Backward, Forward, Step

Parts = dict[str, float]
"""Milliseconds: forward, backward, step; look (a forward without graph), stash copy, distil."""


def interior_samples_per_s(variant: Variant, settings: Settings, parts: list[Parts]) -> float:
    """Samples per second between the ends of the same two steps as the measurement takes."""
    config = settings.config(variant)
    lists = [order(config, k, settings.warm_up, variant.pipeline) for k in range(config.components)]
    steps = play(config, lists, parts)
    first = settings.warm_up // config.accumulate + 1
    last = config.steps - 1
    slowest_ms = max(ends[last] - ends[first] for ends in steps)
    samples = (last - first) * config.accumulate * config.microbatch_size
    return samples / slowest_ms * 1e3


def play(config: Config, lists: list[list[Action]], parts: list[Parts]) -> list[dict[int, float]]:
    """When each component ends each step, in ms."""
    top = len(lists) - 1
    clocks, places = [0.0] * len(lists), [0] * len(lists)
    sent_up: list[dict[int, float]] = [{} for _ in lists]
    sent_down: list[dict[int, float]] = [{} for _ in lists]
    replays: list[set[int]] = [set() for _ in lists]
    copied = [False] * len(lists)
    steps: list[dict[int, float]] = [{} for _ in lists]
    while any(place < len(actions) for place, actions in zip(places, lists, strict=True)):
        for k, actions in enumerate(lists):
            while places[k] < len(actions):
                action, part = actions[places[k]], parts[k]
                match action:
                    case Forward(b, staleness):
                        if k > 0 and b not in sent_up[k - 1]:
                            break
                        clocks[k] = max(clocks[k], sent_up[k - 1][b] if k > 0 else 0.0)
                        if staleness == 0:
                            clocks[k] += part["forward"]
                        elif config.replay == "stash":
                            clocks[k] += part["forward"] + (not copied[k]) * part["stash copy"]
                            copied[k] = True
                        else:
                            clocks[k] += part["look"]
                            replays[k].add(b)
                        sent_up[k][b] = clocks[k]
                        if config.student.enabled and k > 0:
                            clocks[k] += part["distil"]
                    case Backward(b):
                        if k < top and b not in sent_down[k + 1]:
                            break
                        clocks[k] = max(clocks[k], sent_down[k + 1][b] if k < top else 0.0)
                        clocks[k] += part["forward"] * (b in replays[k]) + part["backward"]
                        sent_down[k][b] = clocks[k]
                    case Step(step):
                        clocks[k] += part["step"]
                        steps[k][step] = clocks[k]
                        copied[k] = False
                places[k] += 1
    return steps
