"""Does the dashboard find what it shows, in what wandb really has of a run?"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mach.cli import answer
from mach.report import panels
from reported import environment, inspect
from runs import SMALL
from spawn import TRAIN, run

ORACLE = """
import sys
from pathlib import Path
from mach.configfile import from_mapping
from mach.data import open_dataset
from mach.report import build
from mach.trainer import Oracle
from mach.trainer.oracle import Quiet

class Hooks(Quiet):
    def __init__(self, reporter):
        self.logged = reporter.log

small = {"name": "mlp", "width": 16}
report = {"every": 2, "salience": 4}
config = from_mapping({"components": 3, "steps": 6, "model": small, "report": report})
run_dir = Path(sys.argv[1])
reporters = [build(config, run_dir, k, 0) for k in range(3)]
Oracle(config, open_dataset(config.data), [Hooks(reporter) for reporter in reporters]).run()
for reporter in reporters:
    reporter.close()
"""
"""Three components in one process, each reporting to wandb as its own process would."""


def logged(run_dir: Path) -> dict[int, set[str]]:
    """Metrics that wandb has, by component."""
    found: dict[int, set[str]] = {}
    for file in run_dir.glob("wandb/offline-run-*/*.wandb"):
        records = inspect(file)
        (config,) = [r["run"]["config"]["update"] for r in records if r["type"] == "run"]
        rows = [r["history"]["item"] for r in records if r["type"] == "history"]
        found.setdefault(config["component"], set()).update(key for row in rows for key in row)
        assert {"optimizer_step", "samples", "wall_s"} <= found[config["component"]]
        assert config["git"] is None or re.fullmatch("[0-9a-f]{40}", config["git"])
        assert config["cut"][0].startswith("0..")
        if config["component"] == 0:
            assert_summaries(records)
    return found


def assert_summaries(records: list[dict[str, Any]]) -> None:
    """The best of a metric is kept beside the last, over our own step."""
    defined = {r["metric"]["name"]: r["metric"] for r in records if "name" in r.get("metric", {})}
    for metric in panels.metrics():
        if metric.summary:
            mine = defined[metric.key]
            assert mine["step_metric"] == "optimizer_step"
            assert mine["summary"].keys() == {metric.summary, "last"}, mine


def test_every_panel_finds_its_metrics_for_every_component(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORACLE, str(tmp_path)]
    environ = environment(tmp_path, WANDB_MODE="offline")
    subprocess.run(command, env=environ, check=True, timeout=100)
    found = logged(tmp_path)
    assert found.keys() == {0, 1, 2}
    for k, keys in found.items():
        assert panels.expected(k, free=False, students=True, unit="accuracy") <= keys, k
    for keys in found.values():
        assert any(key.startswith("salience/") for key in keys), keys
    wide = re.compile(r"eval_window_\d+_.*")  # of the panel of windows of several components
    assert {k: any(map(wide.fullmatch, keys)) for k, keys in found.items()} == {
        0: False,
        1: False,
        2: True,
    }


def test_every_panel_of_a_free_run_finds_its_metrics_too(tmp_path: Path) -> None:
    free = ["schedule=free", "delay=4", "eval.every=10", "report.every=5", "report.wandb=offline"]
    done = run([*TRAIN, *SMALL, *free, f"out={tmp_path / 'run'}"], tmp_path)
    assert done.code == 0, done
    found = logged(tmp_path / "run")
    assert found.keys() == {0, 1}
    for k, keys in found.items():
        assert panels.expected(k, free=True, students=True, unit="accuracy") <= keys, k
    exits = {f"eval_exit_{k}_{kind}" for k in (0, 1) for kind in ("accuracy", "loss")}
    assert {k: exits & keys for k, keys in found.items()} == {0: exits, 1: set()}


def panels_of(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {s["name"]: [panel["config"] for panel in s["panels"]] for s in sections}


def test_the_file_has_every_section_and_metric(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "spec.json"
    assert answer("dashboard", ["--project", "mine", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"Dashboard: {out}\n"
    spec = json.loads(out.read_text())
    assert spec["project"] == "mine"
    found = panels_of(spec)
    assert list(found) == [section.title for section in panels.SECTIONS]
    shown = {key for configs in found.values() for c in configs for key in c["metrics"]}
    assert shown == {metric.key for metric in panels.metrics()}


def test_a_runs_dashboard_shows_its_group_alone(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.yaml").write_text("components: 2\nreport: {project: p, group: g}\n")
    assert answer("dashboard", [str(tmp_path), "--offline"]) == 0
    spec = json.loads((tmp_path / "dashboard.json").read_text())
    (runs,) = spec["spec"]["section"]["runSets"]
    assert [(f["key"]["name"], f["value"]) for f in runs["filters"]["filters"]] == [("group", "g")]
    assert spec["project"] == "p"


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path: Path, capsys: Any) -> None:
    assert answer("dashboard", [str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mach: {tmp_path}: expected a run folder")
    assert said.count("\n") == 1
