"""What benchmarks/accuracy/ runs, keeps and concludes."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mach.launcher.compose import compose, conf_dir
from mach.results import Cost

FOLDER = Path(__file__).parents[1] / "benchmarks" / "accuracy"
sys.path.append(str(FOLDER))
grid = importlib.import_module("grid")
kept = importlib.import_module("rows")
origins = importlib.import_module("origins")
stored = importlib.import_module("stored")
tables = importlib.import_module("tables")
training = importlib.import_module("training")
tuning = importlib.import_module("tuning")
sizes = importlib.import_module("sizes")
Cell = grid.Cell


# --- cells ---------------------------------------------------------------------------------------


def test_cells_are_seeds_by_methods_by_delays_and_what_no_delay_changes_runs_once():
    found = grid.method_cells(
        "mnist1d", ["backprop", "mach"], [0, 1], {"backprop"}, {"mach": ("optim.clip=0",)}, [0, 4]
    )

    def of_seed(seed, components, delays):
        late = [
            Cell("mnist1d", "mach", components, d, seed, changes=("optim.clip=0",)) for d in delays
        ]
        return [Cell("mnist1d", "backprop", components, 0, seed), *late]

    assert found == [
        *of_seed(0, 4, [0, 4]),
        *of_seed(1, 4, [0, 4]),
        *(cell for seed in (0, 1) for k in (2, 8) for cell in of_seed(seed, k, [0, 4])),
    ]


def test_a_chain_of_another_length_has_what_was_chosen_for_it_or_else_for_the_tasks_own():
    chosen = {"mach": ("optim.clip=0",), "mach, 8 components": ("optim.clip=2",)}
    found = grid.method_cells("mnist1d", ["mach", "dgl"], [0], set(), chosen, [4])
    assert {(c.method, c.components): c.changes for c in found} == {
        ("mach", 4): ("optim.clip=0",),
        ("mach", 2): ("optim.clip=0",),
        ("mach", 8): ("optim.clip=2",),
        **{("dgl", components): () for components in (2, 4, 8)},
    }


def test_only_the_leading_methods_are_run_at_the_longest_delays():
    found = grid.method_cells("mnist", ["mach", "ddg"], [0], set(), {}, [8, 16])
    assert [(cell.method, cell.delay) for cell in found] == [("mach", 8), ("mach", 16), ("ddg", 8)]


def test_a_task_may_want_few_methods():
    found = grid.method_cells("resnet", ["backprop", "mach", "dgl", "ddg"], [0], set(), {})
    assert [(cell.method, cell.components, cell.delay) for cell in found] == [
        ("backprop", 3, 1),
        ("mach", 3, 1),
        ("dgl", 3, 1),
    ]


def test_networks_trained_alone_are_each_run_once():
    assert grid.alone_cells("mnist1d", [(1, 128), (2, 140), (1, 128)], [5], ("optim.lr=1",)) == [
        Cell("mnist1d", "backprop", 1, 0, 5, grid.ALONE, ("optim.lr=1", "model.width=128")),
        Cell("mnist1d", "backprop", 2, 0, 5, grid.ALONE, ("optim.lr=1", "model.width=140")),
    ]


def test_what_is_longer_has_so_many_more_steps():
    chosen = ("optim.lr=1",)
    assert grid.longer_cells("gpt", 300, [5], chosen, [1]) == [
        Cell("gpt", "mach", 4, 1, 5, grid.LONGER, (*chosen, "steps=315", "student=none"))
    ]
    for cell in grid.longer_cells("gpt", 300, [5], ()):
        assert compose(grid.overrides(cell, "some.file")).steps in (315, 360)


@pytest.mark.parametrize("task", grid.TASKS)
@pytest.mark.parametrize("kind", [grid.METHOD, grid.TUNING])
def test_every_cell_of_the_leading_methods_is_a_config_of_mach(task, kind):
    for method in grid.LEADING:
        cell = Cell(task, method, grid.TASKS[task].components, 1, 3, kind)
        config = compose(grid.overrides(cell, "some.file", steps=8))
        assert (config.method, config.components, config.seed) == (method, cell.components, 3)
        assert (config.steps, config.eval.every) == (8, 2)
        chosen_blind = (config.data.validation > 0, config.eval.split == "validation")
        assert chosen_blind == ((kind == grid.TUNING,) * 2)


# --- what is kept --------------------------------------------------------------------------------


def row(method="mach", delay=0, seed=0, value=0.9, components=4, **more):
    about = asdict(Cell("mnist1d", method, components, delay, seed))
    exits = [{"exit": k, "value": value - 0.01 * (3 - k), "params": 10, "flops": 20 + k}
             for k in range(4)]  # fmt: skip
    windows = [{"first": 3, "last": 3, "value": 0.5, "params": 5, "flops": 15}]
    return {
        **about,
        "changes": [],
        "cut_to": None,
        "undelayed": method == "backprop",
        "samples": 1000,
        "trained_params": 40,
        "metric": "accuracy",
        "exits": exits,
        "windows": windows,
        "staleness": [delay * 1.5, 0.0],
        "curve": [[500, value - 0.05], [1000, value]],
        "commit": "0" * 40,
        "changed": False,
        "date": "today",
        "torch": "2",
        "seconds": 7,
        **more,
    }


def gone(*about, **more):
    """A row of a run that has diverged."""
    empty = {name: [] for name in ("exits", "windows", "staleness", "curve")}
    found = row(*about, **more, diverged="component 0", **empty)
    return {key: value for key, value in found.items() if key != "metric"}


def test_what_was_interrupted_in_the_middle_of_a_line_goes_on_after_the_last_whole_one(tmp_path):
    path = tmp_path / "cells.jsonl"
    assert stored.read(path) == []
    stored.append(path, row(seed=0))
    with path.open("a") as file:
        file.write('{"task": "mni')
    assert stored.read(path) == [row(seed=0)]
    stored.append(path, row(seed=1))
    assert stored.read(path) == [row(seed=0), row(seed=1)]


def test_only_cells_that_are_not_there_are_run():
    cells = [Cell("mnist1d", "mach", 4, 0, seed) for seed in (0, 1, 0, 2)]
    rows = [row(seed=1), row(seed=2, cut_to=9)]
    assert stored.missing(cells, rows) == [cells[0], cells[3]]
    assert stored.missing(cells, rows, 9) == cells[:2]
    assert stored.missing([cells[1]], [row(seed=1, changes=["optim.lr=1"])]) == [cells[1]]
    assert stored.missing(grid.without_students([cells[1]]), [row(seed=1)]) == []
    assert stored.missing([cells[1]], [row(seed=1, changes=["student=none"])]) == [cells[1]]


# --- choosing ------------------------------------------------------------------------------------


def test_one_value_after_the_other_is_chosen_and_then_there_is_nothing_to_try():
    best_of = {"a": 3, "b": 10}
    known = {}

    def score(changes):
        return known.get(changes)

    tried = []
    while True:
        best, tries = tuning.search({"a": (1, 2, 3), "b": (10, 20)}, score)
        if not tries:
            break
        tried.append(tries)
        for changes in tries:
            values = dict(change.split("=") for change in changes)
            known[changes] = -sum(abs(float(values[key]) - best_of[key]) for key in best_of)
    assert tried == [[("a=1", "b=10"), ("a=2", "b=10"), ("a=3", "b=10")], [("a=3", "b=20")]]
    assert best == ("a=3", "b=10")


def test_a_method_is_offered_what_all_are_and_the_values_of_its_own_parts():
    def offered(method, *words):
        words = ("experiment=mnist1d", "data.path=some.npz", f"method={method}", *words)
        return list(tuning.grid_of("mnist1d", compose(list(words))))

    all_are = list(tuning.GRIDS["mnist1d"])
    assert offered("backprop") == offered("ddg") == offered("dgl") == all_are
    assert offered("mach") == offered("takd") == [*all_are, "optim.correction_fraction"]
    asks = offered("mach", "optim.correction=surrogate")
    assert asks == [*all_are, "optim.surrogate", "head.weight"]
    assert offered("dni") == ["predictor.lr", *all_are]
    assert offered("mach2019") == ["student.muon_lr", *all_are]
    assert offered("synthetic_inputs") == ["predictor.lr", "student.muon_lr", *all_are]


@pytest.mark.parametrize(("best_of", "tried"), [(9, (8, 16)), (0.6, (0.5, 0.25)), (2, ())])
def test_a_rate_at_an_end_of_its_candidates_is_followed_by_one_beyond(best_of, tried):
    known = {}
    while True:
        best, tries = tuning.search({"optim.lr": (1, 2, 4)}, known.get)
        if not tries:
            break
        known |= {changes: -abs(math.log(float(changes[0][9:]) / best_of)) for changes in tries}
    assert list(known) == [(f"optim.lr={rate}",) for rate in (1, 2, 4, *tried)]
    assert known[best] == max(known.values())


def test_a_choice_of_one_seed_must_beat_the_beginning_from_several():
    grid_, chosen = {"a": (1, 2), "b": (10, 20)}, ("a=2", "b=10")
    first = ("a=1", "b=10")
    known = {chosen: 0.5}
    assert tuning.confirm(grid_, known.get, chosen) == (first, [first])
    assert tuning.confirm(grid_, {**known, first: 0.4}.get, chosen) == (chosen, [])
    assert tuning.confirm(grid_, {**known, first: 0.6}.get, chosen) == (first, [])
    assert tuning.confirm(grid_, {}.get, first) == (first, []), "nothing to be confirmed"


def test_a_choice_that_diverges_is_the_worst_and_one_that_is_not_better_is_not_made():
    def tried(change, value):
        kind = {"kind": grid.TUNING, "changes": [change]}
        return {**row(value=value, **kind), **({} if value else {"exits": []})}

    rows = [tried("x=1", 0.5), tried("x=2", 0.5), tried("x=3", None or 0)]
    score = tuning.validated(rows, "mnist1d", "mach", 4, 0, None, [0], {})
    assert score(("x=3",)) == float("-inf")
    assert score(("x=4",)) is None
    assert tuning.validated(rows, "mnist1d", "mach", 4, 0, None, [0, 1], {})(("x=1",)) is None
    assert tuning.search({"x": (1, 2, 3)}, score) == (("x=1",), [])


def test_a_choice_made_without_students_is_one_for_the_same_chain_with_them():
    changes = ["x=1", grid.NO_STUDENTS]
    rows = [row(value=0.5, kind=grid.TUNING, changes=changes)]
    assert tuning.validated(rows, "mnist1d", "mach", 4, 0, None, [0], {})(("x=1",)) == 0.5


def test_a_choice_is_known_where_what_the_experiment_has_anyway_was_said_or_not():
    values = {"x=1": 0.5, "x=2": 0.6}
    rows = [row(value=v, kind=grid.TUNING, changes=[c]) for c, v in values.items()]
    grid_ = {"x": (1, 2), "y": (7, 8)}
    score = tuning.validated(rows, "mnist1d", "mach", 4, 0, None, [0], grid_)
    assert (score(("x=2", "y=7")), score(("x=1", "y=7")), score(("x=2", "y=8"))) == (0.6, 0.5, None)
    assert tuning.search(grid_, score) == (("x=2", "y=7"), [("x=2", "y=8")])


def test_a_choice_is_known_only_where_it_was_tried_from_every_seed():
    """A tuning at another delay is another search, and a seed run twice is one seed."""
    tuned = {"kind": grid.TUNING, "value": 0.5}
    without = row(changes=["x=1", grid.NO_STUDENTS], windows=[], **tuned)
    rows = [row(changes=["x=1"], **tuned), without, row(delay=4, seed=1, changes=["x=1"], **tuned)]

    def score(components, delay, seeds):
        known = tuning.validated(rows, "mnist1d", "mach", components, delay, None, seeds, {})
        return known(("x=1",))

    assert [score(4, 0, [0]), score(4, 4, [1])] == [0.5, 0.5]
    assert score(4, 0, [0, 1]) is None
    assert score(4, 4, [0]) is None
    assert score(2, 0, [0]) is None


def test_the_width_whose_cost_is_nearest_is_found():
    asked = []

    def cost(width):
        asked.append(width)
        return Cost(0, width * width).flops

    assert sizes.nearest(10_100, cost, 16) == 100
    assert sizes.nearest(10_200, cost, 400) == 101
    assert sizes.nearest(0, cost, 16) == 1
    assert len(asked) < 60


# --- tables --------------------------------------------------------------------------------------


def test_a_table_compares_with_back_propagation_of_as_many_components():
    rows = [
        row("backprop", value=0.95),
        row("backprop", seed=1, value=0.97),
        row("backprop", components=2, value=0.5),
        row("mach", value=0.97),
        row("mach", delay=4, value=0.93),
    ]
    text = tables.markdown(rows)
    assert "| `backprop`, 4 components | 96.00 (95.00 .. 97.00) [2] | 96.00" in text
    assert "| `mach`, 4 components | 97.00 [1] | 93.00 [1] |" in text
    assert "| `mach`, 4 components | -2.00 [1 of 2] | +2.00 [1 of 2] |" in text
    assert "| `mach`, 4 components | 1.00 [1] | never [1] |" in text
    assert "| `mach`, delay 4 | 90.00 | 91.00 | 92.00 | 93.00 |" in text


def test_aims_are_judged_on_whole_runs_by_the_mean():
    rows = [
        row("backprop", value=0.97),
        row("mach", delay=4, value=0.9695),
        row("mach", delay=8, value=0.96),
        row("ddg", delay=8, value=0.965),
        row("mach", delay=1, value=0.5, cut_to=9),
    ]
    head, _, best, worse, rival = tables.markdown(rows).split("\n\n")[1].splitlines()
    assert head == "| whole runs | measured | aim | met |"
    assert best.endswith("| +0.05 | ≤ 0.1 | yes |")
    assert worse.endswith("| +1.00 | ≤ 0.3 | **no** |")
    assert rival.endswith("`ddg` (as in `conf/`), points, 1 seeds | -0.50 | > 0 | **no** |")


def test_the_smallest_window_is_judged_beside_a_network_of_its_cost():
    alone = row("backprop", value=0.6, kind=grid.ALONE, components=2)
    alone["exits"] = [{"exit": 1, "value": 0.6, "params": 41, "flops": 15}]
    text = tables.markdown([row("backprop"), row("mach", delay=4), alone])
    *_, line = text.split("\n\n")[1].splitlines()
    assert line.startswith("| mnist1d, delay 4: window 3..3 ahead of a network of its cost alone")
    assert line.endswith("points, 1 seeds | -10.00 | > 0 | **no** |")


def test_mach_may_be_given_more_samples_to_be_as_good():
    bits = {"task": "gpt", "metric": "bits_per_byte"}
    longer = {"kind": grid.LONGER, "samples": 1050, "changes": ["steps=315", "student=none"]}
    rows = [
        row("backprop", value=2.5, **bits),
        row("mach", delay=1, value=2.52, **bits),
        row("mach", delay=1, value=2.49, **bits, **longer),
        row("mach", delay=4, value=2.6, **bits),
        row("ddg", delay=4, value=2.7, **bits),
    ]
    text = tables.markdown(rows)
    as_good, behind, ahead = text.split("\n\n")[1].splitlines()[2:]
    assert as_good.endswith("loses with 1.05 times the samples, 1 seeds | -0.010 | ≤ 0 | yes |")
    assert behind.endswith("bits per byte that `mach` loses, 1 seeds | +0.020 | ≤ 0.03 | yes |")
    assert ahead.endswith("`ddg` (as in `conf/`), bits per byte, 1 seeds | +0.100 | > 0 | yes |")
    assert "Equal samples (1,000)" in text


def test_a_goal_is_judged_seed_by_seed():
    """Against all of back-propagation's seeds the third alone was a gain of 0.2."""
    rows = [row("backprop", seed=s, value=v) for s, v in enumerate((0.96, 0.97, 0.98))]
    late = row("mach", 4, 2, value=0.972)
    assert goals(*rows, late)[0][0].endswith("points that `mach` loses, 1 of 3 seeds")
    assert goals(*rows, late)[0][1:] == ("+0.80", "≤ 0.1", "**no**")
    text = tables.markdown([*rows, late])
    assert "| `mach`, 4 components | – | +0.80 [1 of 3] |" in text
    assert "the mean of the differences, seed by seed" in text
    ((what, *judged),) = goals(*rows, row("mach", 4, 3, value=0.99))
    assert what.endswith("0 of 3 seeds")
    assert judged == ["–", "≤ 0.1", "–"], "no seed that both have"


