"""wandb online: its real client, the real commands, and a server of our own on loopback."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kept import keep, of_images
from mach.report import panels
from mach.report.names import run_id
from reported import environment
from runs import SMALL
from spawn import MACH, TRAIN, run
from wandbserver import KEY, USED, Kept, serving

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def server() -> Iterator[Kept]:
    with serving() as kept:
        yield kept


def logged_in(server: Kept, folder: Path) -> dict[str, str]:
    """The environment of somebody who is."""
    return environment(folder, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)


def test_a_run_and_its_checkpoints_reach_the_server_and_a_second_run_says_what_it_began_from(
    server, tmp_path
):
    environ = logged_in(server, tmp_path)
    small = [word for word in SMALL if not word.startswith("report.wandb")]
    first = run([*TRAIN, *small, "report.every=5", "out=first"], tmp_path, **environ)
    assert first.code == 0, first
    assert first.stderr == "", first
    ids = [run_id("first", k, tmp_path / "first") for k in (0, 1)]
    assert [server.runs[name]["groupName"] for name in ids] == ["first"] * 2
    assert [server.runs[name]["jobType"] for name in ids] == ["component"] * 2
    for k, name in enumerate(ids):
        rows = server.history[name]
        keys = {key for row in rows for key in row}
        assert panels.expected(k, free=False, students=True, unit="accuracy") <= keys, k
        losses = [row["loss"] for row in rows if "loss" in row]
        summary = json.loads(server.files[f"{name}/wandb-summary.json"])
        assert summary["loss"]["min"] == min(losses)
    made = {kept["artifactCollectionName"]: kept for kept in server.artifacts}
    assert sorted(made) == sorted(f"{name}-checkpoint" for name in ids)
    for kept in made.values():
        assert {alias["alias"] for alias in kept["aliases"]} == {"latest", "step-20"}
    assert not server.used

    begin = [*small, "out=second", "resume=first/checkpoints/step-20", "steps=30"]
    second = run([*TRAIN, *begin], tmp_path, **environ)
    assert second.code == 0, second
    assert second.stderr == "", second
    again = [run_id("second", k, tmp_path / "second") for k in (0, 1)]
    assert sorted(server.used) == sorted((name, USED) for name in again)
    assert sorted(server.asked_for) == sorted(f"{name}-checkpoint:step-20" for name in ids)
    assert KEY not in "".join(p.read_text() for p in tmp_path.rglob("*.json*") if p.is_file())


def test_an_exported_model_says_which_checkpoints_it_was_made_of(server, tmp_path):
    run_dir = keep(of_images(tmp_path, 6, 5), tmp_path / "run")
    environ = logged_in(server, tmp_path)
    done = run([*MACH, "export", str(run_dir), "window=1..2"], tmp_path, deadline_s=90, **environ)
    assert done.code == 0, done
    assert done.stderr == "", done
    (kept,) = server.artifacts
    assert kept["artifactTypeName"] == "model"
    names = {"model.safetensors", "model.py", "model.json", "README.md"}
    assert names <= set(kept["files"])
    assert any(path.endswith("/model.safetensors") for path in server.files)
    parts = [f"{run_id('run', k, run_dir)}-checkpoint:step-4" for k in (1, 2)]
    assert sorted(server.asked_for) == sorted(parts)
    assert [artifact for _, artifact in server.used] == [USED] * 2


def test_an_offline_run_is_synced_by_the_command_of_the_readme(server, tmp_path):
    offline = [word for word in SMALL if not word.startswith("report.wandb")]
    done = run([*TRAIN, *offline, "report.wandb=offline", "out=run"], tmp_path)
    assert done.code == 0, done
    assert not server.runs
    files = sorted(map(str, (tmp_path / "run" / "wandb").glob("offline-run-*")))
    command = [sys.executable, "-m", "wandb", "sync", *files]
    synced = run(command, tmp_path, deadline_s=90, **logged_in(server, tmp_path))
    assert synced.code == 0, synced
    ids = [run_id("run", k, tmp_path / "run") for k in (0, 1)]
    assert sorted(server.runs) == sorted(ids)
    assert all(any("loss" in row for row in server.history[name]) for name in ids)


def test_the_dashboard_is_uploaded_where_somebody_is_logged_in(server, tmp_path):
    environ = logged_in(server, tmp_path)
    done = run([*MACH, "dashboard", "--project", "mine"], tmp_path, deadline_s=90, **environ)
    assert done.code == 0, done
    (view,) = server.views
    assert (view["projectName"], view["entityName"]) == ("mine", "me")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    titles = [section["name"] for section in sections]
    assert [section.title for section in panels.SECTIONS] == titles[: len(panels.SECTIONS)]
