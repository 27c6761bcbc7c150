"""What benchmarks/faults/ concludes from logs, on logs that were made up."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mach.launcher.compose import compose

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "faults"))
disturbed = importlib.import_module("disturbed")
growth = importlib.import_module("growth")
settings = importlib.import_module("settings")
aims = importlib.import_module("aims")
ratios = importlib.import_module("ratios")
summary = importlib.import_module("summary")
timeline = importlib.import_module("timeline")
Line, Window, Sample = timeline.Line, timeline.Window, growth.Sample

SETTINGS = settings.Settings(victims=(1,), pace_ms=20.0)
DUE = SETTINGS.fault_step


def steady(begin_s, end_s, every_s=0.02, first=1, life=0, links=2):
    """A component that takes a step every `every_s`."""
    count = round((end_s - begin_s) / every_s)
    return [
        Line(begin_s + every_s * n, first + n, life, links, age_s=every_s * n) for n in range(count)
    ]


def killed_run(pause_s=0.0):
    """Component 1 dies at step DUE, is back after 3 s and connected after 3.1, at step DUE - 20.

    Args:
        pause_s: of component 2, a second after the death.
    """
    logs = [steady(100.0, 120.0, links=links) for links in settings.LINKS]
    died_s = logs[1][DUE - 1].time_s
    life = steady(died_s + 3.0, 120.0, first=DUE - 19, life=1)
    connecting = [replace(line, links_up=1) for line in life[:5]]
    logs[1] = [*logs[1][:DUE], *connecting, *life[5:]]
    silent = Window(died_s + 1.0, died_s + 1.0 + pause_s)
    logs[2] = [line for line in logs[2] if not silent.begin_s < line.time_s < silent.end_s]
    return logs


def a_round(kind="kill", **changes):
    calm = [steady(50.0, 70.0, links=links) for links in settings.LINKS]
    judged = disturbed.judge_round({None: calm, 1: killed_run(**changes)}, kind, SETTINGS)
    return {"cores_busy": 0.5, **judged}


def section(*rounds, **more):
    about = {"cpu": "a CPU", "cores": 2, "load": 0.1}
    versions = {"system": "Linux", "python": "3", "torch": "2"}
    commit = {"commit": "0" * 40, "changed": False, "date": "today", "command": "main.py"}
    return {
        "environment": {**about, **versions, **commit},
        "settings": vars(SETTINGS),
        "seconds": 1,
        "rounds": list(rounds),
        **more,
    }


# --- time ----------------------------------------------------------------------------------------


def test_a_rate_need_not_begin_and_end_with_a_step():
    lines = steady(0.0, 10.0, every_s=0.5)
    assert timeline.rate(lines, Window(1.1, 4.3)) == pytest.approx(2.0)


def test_a_component_that_stands_still_to_the_end_of_a_window_is_slower():
    lines = steady(0.0, 5.02)
    assert timeline.rate(lines, Window(0.0, 10.0)) == pytest.approx(25.0)


def test_too_short_a_window_has_no_rate():
    assert timeline.rate(steady(0.0, 5.0), Window(1.0, 1.2)) is None
    assert timeline.rate([], Window(1.0, 3.0)) is None


def test_a_pause_counts_that_only_begins_or_ends_in_the_window():
    lines = [*steady(0.0, 2.0), *steady(3.0, 5.0)]
    for window in (Window(1.0, 2.5), Window(2.4, 2.6), Window(2.5, 4.0)):
        assert timeline.longest_pause_ms(lines, window) == pytest.approx(1020.0)
    assert timeline.longest_pause_ms(lines, Window(3.5, 4.0)) == pytest.approx(20.0)


def test_who_is_alive_but_not_yet_connected_is_not_back():
    lines = killed_run()[1]
    died, back = timeline.death(lines), timeline.back(lines, links=2)
    assert died.step == DUE
    assert back.time_s - died.time_s == pytest.approx(3.1)
    assert back.age_s == pytest.approx(0.1)
    assert timeline.back(lines[: DUE + 3], links=2) is None


def test_the_part_that_was_imagined_counts_microbatches():
    lines = [Line(float(n), n, imagined=3 * n) for n in range(11)]
    assert timeline.share(lines, Window(2.0, 8.0), "imagined", accumulate=4) == pytest.approx(0.75)


def test_a_log_line_is_read_whatever_the_schedule():
    assert Line.of({"time": 1.5, "step": 3, "loss": 0.2, "lr": 1.0}) == Line(1.5, 3, loss=0.2)
    assert Line.of({"time": 1.5, "step": 3, "life": 2, "links_up": 1, "alone": 7}).life == 2


# --- deaths --------------------------------------------------------------------------------------


def test_survivors_that_notice_nothing_keep_all_of_their_steps():
    found = section(a_round())
    for of in ("before", "undisturbed"):
        kept = ratios.kept(found, of)
        assert set(kept) == {(1, 0), (1, 2), (1, 3)}
        assert all(ratio == pytest.approx(1.0, abs=0.01) for (ratio,) in kept.values())
    assert found["rounds"][0]["victims"][0]["return"] == {
        "age_s": pytest.approx(0.1),
        "away_s": pytest.approx(3.0),
        "connected_s": pytest.approx(3.1),
        "steps_lost": 20,
    }


def test_a_survivor_that_pauses_is_found_out():
    found = section(a_round(pause_s=1.0))
    assert ratios.kept(found, "before")[1, 2] == [pytest.approx(2.1 / 3.1, abs=0.02)]
    rows = {row[0]: row[3] for row in aims.aims("deaths", found)}
    pause, age = (next(v for k, v in rows.items() if w in k) for w in ("pause", "process"))
    assert (pause, age) == ("**no**", "yes")


def test_a_machine_that_was_not_quiet_proves_nothing():
    one, other = a_round(), a_round()
    for component in other["undisturbed"]:
        component["rate"] *= 1.2
    assert ratios.is_quiet(section(one, one))
    assert not ratios.is_quiet(section(one, other))
    assert "machine not quiet" in summary.markdown({"deaths": section(one, other)})


def test_a_survivor_is_compared_with_all_of_its_undisturbed_run_of_the_same_round():
    one, other = a_round(), a_round()
    for component in other["undisturbed"]:
        component["rate"] *= 1.05
    kept = ratios.kept(section(one, other), "undisturbed")
    assert kept[1, 0] == [pytest.approx(share, abs=0.01) for share in (1.0, 1 / 1.05)]


def test_the_victim_falls_where_it_would_have_saved():
    for pace_ms in (20.0, 60.0):
        due = replace(SETTINGS, pace_ms=pace_ms).fault_step
        assert due % settings.SAVE_EVERY == 0
        assert due * pace_ms / 1e3 >= SETTINGS.settle_s + SETTINGS.before_s


def test_every_variant_leads_a_round_in_turn():
    orders = [settings.turns(5, turn) for turn in range(5)]
    assert sorted(order[0] for order in orders) == [0, 1, 2, 3, 4]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)


# --- latency -------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency_ms", [0.0, 5.0, 19.0, 20.0, 25.0, 100.0])
def test_with_enough_delay_a_gradient_is_there_when_it_is_due(latency_ms):
    pace_ms = 20.0
    delay = settings.enough_delay(latency_ms, pace_ms)
    # A parent that runs as late as its activations let it: forward, travel, backward, travel.
    assert 2 * latency_ms + pace_ms <= 2 * delay * pace_ms
    assert settings.enough_credits(latency_ms, pace_ms) > 2 * delay


def test_latency_is_judged_by_the_slowest_component_of_each_round():
    def at(*speeds):
        components = [
            {"microbatches_per_s": speed, "imagined": 0.5, "alone": 0.25} for speed in speeds
        ]
        return {"delay": 2, "credits": 5, "components": components}

    fast, slow = {"0": at(40, 50), "25": at(38, 50)}, {"0": at(20, 25), "25": at(10, 25)}
    found = section({"free": fast, "delayed": fast, "sync": slow, "1F1B": slow})
    assert ratios.of_no_latency(found, "free") == {"25": [0.95]}
    text = summary.markdown({"latency": found})
    assert "| sync | 1 | 0.500 |" in text
    assert "**no**" not in text


# --- accuracy and soak ---------------------------------------------------------------------------


def test_the_seed_that_loses_most_decides():
    def pair(calm, killed):
        about = {"wall_s": 10.0, "victim": 1}
        return {
            "undisturbed": {**about, "accuracy": calm},
            "killed": {**about, "accuracy": killed},
        }

    found = section(steps=3000, seeds=[pair(0.97, 0.972), pair(0.97, 0.961)])
    worst, mean = aims.aims("accuracy", found)
    assert (worst[1], worst[3]) == ("0.90", "**no**")
    assert (mean[1], mean[3]) == ("0.35", "yes")


def test_a_supervised_start_is_compared_within_its_pair():
    def pair(gang_s, supervised_s):
        return {"gang": {"start_s": gang_s}, "supervised": {"start_s": supervised_s}}

    # The machine was slow in the third pair: that says nothing of either.
    found = section(pair(5.0, 5.5), pair(5.2, 6.0), pair(9.0, 11.5))
    (later,) = aims.aims("start", found)
    assert (later[1], later[3]) == ("0.8", "yes")
    (late,) = aims.aims("start", section(pair(5.0, 7.1)))
    assert late[3] == "**no**"


def life(pid, begun_s, seconds, private_mib, grows_mib=0.0, role="component 0"):
    """Samples of a process, one a second."""
    return [
        Sample(begun_s + t, role, pid, float(t), private_mib + grows_mib * t / seconds, 20, 9)
        for t in range(seconds)
    ]


def test_lives_are_compared_at_the_same_age():
    lives = [life(n, 100.0 * n, 90, private_mib=300 + 5 * n) for n in range(4)]
    samples = [sample for one in lives for sample in one]
    change = growth.of_lives(samples, "component 0", "private_mib")
    assert change.growth == pytest.approx(10.0)
    assert growth.of_lives(samples, "component 0", "fds").growth == 0
    assert growth.within_lives(samples, "component 0", "private_mib") == [0, 0, 0, 0]


def test_growth_within_a_life_counts_from_when_it_has_come_up():
    samples = life(7, 0.0, 101, private_mib=300, grows_mib=50)
    (grown,) = growth.within_lives(samples, "component 0", "private_mib")
    assert grown == pytest.approx(40.0, abs=1)
    assert growth.within_lives(life(7, 0.0, 30, 300), "component 0", "private_mib") == []


def test_the_launcher_is_compared_with_itself():
    samples = life(1, 0.0, 900, private_mib=200, grows_mib=90, role="launcher")
    change = growth.of_the_lasting(samples, "launcher", "private_mib")
    assert change.growth == pytest.approx(54.0, abs=0.5)
    assert growth.of_the_lasting(samples[:3], "launcher", "private_mib") is None


def test_thinning_keeps_the_most_that_was_seen():
    samples = life(1, 0.0, 20, private_mib=200)
    samples[7] = replace(samples[7], fds=99)
    thin = growth.thinned(samples)
    assert [sample.t_s for sample in thin] == [4, 9, 14, 19]
    assert [sample.fds for sample in thin] == [20, 99, 20, 20]


def test_a_loss_falls_only_if_each_third_is_lower():
    falling = [(float(t), 1 / (1 + t)) for t in range(300)]
    assert growth.is_falling(growth.thirds(falling))
    rising = [*falling[:200], *((float(t), 1.0) for t in range(200, 300))]
    assert not growth.is_falling(growth.thirds(rising))
    assert not growth.is_falling(growth.thirds([]))


def test_a_lost_component_or_one_that_never_came_back_fails_the_soak():
    kinds = {"lasting": {}, "lives": {}, "within": {}, "losses": [[3.0, 2.0, 1.0]], "steps": [9]}
    found = section(
        kills=3, deaths=3, returns=3, lost=[], left_behind=0, seconds_seen=60.0, **kinds
    )
    assert "**no**" not in summary.markdown({"soak": found})
    for worse in ({"lost": [2]}, {"returns": 2}, {"left_behind": 1}, {"deaths": 4}):
        assert "**no**" in summary.markdown({"soak": {**found, **worse}}), worse


# --- what is run ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        settings.paced(SETTINGS) | settings.fault(SETTINGS, "kill", 3),
        settings.paced(SETTINGS) | settings.fault(SETTINGS, "slow", 0),
        *(settings.at_latency(SETTINGS, name, 100.0) for name in ("free", "delayed", "sync")),
        settings.mnist("mnist.npz", steps=3000, seed=2),
        settings.soaked(SETTINGS, minutes=15, mnist=None),
    ],
    ids=["kill", "slow", "free", "delayed", "sync", "accuracy", "soak"],
)
def test_everything_that_is_run_is_a_config_of_mach(values):
    config = compose(settings.overrides(values))
    assert config.components == settings.COMPONENTS
    assert len(settings.LINKS) == config.components
