"""How is a plan shown: what each component has to do, what it needs, and what travels?"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from mach.report.numbers import short
from mach.trainer.plan import Plan, Share

UNEVEN = 1.25
"""A component that takes more than this multiple of the mean is warned of."""


def show(plan: Plan, balance: str | list[int], console: Console) -> None:
    """Print a plan; at most 80 columns wide.

    Args:
        balance: what was asked for; the plan's own config has the cut that was found.
    """
    for table in (_cut(plan), _parts(plan), _memory(plan)):
        console.print(table)
    if plan.traffic:
        console.print(_edges(plan))
    for line in warnings(plan, balance):
        console.print(f"Warning: {line}", style="yellow", soft_wrap=True)


def warnings(plan: Plan, balance: str | list[int]) -> list[str]:
    """What a person should know before the run begins; `balance` as in `show`."""
    advice = "Smaller blocks can be divided better."
    if balance != "time":
        advice = "model.balance=time cuts by time; smaller blocks can be divided better."
    return [
        f"component {k} takes {share.of_mean:.2f} of the mean time, and the slowest sets the pace "
        f"of all. {_of_student(plan, share) or advice}"
        for k, share in enumerate(plan.shares)
        if share.of_mean > UNEVEN
    ]


def _of_student(plan: Plan, share: Share) -> str:
    """What to do about a component that is slow by its student, which no cut makes faster."""
    student = share.parts.get("student")
    if student is None or student.times.forward_s + student.times.backward_s < share.busy_s / 2:
        return ""
    return (
        "Most of that is its student: make it narrower than "
        f"student.width={plan.config.student.width}, or do without: student=none."
    )


def _cut(plan: Plan) -> Table:
    columns = ["blocks", "params", "microbatch", "of mean", "busy", "staleness"]
    table = _table("Cut", ["component", *columns])
    for k, share in enumerate(plan.shares):
        table.add_row(
            str(k),
            _blocks(share),
            short(sum(part.cost.params for part in share.parts.values())),
            _ms(share.busy_s),
            f"{share.of_mean:.2f}",
            f"{100 * share.busy_fraction:.0f} %",
            f"{share.staleness_steps:g} steps",
        )
    config = plan.config
    works = ["replay"] * (config.replay == "recompute") + ["student"] * config.student.enabled
    table.caption = (
        f"microbatch of {config.microbatch_size}: with {', '.join([*works, 'optimizer step'])}\n"
        f"busy: expected, if links are fast enough; {_rate(plan.samples_per_s)} samples/s\n"
        "staleness: expected age of the gradient"
    )
    return table


def _parts(plan: Plan) -> Table:
    table = _table("Parts", ["component", "part", "params", "flops", "forward", "backward"])
    for k, share in enumerate(plan.shares):
        table.add_section()
        for name, part in share.parts.items():
            table.add_row(
                str(k),
                name,
                short(part.cost.params),
                short(part.cost.flops),
                _ms(part.times.forward_s),
                _ms(part.times.backward_s),
            )
    table.caption = (
        "flops: forward of one sample; forward and backward: of a microbatch, measured on "
        f"{plan.device.type}"
    )
    return table


def _memory(plan: Plan) -> Table:
    columns = ["weights", "gradients", "optimizer", "in flight", "channels", "sum"]
    table = _table("Memory of each process, an estimate", ["component", *columns])
    for k, share in enumerate(plan.shares):
        m = share.memory
        sizes = [m.weights, m.gradients, m.optimizer, m.activations, m.channels, m.total]
        table.add_row(str(k), *map(_bytes, sizes))
    table.caption = (
        f"beside the {_bytes(plan.process_bytes)} that Python, torch and mach take, and the data"
    )
    return table


def _edges(plan: Plan) -> Table:
    table = _table("Messages", ["edge", "payload", "a microbatch", "link needed"])
    table.columns[1].no_wrap = False  # an image's is too long for a line of 80
    for row in plan.traffic:
        speed = f"{_bytes(row.bytes_per_s)}/s"
        wire = row.edge.wire_dtype
        payload = str(row.edge.payload) + (f" as {wire}" if wire != "float32" else "")
        table.add_row(row.edge.name, payload, _bytes(row.frame_bytes), speed)
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, caption_justify="left", title_justify="left")
    first, *rest = columns
    table.add_column(first, no_wrap=True)
    for name in rest:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _blocks(share: Share) -> str:
    first, last = share.blocks.start, share.blocks.stop - 1
    return f"{first}" if first == last else f"{first}..{last}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _bytes(count: float) -> str:
    return f"{short(count)}B" if count >= 1000 else f"{short(count)} B"
