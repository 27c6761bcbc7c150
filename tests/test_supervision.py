"""What the supervisor concludes from what it sees: no process, no store, and a clock of our own."""

from __future__ import annotations

import os
import pty
import select
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from clouds import make
from mach.configfile import from_mapping
from mach.launcher.failure import Fall, run_failed
from mach.launcher.reports import Died, Ended, Event, GiveUp, Kill, Started, Stop
from mach.launcher.supervised import _rules
from mach.launcher.supervision import Rules, Supervision
from mach.report.console import Progress
from mach.roster import Beat

RULES = Rules(
    components=3, max_restarts=2, hang_s=5, start_s=20, on_exhausted="stop", students=True
)
KILLED = Fall(-9)
ALL = range(3)
LOOK_S = 0.2


class Run:
    """Three components that do what the test says, seen every 0.2 seconds."""

    def __init__(self, rules: Rules = RULES) -> None:
        self.supervision = Supervision(rules)
        self.now_s = 100.0
        self.beats: list[Beat | None] = [None] * rules.components
        self.rates = [1.0] * rules.components  # steps per look; 0 stands still
        self._steps = [0.0] * rules.components

    def look(self, *reports):
        self.now_s += LOOK_S
        return self.supervision.look(self.now_s, reports, self.beats)

    def begin(self, k, life=0, step=0, state="training"):
        """Component k lives; its pid is 1000 k + life."""
        self.beats[k] = Beat(life, 1000 * k + life, progress=1, step=step, state=state)
        self._steps[k] = step

    def all_begin(self):
        answers = self.look(*(Started(k, 1000 * k, 0) for k in range(3)))
        for k in range(3):
            self.begin(k)
        return answers + self.look()

    def train(self, seconds):
        """Let all that live go on; returns what came of it, with the time from the beginning."""
        began_s, seen = self.now_s, []
        while self.now_s < began_s + seconds - 1e-6:
            for k, beat in enumerate(self.beats):
                if beat is not None and self.rates[k]:
                    self._steps[k] += self.rates[k]
                    self.beats[k] = replace(
                        beat, progress=beat.progress + 1, step=int(self._steps[k])
                    )
            seen += [(round(self.now_s + LOOK_S - began_s, 1), a) for a in self.look()]
        return seen

    def states(self):
        return [one.state for one in self.supervision.components]


# --- coming, dying and coming back -----------------------------------------------------------


def test_components_that_start_and_train_are_nothing_to_tell():
    run = Run()
    assert run.states() == ["starting"] * 3
    assert run.all_begin() == []
    assert run.states() == ["up"] * 3
    assert run.train(60) == []


def test_one_that_dies_is_down_then_restarting_then_up_while_the_others_stay_up():
    run = Run()
    run.all_begin()
    died = "component 1 died (SIGKILL); restart 1 of 2"
    assert run.look(Died(1, KILLED, 1)) == [Event(1, "died", died)]
    assert run.states() == ["up", "down", "up"]
    assert run.look(Started(1, 1001, 1)) == []
    assert run.states() == ["up", "restarting", "up"]
    run.begin(1, life=1, step=140, state="starting")
    assert run.train(2) == []
    assert run.states() == ["up", "restarting", "up"]
    run.begin(1, life=1, step=140)
    back = "component 1 is back in life 1 after 2.4 s at step 140"
    assert run.look() == [Event(1, "back", back)]
    assert run.states() == ["up", "up", "up"]


def test_the_last_words_of_a_process_that_died_are_not_taken_for_a_new_life():
    run = Run()
    run.look(*(Started(k, 1000 * k, 0) for k in range(3)))
    run.look(Died(1, KILLED, 1))
    run.begin(1, life=0)  # what it said just before, read too late
    assert run.look(Started(1, 1001, 1)) == []
    assert run.states()[1] == "restarting"