def test_a_goal_is_not_met_by_the_seeds_that_survive():
    rows = [row(m, 4, s, value=0.9) for s in (0, 1, 2) for m in ("backprop", "ddg")]
    others = [gone("mach", 4, 1), gone("mach", 4, 2)]
    behind, rival = goals(*rows, row("mach", 4, 0, value=0.91), *others)
    assert behind[1:] == ("-1.00, 2 diverged", "≤ 0.1", "**no**")
    assert rival[1:] == ("+1.00, 2 diverged", "> 0", "**no**")
    assert behind[0].endswith("1 of 3 seeds")
    behind, rival = goals(*rows, gone("mach", 4, 0), *others)
    assert [behind[1:], rival[1:]] == [
        ("3 diverged", "≤ 0.1", "**no**"),
        ("3 diverged", "> 0", "**no**"),
    ]


def test_the_best_other_is_found_seed_by_seed_and_may_diverge():
    rows = [row("mach", 8, s, value=v) for s, v in enumerate((0.9, 0.8))]
    rows += [row("ddg", 8, 0, value=0.85), gone("ddg", 8, 1), gone("dni", 8, 0)]
    rows += [row("features_replay", 8, s, value=v) for s, v in enumerate((0.86, 0.8))]
    ((what, *judged),) = goals(*rows)
    assert what.endswith("`features_replay` (as in `conf/`), points, 2 seeds")
    assert judged == ["+2.00", "> 0", "yes"]
    (line,) = goals(*rows[:4])
    assert line[0].endswith("`ddg` (as in `conf/`), points, 1 of 2 seeds")
    assert line[1:] == ("+5.00", "> 0", "yes")


