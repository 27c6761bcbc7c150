"""Which metrics does a dashboard show, of which components, and what is the best of each?

The one place that lists them: wandb's summaries, `mach dashboard` and the test that reads wandb's
files back all take them from here. The names are those of the lines in `component-<k>.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# k: component, K: number of components


@dataclass(frozen=True)
class Metric:
    """One key of the log."""

    key: str
    summary: str = ""
    """What wandb keeps of a whole run beside the last value: min, max, mean, or nothing."""
    child: bool = False
    """Only where there is a child with a student for it: k >= 1 and student=distil."""
    free: bool = False
    """Only under schedule=free."""
    ordered: bool = False
    """At every component only under the other schedules."""
    unit: str = ""
    """Of an evaluation: the task that is scored so; accuracy, bits_per_byte, bits_per_token."""


@dataclass(frozen=True)
class Panel:
    """Curves over optimizer steps, one for each component and metric."""

    title: str
    metrics: tuple[Metric, ...] = ()
    regex: str = ""
    """Instead of metrics: all keys that match, whatever a run logs of them."""


@dataclass(frozen=True)
class Section:
    """Panels that answer one question."""

    title: str
    panels: tuple[Panel, ...]


def _evaluation(prefix: str, **where: bool) -> tuple[Metric, ...]:
    return (
        Metric(f"{prefix}accuracy", "max", unit="accuracy", **where),
        Metric(f"{prefix}bits_per_byte", "min", unit="bits_per_byte", **where),
        Metric(f"{prefix}bits_per_token", "min", unit="bits_per_token", **where),
    )


SECTIONS = (
    Section(
        "Loss by component",
        (
            Panel("Loss", (Metric("loss", "min"),)),
            Panel("Gradient norm", (Metric("gradient_norm", "max"),)),
            Panel("Learning rate", (Metric("lr", "max"),)),
        ),
    ),
    Section(
        "Exits and windows",
        (
            Panel("Exits", _evaluation("eval_", ordered=True)),
            Panel("Loss of exits", (Metric("eval_loss", "min", ordered=True),)),
            Panel("Exits at the end of a free run", regex=r"eval_exit_\d+_.*"),
            Panel("Windows of one component", _evaluation("eval_window_", child=True)),
            Panel("Loss of windows", (Metric("eval_window_loss", "min", child=True),)),
            Panel("Windows of several components", regex=r"eval_window_\d+_.*"),
        ),
    ),
    Section("Student loss", (Panel("Student loss", (Metric("student_loss", "min", child=True),)),)),
    Section(
        "Staleness and waits",
        (
            Panel("Staleness, steps", (Metric("staleness_steps", "max"),)),
            Panel("Waited for the child, ms", (Metric("wait_child_ms", "max"),)),
            Panel("Waited for the parent, ms", (Metric("wait_parent_ms", "max"),)),
            Panel("Waited for data, ms", (Metric("wait_data_ms", "max"),)),
        ),
    ),
    Section(
        "Throughput and busy fraction",
        (
            Panel("Samples per second", (Metric("samples_per_s", "max"),)),
            Panel("Busy fraction", (Metric("busy_fraction", "min"),)),
            Panel("Bytes sent", (Metric("bytes_up"), Metric("bytes_down"))),
        ),
    ),
    Section("Salience", (Panel("What a component leans on", regex=r"salience/.*"),)),
    Section(
        "Faults",
        (
            Panel("Lives", (Metric("life", "max", free=True),)),
            Panel("Inputs made by the student", (Metric("imagined", "max", free=True),)),
            Panel("Trained without the parent", (Metric("alone", "max", free=True),)),
            Panel(
                "Dropped: a full queue",
                (Metric("dropped_up", "max", free=True), Metric("dropped_down", "max", free=True)),
            ),
            Panel(
                "Dropped: too late",
                (
                    Metric("late_activations", "max", free=True),
                    Metric("late_gradients", "max", free=True),
                ),
            ),
            Panel("Links up", (Metric("links_up", "min", free=True),)),
        ),
    ),
)


def metrics() -> Iterator[Metric]:
    """Every metric of every panel."""
    for section in SECTIONS:
        for panel in section.panels:
            yield from panel.metrics


def expected(component: int, *, free: bool, students: bool, unit: str) -> set[str]:
    """What a run of one component has logged by its end.

    Args:
        component: k.
        free: its schedule is `free`.
        students: it has students.
        unit: what its task is scored in.
    """
    return {
        metric.key
        for metric in metrics()
        if ((students and component > 0) or not metric.child)
        and (free or not metric.free)
        and not (free and metric.ordered and component > 0)
        and metric.unit in ("", unit)
    }