def test_time_away_is_counted_from_the_first_death_of_several():
    run = Run()
    run.all_begin()
    run.look(Died(1, KILLED, 1), Started(1, 1001, 1))
    run.look(Died(1, KILLED, 2), Started(1, 1002, 2))
    run.begin(1, life=2)
    (event,) = run.look()
    assert "in life 2 after 0.4 s" in event.text


def test_two_neighbours_that_die_together_are_told_apart():
    run = Run()
    run.all_begin()
    events = run.look(Died(1, KILLED, 1), Died(2, Fall(1, "disk full"), 1))
    assert [(e.component, e.kind) for e in events] == [(1, "died"), (2, "died")]
    assert events[1].text == "component 2 died (disk full); restart 1 of 2"


# --- hung, not dead --------------------------------------------------------------------------


def test_one_that_stands_still_is_found_within_hang_s_and_ended_once():
    run = Run()
    run.all_begin()
    run.train(10)
    run.rates[2] = 0.0
    assert run.train(20) == [
        (5.2, Event(2, "hung", "component 2 did nothing for 5 s at step 50 and is ended")),
        (5.2, Kill(2)),
    ]
    assert run.states()[2] == "down"


def test_one_that_stands_still_after_its_last_step_is_found_too():
    run = Run()
    run.all_begin()
    run.begin(0, state="done", step=50)
    run.rates[0] = 0.0
    assert [a for _, a in run.train(6)][-1] == Kill(0)


def test_one_that_never_begins_is_ended_after_the_longer_deadline():
    run = Run()
    run.look(*(Started(k, 1000 * k, 0) for k in range(3)))
    for k in (0, 1):
        run.begin(k)
    text = "component 2 did nothing for 20 s while it started and is ended"
    assert run.train(30) == [(20.2, Event(2, "hung", text)), (20.2, Kill(2))]


def test_one_that_writes_the_result_has_the_longer_deadline():
    run = Run()
    run.all_begin()
    run.begin(0, state="publishing", step=50)
    run.rates[0] = 0.0
    assert run.train(20) == []
    assert run.train(1)[-1][1] == Kill(0)


def test_a_supervisor_that_slept_itself_blames_nobody():
    run = Run()
    run.all_begin()
    run.train(1)
    run.now_s += 3600
    assert run.look() == []
    assert run.train(10) == []


# --- slow ------------------------------------------------------------------------------------


def test_slow_is_less_than_half_the_median_and_can_end():
    run = Run()
    run.all_begin()
    run.rates = [1.0, 0.45, 1.0]
    assert run.train(2) == []
    assert run.states() == ["up", "up", "up"]  # not known yet
    run.train(2)
    assert run.states() == ["up", "slow", "up"]
    run.rates[1] = 0.9
    run.train(12)
    assert run.states() == ["up", "up", "up"]


def test_one_that_is_done_is_not_called_slow_and_slows_nobody():
    run = Run()
    run.all_begin()
    run.train(10)
    run.begin(0, state="done", step=50)
    run.rates = [0.5, 0.3, 0.3]
    run.train(20)
    assert run.states() == ["done", "up", "up"]


# --- the end ---------------------------------------------------------------------------------


def test_finished_is_told_once():
    run = Run()
    run.all_begin()
    run.begin(0, state="done")
    finished = Event(0, "finished", "component 0 has taken its last step")
    assert run.look() == [finished]
    assert run.look(Ended(0, None)) == []
    assert run.look(Ended(1, None)) == [Event(1, "finished", "component 1 has taken its last step")]
    assert run.states() == ["done", "done", "up"]


def test_without_a_restart_left_the_run_stops():
    run = Run()
    run.all_begin()
    text = "component 1 died (SIGKILL) and has no restart left; the run stops"
    assert run.look(Ended(1, KILLED)) == [Event(1, "exhausted", text), Stop(1, KILLED)]
    assert run.states() == ["up", "gone", "up"]