def tried(method, *changes):
    """A row of what was tried of a method."""
    return row(method, 8, kind=grid.TUNING, changes=[*changes, grid.NO_STUDENTS])


def test_a_rival_that_was_not_tuned_is_told():
    tuned, best = {"changes": ["optim.lr=1", grid.NO_STUDENTS]}, "ahead of the best other, `ddg`"
    mach, ddg = row("mach", 8, value=0.9), row("ddg", 8, value=0.8)
    known, both = [tried("mach", "optim.lr=1")], [tried(m, "optim.lr=1") for m in ("mach", "ddg")]
    ((what, *_, met),) = goals({**mach, **tuned}, ddg, *known)
    assert f": `mach` (tuned) {best} (as in `conf/`), " in what
    assert met == "yes, rival not tuned"
    ((what, *_, met),) = goals({**mach, **tuned}, {**ddg, **tuned}, *both)
    assert f": `mach` (tuned) {best} (tuned), " in what
    assert met == "yes"
    ((what, *_, met),) = goals({**mach, **tuned}, {**ddg, **tuned}, *known)
    assert f": `mach` (tuned) {best} (values of `mach`), " in what
    assert met == "yes, rival not tuned"
    ((what, *_, met),) = goals(mach, {**ddg, **tuned}, tried("ddg", "optim.lr=1"))
    assert f": `mach` (as in `conf/`) {best} (tuned), " in what
    assert met == "yes"
    ((*_, met),) = goals({**mach, **tuned}, row("ddg", 8, value=0.95), *known)
    assert met == "**no**"
    better = row("ddg", 8, value=0.85)
    ((what, number, *_, met),) = goals({**mach, **tuned}, {**ddg, **tuned}, better, *both)
    assert f"{best} (as in `conf/`), " in what, "the better one, though it was tuned"
    assert (number, met) == ("+5.00", "yes")
    told = "Tuned on the validation split: `mach`. Not tuned, as in `conf/`: `backprop`, `ddg`."
    assert told in tables.markdown([{**mach, **tuned}, ddg, row("backprop"), *known])
    assert ". Not tuned, as in `conf/`: `mach`.\n" in tables.markdown([mach])


