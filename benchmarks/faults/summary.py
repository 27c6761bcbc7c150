"""What do the measurements say? From the JSON to the README's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from aims import aims
from cells import DASH, Row, known, spread, table
from growth import LONG_S
from ratios import (
    is_quiet,
    kept,
    later_s,
    of_no_latency,
    points_lost,
    slowest,
    undisturbed,
    victims,
)

from mach.provenance import commit_of, machine_of

SECTIONS = ("deaths", "slow", "latency", "start", "accuracy", "soak")
_COMPUTE = (
    "A microbatch takes {pace:g} ms or more at every component: a third of it in the forward, two "
    "thirds in the backward, by sleeping. There is next to no compute."
)


def markdown(result: dict[str, Any]) -> str:
    """Every table that `result` has the measurements for."""
    sections = [name for name in SECTIONS if name in result]
    rows = [row for name in sections for row in aims(name, result[name])]
    blocks = ["## Result", table(["", "measured", "aim", "met"], rows)]
    for name in sections:
        blocks += _WRITE[name](result[name])
    return "\n\n".join([*blocks, _environment(result, sections)])


# --- deaths and slow ------------------------------------------------------------------------------


def _deaths(section: dict[str, Any]) -> list[str]:
    rows = []
    by_victim = _by_victim(section)
    for victim, runs in by_victim.items():
        row = [f"component {victim}"]
        for key, digits in (("age_s", 1), ("away_s", 1), ("connected_s", 1), ("steps_lost", 0)):
            row.append(spread([one["return"][key] for one in runs], digits))
        rows.append(row)
    head = ["killed", "s from process start to connected", "s without a step"]
    head += ["s from death to connected", "steps taken again"]
    return [*_disturbed(section, "Killed", "killed"), table(head, rows)]


def _slow(section: dict[str, Any]) -> list[str]:
    factor = section["settings"]["factor"]
    return _disturbed(section, f"Made {factor:g} times slower", "slow")


def _disturbed(section: dict[str, Any], title: str, word: str) -> list[str]:
    settings = section["settings"]
    quiet = [] if is_quiet(section) else [_NOT_QUIET]
    compute = _COMPUTE.format(pace=settings["pace_ms"])
    cores = spread([one["cores_busy"] for one in section["rounds"]], 2)
    text = (
        f"Median (least .. most) of {len(section['rounds'])} rounds; ratios are taken within one. "
        f"{compute} The undisturbed run keeps {cores} of {section['environment']['cores']} cores "
        f"busy. Before and after: {settings['before_s']:g} and {settings['after_s']:g} s."
        + (_DURING.format(least=settings["least_s"]) if word == "killed" else "")
    )
    head = [word, "component", "steps/s before", "during", "after", "during, of before"]
    head += ["during, of the undisturbed run", "longest pause, ms"]
    rows = [_calm_row(section, k) for k in range(len(section["rounds"][0]["undisturbed"]))]
    ratios = {of: kept(section, of) for of in ("before", "undisturbed")}
    for victim, runs in _by_victim(section).items():
        for k in range(len(runs[0]["components"])):
            shares = [found.get((victim, k)) for found in ratios.values()]
            rows.append(_row(runs, victim, k, shares))
    return [f"### {title}", text, *quiet, table(head, rows)]


_DURING = (
    " During: from its last sign of life until it is back, and {least:g} s at least, so that what "
    "its return costs the others is in it."
)
_NOT_QUIET = (
    "**The machine was not quiet**: the undisturbed runs themselves differed by more than a tenth "
    "from round to round, so nothing here can be trusted."
)


def _calm_row(section: dict[str, Any], k: int) -> Row:
    rates = [undisturbed(one, "rate")[k] for one in section["rounds"]]
    pauses = [undisturbed(one, "pause_ms")[k] for one in section["rounds"]]
    row = ["nobody", str(k), spread(rates, 1), DASH, DASH, DASH, DASH]
    return [*row, spread(pauses, 0)]


def _row(
    runs: list[dict[str, Any]], victim: int, k: int, shares: Sequence[list[float] | None]
) -> Row:
    own = [one["components"][k] for one in runs]
    cells = [spread(known(one[key] for one in own), 1) for key in ("before", "during", "after")]
    row = [str(victim), f"**{k}**" if k == victim else str(k), *cells]
    row += [DASH if share is None else spread(share, 3) for share in shares]
    return [*row, spread(known(one["pause_ms"] for one in own), 0)]


def _by_victim(section: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for one in victims(section):
        found.setdefault(one["victim"], []).append(one)
    return dict(sorted(found.items()))


# --- latency --------------------------------------------------------------------------------------


def _latency(section: dict[str, Any]) -> list[str]:
    rounds, settings = section["rounds"], section["settings"]
    latencies = sorted(rounds[0]["free"], key=float)
    speeds, ratios, shares = [], [], []
    for variant in rounds[0]:
        by_latency = of_no_latency(section, variant)
        cells = [spread([slowest(r[variant][x]) for r in rounds], 1) for x in latencies]
        speeds.append([variant, *cells])
        parts = [spread(by_latency[x], 3) if x in by_latency else "1" for x in latencies]
        ratios.append([variant, *parts])
    for what in ("imagined", "alone"):
        cells = [spread([_mean_share(r["free"][x], what) for r in rounds], 2) for x in latencies]
        shares.append([f"free: part {what}", *cells])
    chosen = rounds[0]["free"]
    shares.append(["delay, microbatches a hop", *(str(chosen[x]["delay"]) for x in latencies)])
    shares.append(["credits", *(str(chosen[x]["credits"]) for x in latencies)])
    text = (
        f"Every edge crosses the link; M = {settings['accumulate']}; "
        f"{settings['latency_s']:g} s of each, {len(rounds)} rounds. "
        f"{_COMPUTE.format(pace=settings['pace_ms'])}"
    )
    columns = [f"{latency} ms" for latency in latencies]
    return [
        "### Latency on every edge, each way",
        text,
        table(["microbatches/s of the slowest component", *columns], speeds),
        table(["of the same at 0 ms", *columns], ratios),
        table(["free and delayed", *columns], shares),
    ]


def _mean_share(measured: dict[str, Any], what: str) -> float:
    """Of the components that can: the bottom never imagines, the top is never alone."""
    components = measured["components"]
    those = components[1:] if what == "imagined" else components[:-1]
    return mean(one[what] for one in those)


# --- accuracy, start and soak ---------------------------------------------------------------------


def _accuracy(section: dict[str, Any]) -> list[str]:
    rows = []
    for seed, pair in enumerate(section["seeds"]):
        calm, killed = pair["undisturbed"], pair["killed"]
        rows.append(
            [
                str(seed),
                f"{calm['accuracy'] * 100:.2f}",
                f"component {killed['victim']}",
                f"{killed['accuracy'] * 100:.2f}",
                f"{points_lost(pair):+.2f}",
                f"{calm['wall_s']:.0f} / {killed['wall_s']:.0f}",
            ]
        )
    head = ["seed", "undisturbed, %", "killed at the middle", "with it, %", "lost, points"]
    text = (
        f"MNIST, top exit, {section['steps']:,} steps of 4 microbatches of 16, real compute; one "
        "death at the middle of the run."
    )
    return ["### Accuracy after a death", text, table([*head, "s without / with"], rows)]


def _start(section: dict[str, Any]) -> list[str]:
    rounds = section["rounds"]
    text = (
        f"From the command until every component has taken its first step; median (least .. most) "
        f"of {len(rounds)} pairs, by turns."
    )
    rows = [
        [launch, spread([one[launch]["start_s"] for one in rounds], 1)]
        for launch in ("gang", "supervised")
    ]
    rows.append(["supervised - gang, in one pair", spread(later_s(section), 1)])
    return ["### Start", text, table(["launch", "s"], rows)]


def _soak(section: dict[str, Any]) -> list[str]:
    rows = []
    for kind, words in _COMPARED:
        for role, changes in section[kind].items():
            cells = [_from_to(changes[key], digits) for key, digits in _DIGITS]
            within = section["within"].get(role, {}).get("private_mib") or []
            grows = spread(within, 2) if within else DASH
            rows.append([role, words, *cells, grows])
    head = ["process", "compared", "private memory, MiB", "file descriptors", "threads"]
    losses = [
        [f"component {k}", *(f"{loss:.4f}" for loss in losses), f"{steps:,}"]
        for k, (losses, steps) in enumerate(zip(section["losses"], section["steps"], strict=True))
    ]
    minutes = section["seconds_seen"] / 60
    text = (
        f"{minutes:.1f} minutes, a random component killed every 20 s: {section['kills']} kills, "
        f"{section['deaths']} deaths and {section['returns']} returns seen by the launcher, "
        f"{section['left_behind']} processes left behind. The last column is a component's own "
        f"growth once it has come up, over its lives of {LONG_S:g} s and more."
    )
    blocks = ["### Soak", text, "![soak](soak.png)"]
    blocks.append(table([*head, "MiB within a life"], rows))
    if losses and len(losses[0]) == 5:
        blocks.append(table(["median loss", "1st third", "2nd", "3rd", "steps"], losses))
    return blocks


_COMPARED = (("lasting", "second fifth .. last"), ("lives", "14 to 20 s old, 1st half .. 2nd"))
_DIGITS = (("private_mib", 1), ("fds", 0), ("threads", 0))


def _from_to(change: list[float] | None, digits: int) -> str:
    return DASH if change is None else f"{change[0]:.{digits}f} .. {change[1]:.{digits}f}"


# --- environment ----------------------------------------------------------------------------------


def _environment(result: dict[str, Any], sections: Sequence[str]) -> str:
    lines = ["## Environment", ""]
    rows = []
    for name in sections:
        e = result[name]["environment"]
        machine = f"- {machine_of(e)}"
        if machine not in lines:
            lines.append(machine)
        seconds = f"{result[name]['seconds']:,}"
        rows.append(
            [name, f"`{e['command']}`", commit_of(e), e["date"], f"{e['load']:.2f}", seconds]
        )
    lines.append("- mlp of width 16, digits, one compute thread each, unless a section says more")
    head = ["section", "command", "commit", "date", "load at the start", "s it took"]
    return "\n".join([*lines, "", table(head, rows)])


_WRITE: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "deaths": _deaths,
    "slow": _slow,
    "latency": _latency,
    "start": _start,
    "accuracy": _accuracy,
    "soak": _soak,
}