def test_without_a_restart_left_the_run_can_go_on_until_nobody_is_left():
    run = Run(replace(RULES, on_exhausted="continue"))
    run.all_begin()
    text = "component {} died (SIGKILL) and has no restart left; the run goes on without it"
    for k in (1, 0):
        assert run.look(Ended(k, KILLED)) == [Event(k, "exhausted", text.format(k)), GiveUp(k)]
    assert run.look(Ended(2, KILLED))[1:] == [GiveUp(2), Stop(2, KILLED)]


@pytest.mark.parametrize(
    ("schedule", "how"),
    [("delayed", "resume=run/checkpoints/step-.."), ("free", "resume=run out=")],
)
def test_a_run_that_diverged_is_told_how_it_may_go_on(tmp_path, monkeypatch, schedule, how):
    """Under free no step before the last is a checkpoint of all components."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints" / "step-5").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-5" / "component-0.json").touch()
    config = from_mapping({"components": 2, "schedule": schedule})
    said = str(run_failed(1, Fall(1, "nan", diverged=True), Path("run"), config))
    assert f"Go on from {'a' if schedule == 'delayed' else 'the last'} checkpoint" in said
    assert how in said


@pytest.mark.parametrize("on_exhausted", ["stop", "continue"])
def test_a_refusal_stops_the_run_whatever_the_rule(on_exhausted):
    run = Run(replace(RULES, on_exhausted=on_exhausted))
    refusal = Fall(2, "the checkpoint is damaged")
    assert run.look(Started(0, 0, 0), Ended(0, refusal)) == [
        Event(0, "refused", "component 0 refused: the checkpoint is damaged"),
        Stop(0, refusal),
    ]


def test_one_that_falls_for_good_after_its_last_step_stops_nobody():
    run = Run()
    run.all_begin()
    run.begin(1, state="done")
    run.look()
    text = "component 1 ended after its last step (SIGKILL)"
    gone = [Event(1, "exhausted", text), GiveUp(1)]  # the result may be another's to write now
    assert run.look(Ended(1, KILLED)) == gone
    assert run.states() == ["up", "gone", "up"]


def test_without_students_who_falls_for_good_after_its_last_step_stops_those_that_still_need_it():
    """Its parent went on waiting for it, which counts as progress, so that the run never ended."""
    run = Run(replace(RULES, students=False))
    run.all_begin()
    for k in (0, 2):
        run.begin(k, state="done")
    run.look()
    assert run.look(Ended(2, KILLED))[1:] == [GiveUp(2)]  # nobody is above
    text = "component 0 died (SIGKILL) and has no restart left; the run stops"
    assert run.look(Ended(0, KILLED)) == [Event(0, "exhausted", text), Stop(0, KILLED)]


def test_without_students_nobody_is_stopped_for_those_that_are_done_or_gone():
    run = Run(replace(RULES, students=False))
    run.all_begin()
    for k in ALL:
        run.begin(k, state="done")
    run.look()
    for k in (0, 2):
        assert run.look(Ended(k, KILLED))[1:] == [GiveUp(k)]


def test_the_supervisor_knows_whether_there_are_students():
    for enabled in (True, False):
        config = make(3, schedule="free", student={"enabled": enabled})
        assert _rules(config).students == enabled


# --- what a person sees of it ----------------------------------------------------------------


def test_the_screen_shows_the_state_and_the_step_of_each_component(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    run = Run()
    run.all_begin()
    run.train(1)
    run.look(Died(1, KILLED, 1), Started(1, 1001, 1))
    run.look(Died(2, KILLED, 1))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    wanted = [
        ("component 0 up ", " 5/40"),
        ("component 1 restarting ", ""),
        ("component 2 down ", ""),
    ]
    with os.fdopen(theirs, "w") as terminal:
        components = run.supervision.components
        screen = Progress(tmp_path, 3, 40, console=Console(file=terminal), watch=lambda: components)
        seen, deadline_s = "", time.monotonic() + 10
        with screen:
            while not all(word in seen for line in wanted for word in line):
                left_s = max(0.0, deadline_s - time.monotonic())
                assert select.select([ours], [], [], left_s)[0], repr(seen)
                seen += os.read(ours, 65536).decode()
    os.close(ours)