def test_a_choice_that_is_what_the_experiment_has_is_told_from_a_second_run_with_that():
    begin = list(tuning.first_of(tuning.GRIDS["mnist1d"]))
    first, other = row("ddg", changes=begin), row("ddg", changes=["optim.muon_lr=1", *begin[1:]])
    known = [tried("ddg", *r["changes"]) for r in (first, other)]
    assert origins.Origins([first, *known]).of(first) == "tuned", "its own choice"
    both = origins.Origins([first, other, *known])
    assert (both.of(first), both.of(other)) == ("as in `conf/`", "tuned")
    assert both.of(row("fdg", changes=other["changes"])) == "values of `ddg`"
    assert both.of({**other, "task": "gpt"}) == "values of another method"


def test_of_networks_that_are_about_of_a_size_the_nearest_is_taken():
    near, nearer = alone(0, 0.4), alone(0, 0.5)
    near["exits"][0]["params"], nearer["exits"][0]["params"] = 990, 1010
    assert kept.like([near, nearer], "params", 1005) == [nearer]
    assert kept.like([near, nearer], "params", 1200) == []


def test_runs_without_students_are_compared_with_what_is_trained_with_them():
    """Those at other delays once stood beside the chain itself."""
    students, without = row("mach", 4, value=0.9), row("mach", 8, value=0.8, trained_params=20)
    without["changes"], without["windows"] = [grid.NO_STUDENTS], []
    text = tables.markdown([students, without, alone(0, 0.85), row("backprop", value=0.7)])
    assert "| delay 4 | 40 | 90.00 | 85.00 | +5.00 [1] |" in text
    assert "| delay 8 | 40 | 80.00 | 85.00 | -5.00 [1] |" in text


def goals(*rows):
    """What is measured, the number, the aim and whether it is met, of every goal."""
    lines = tables.markdown(rows).split("\n\n")[1].splitlines()[2:]
    return [tuple(line.strip("| ").split(" | ")) for line in lines]


def test_a_choice_counts_as_soon_as_as_many_seeds_have_it_as_the_one_before():
    """An unfinished choice once became the reference, and took other delays' goals away."""
    new = {"changes": ["optim.lr=0.002"]}
    rows = [row(m, 4, s, value=0.9) for s in (0, 1) for m in ("backprop", "mach")]
    rows += [row("mach", 8, s, value=0.9) for s in (0, 1)]
    rows += [row("backprop", 4, value=0.8, **new), row("mach", 4, value=0.8, **new)]
    assert [line[1] for line in goals(*rows)] == ["+0.00", "+0.00"]
    rows += [row("mach", 4, 1, value=0.8, **new)]
    assert [line[1] for line in goals(*rows)] == ["+10.00", "+0.00"]
    rows += [row("backprop", 4, 1, value=0.8, **new)]
    assert [line[1] for line in goals(*rows)] == ["+0.00", "-10.00"]


def test_a_method_is_judged_with_what_was_chosen_last():
    chosen = {"changes": ["optim.lr=0.002"]}
    rows = [
        row("backprop", value=0.90),
        row("backprop", value=0.97, **chosen),
        row("mach", delay=4, value=0.90),
        row("mach", delay=4, value=0.97, **chosen),
    ]
    (aim,) = tables.markdown(rows).split("\n\n")[1].splitlines()[2:]
    assert aim.endswith("1 seeds | +0.00 | ≤ 0.1 | yes |")


def test_runs_with_and_without_students_are_of_one_chain():
    """With and without students the chain's numbers are the same, so that most need none."""
    without = row("mach", seed=1, value=0.92, changes=["student=none"], windows=[])
    text = tables.markdown([row("mach", value=0.9), without])
    assert "| `mach`, 4 components | 91.00 (90.00 .. 92.00) [2] |" in text
    assert "| `mach`, delay 0 | 88.00 | 89.00 | 90.00 | 91.00 | – | – | – | – | – | 50.00 |" in text
    twice = [without, row("mach", value=0.9), row("mach", seed=1, value=0.92)]
    assert tables.markdown(twice).count("91.00 (90.00 .. 92.00) [2]") == 1, "counted once"
    cells = [Cell("mnist1d", "mach", 4, 0, s, changes=("optim.lr=1",)) for s in (0, 1)]
    assert [cell.changes for cell in grid.without_students(cells)] == [
        ("optim.lr=1", "student=none")
    ] * 2


def test_a_method_that_diverges_is_told_not_left_out():
    rows = [row("backprop"), gone("ddg", delay=4)]
    assert "| `ddg`, 4 components | – | diverged [1] |" in tables.markdown(rows)
    assert "diverged" in tables.csv_of(rows)


def test_bits_per_byte_are_the_better_the_fewer():
    assert kept.lost(2.6, 2.5, "bits_per_byte") == pytest.approx(0.1)
    assert kept.lost(0.96, 0.97, "accuracy") == pytest.approx(1.0)
    curve = [[10, 3.0], [20, 2.4], [30, 2.5]]
    assert kept.reached_after(curve, 2.5, "bits_per_byte") == 20
    assert kept.reached_after(curve, 2.0, "bits_per_byte") is None


def test_exits_and_windows_are_compared_with_networks_of_their_size():
    alone = row("backprop", value=0.6, kind=grid.ALONE, components=2)
    alone["exits"] = [{"exit": 1, "value": 0.4, "params": 41, "flops": 15}]
    text = tables.markdown([row("mach", value=0.9), alone])
    assert "| delay 0: window 3..3 | 15 | 50.00 | 40.00 | +10.00 [1] |" in text
    assert "| delay 0 | 40 | 90.00 | 40.00 | +50.00 [1] |" in text
    assert "| delay 0: exit 0 | 20 | 87.00 | – | – |" in text


def alone(seed, value, *changes):
    """A row of a network that is as large as the window and as all that is trained."""
    found = row("backprop", 0, seed, kind=grid.ALONE, components=2)
    found["exits"] = [{"exit": 1, "value": value, "params": 40, "flops": 15}]
    return {**found, "changes": [*changes, "model.width=140"]}


def test_networks_trained_alone_are_compared_seed_by_seed_with_one_choice():
    """The width is a network's size and no choice: two widths may be of one size."""
    by_mach = [row("mach", 4, 0, value=0.9), row("mach", 4, 1, value=0.92)]
    known = [alone(s, v, "optim.lr=1") for s, v in enumerate((0.4, 0.42, 0.5))]
    known[1]["changes"][-1] = "model.width=141"
    other = [alone(0, 0.9), alone(1, 0.9)]
    rows = [*by_mach, *known, *other, row("mach", 4, value=0.1, changes=["optim.lr=2"])]
    text = tables.markdown(rows)
    own, same = "91.00 (90.00 .. 92.00)", "44.00 (40.00 .. 50.00)"
    assert f"| delay 4: window 3..3 | 15 | 50.00 (50.00 .. 50.00) | {same} | +9.00 [2 of 3]" in text
    assert f"| delay 4 | 40 | {own} | {same} | +50.00 [2 of 3] |" in text
    ((what, *judged),) = goals(*rows)
    assert what.endswith("window 3..3 ahead of a network of its cost alone, points, 2 of 3 seeds")
    assert judged == ["+9.00", "> 0", "yes"]


def test_a_window_of_a_chain_that_diverges_is_not_ahead():
    known = [alone(0, 0.4), alone(1, 0.4)]
    without = row("mach", 4, 2, changes=[grid.NO_STUDENTS], windows=[])
    rows = [row("mach", 4, 0), gone("mach", 4, 1), without, gone("mach", 8, 0), *known]
    assert [line[1:] for line in goals(*rows)] == [
        ("+10.00, 1 diverged", "> 0", "**no**"),
        ("1 diverged", "> 0", "**no**"),
    ]
    text = tables.markdown(rows)
    assert "| 50.00 | 40.00 (40.00 .. 40.00) | +10.00, 1 diverged [1 of 2] |" in text


def test_the_csv_has_a_line_for_every_exit_and_window():
    (head, *lines) = csv.reader(io.StringIO(tables.csv_of([row(), row(seed=1)])))
    assert len(lines) == 2 * 5
    assert {len(line) for line in lines} == {len(head)}


# --- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def numbers(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = (rng.normal(size=(3, 6))[y] + 0.3 * rng.normal(size=(300, 6))).astype("f4")
    np.savez(tmp_path / "few.npz", x_train=x[:250], y_train=y[:250], x_test=x[250:], y_test=y[250:])
    return str(tmp_path / "few.npz")


def test_a_cell_is_run_to_a_row_that_can_be_kept_and_shown(numbers, tmp_path):
    cell = Cell("mnist1d", "mach", 2, 1, 0, changes=("model.width=8", "student.width=8"))
    found = training.train(cell, numbers, str(tmp_path), steps=8)
    assert stored.cell_of(found) == cell
    assert json.loads(json.dumps(found)) == {**found, "changes": list(cell.changes)}
    assert [samples for samples, _ in found["curve"]] == [128, 256, 384, 512]
    assert found["curve"][-1][1] == found["exits"][-1]["value"]
    assert [(w["first"], w["last"]) for w in found["windows"]] == [(1, 1)]
    shown = tables.markdown([found])
    assert "2 components (model.width=8, student.width=8)" in shown
    assert found["cpu"] in shown


@pytest.fixture
def bench(numbers, tmp_path, monkeypatch):
    """The program, with options."""
    spec = importlib.util.spec_from_file_location("accuracy_main", FOLDER / "main.py")
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)

    def run(*options):
        words = ["--mnist1d", numbers, "--cache", str(tmp_path), "--steps", "2", "--untuned"]
        words += ["--out", str(tmp_path / "cells.jsonl"), "--components", "4", *options]
        monkeypatch.setattr(sys, "argv", ["main.py", *words])
        main.main()
        return stored.read(tmp_path / "cells.jsonl")

    return run


def test_an_interrupted_table_goes_on_where_it_was(bench, tmp_path, capsys):
    part = ["--methods", "backprop", "mach", "--delays", "1", "4", "--seeds", "0", "--no-students"]
    rows = bench(*part)
    assert [(row["method"], row["delay"]) for row in rows] == [
        ("backprop", 0),
        ("mach", 1),
        ("mach", 4),
    ]
    path = tmp_path / "cells.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # the last one was interrupted while it was written
    assert "3 cells, 3 of them to run" in capsys.readouterr().err
    again = bench(*part)
    assert "3 cells, 1 of them to run" in capsys.readouterr().err
    assert again[:2] == rows[:2]
    assert again[2]["exits"] == rows[2]["exits"]
    assert [rows[1]["undelayed"], rows[0]["undelayed"]] == [False, True]


def test_data_that_do_not_do_are_told_in_a_sentence(bench):
    with pytest.raises(SystemExit, match=r"^DataError: .* data\.validation=4000; got 250\."):
        bench("--tune", "--methods", "backprop")


def test_a_method_that_does_not_fit_is_told_and_ends_no_table(bench, capsys):
    rows = bench("--methods", "nonsense", "backprop", "--seeds", "0", "--delays", "0")
    assert [row["method"] for row in rows] == ["backprop"]
    assert "nonsense refused: method: expected one of" in " ".join(capsys.readouterr().err.split())


def test_every_method_of_conf_is_offered():
    methods = {path.stem for path in (conf_dir() / "method").glob("*.yaml")}
    assert set(grid.order(methods)) == methods
    assert grid.order(methods)[:3] == list(grid.LEADING)
