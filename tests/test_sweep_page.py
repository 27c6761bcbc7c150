"""What does the page of a sweep say of jobs, and which of them does it put together?"""

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mach import sweeptable
from mach.page.grid import curves, layout_of
from mach.page.sweep import page_of
from mach.records.sweep import ABSENT, Sweep, read_sweep
from mach.sweeptable import Row


def job(
    folder: Path, name: str, asked: dict[str, object], accuracy: float, **config: object
) -> None:
    """Leave what a job leaves: a config that has what was asked for, a log and a result.

    Args:
        config: what else it has, or has in place of a choice that was asked for.
    """
    run = folder / name
    run.mkdir(parents=True)
    chosen = {key.partition(".")[0] for key in config}
    had = {"components": 1, "seed": 0, **{k: v for k, v in asked.items() if k not in chosen}}
    dotted = [f"{key}={value}" for key, value in {**had, **config}.items()]
    OmegaConf.save(OmegaConf.from_dotlist(dotted), run / "config.yaml")
    log = [
        {"step": n, "samples": 64 * n, "wall_s": n / 10, "loss": 1 / n, "samples_per_s": rate}
        for n, rate in ((1, None), (2, 640.0))
    ]
    (run / "component-0.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
    result = {"chain": [{"exit": 0, "accuracy": accuracy, "loss": 1 - accuracy}], "wall_s": 0.1}
    (run / "result.json").write_text(json.dumps(result))
    sweeptable.write(folder, Row(name, {key: str(value) for key, value in asked.items()}, 0))


def summary(*folders: Path) -> str:
    return page_of(read_sweep(folders)).summary


def pictures(sweep: Sweep) -> dict[str, str]:
    """Captions, by name."""
    page = page_of(sweep)
    return {picture.name: picture.caption for picture in page.pictures}


def test_jobs_that_were_asked_for_a_choice_are_no_seeds_of_those_that_were_not(tmp_path):
    # The config of a run has no word for `student=none`, only what it stands for.
    for n, delay in enumerate((0, 1)):
        job(tmp_path, f"{n}", {"delay": delay}, 0.95 - n / 10, **{"student.enabled": True})
        asked = {"delay": delay, "student": "none"}
        job(tmp_path, f"{n + 2}", asked, 0.85 - n / 10, **{"student.enabled": False})
    sweep = read_sweep([tmp_path])
    assert sweep.varying == {"delay": [0, 1], "student": ["none", ABSENT]}
    text = page_of(sweep).summary
    assert "over delay (2 values) and student (1 value)" in text
    assert f"delay=0 student={ABSENT} is best with 95.00 %;" in text


def test_a_choice_that_was_not_asked_for_is_known_by_its_name(tmp_path):
    job(tmp_path, "0", {"delay": 0}, 0.95, **{"optim.name": "muon"})
    job(tmp_path, "1", {"delay": 0, "optim": "adamw"}, 0.85, **{"optim.name": "adamw"})
    assert read_sweep([tmp_path]).varying == {"optim": ["adamw", "muon"]}
    assert "optim=muon is best with 95.00 %;" in summary(tmp_path)


def test_jobs_of_two_sweeps_that_were_asked_for_the_same_differ_by_their_configs(tmp_path):
    for name, width, good in (("narrow", 32, 0.90), ("wide", 64, 0.95)):
        for n, delay in enumerate((0, 1)):
            job(tmp_path / name, f"{n}", {"delay": delay}, good - n / 10, **{"model.width": width})
    sweep = read_sweep([tmp_path / "narrow", tmp_path / "wide"])
    assert sweep.varying == {"delay": [0, 1], "model.width": [32, 64]}
    assert "delay=0 model.width=64 is best with 95.00 %;" in page_of(sweep).summary


def test_seeds_alone_are_told_by_their_mean(tmp_path):
    for seed, good in enumerate((0.95, 0.97, 0.99)):
        job(tmp_path, f"{seed}", {"seed": seed}, good)
    page = page_of(read_sweep([tmp_path]))
    assert (
        "They have 97.00 %, the mean of 3 seeds (± 2.00); the last job has 95.00." in page.summary
    )
    (tile,) = [tile for tile in page.tiles if tile.question == "How good"]
    assert (tile.number, tile.more) == ("97.00", "mean of 3 seeds; median of all jobs 97.00")


def test_one_key_is_drawn_with_the_spread_of_its_seeds(tmp_path):
    for n in range(6):
        job(tmp_path, f"{n}", {"delay": n % 3, "seed": n // 3}, 0.9 + n / 100)
    sweep = read_sweep([tmp_path])
    layout = layout_of(sweep)
    assert layout is not None
    assert (layout.rows, layout.columns.key, layout.averaged) == (None, "delay", ["seed"])
    drawn = pictures(sweep)
    assert sorted(drawn) == ["curves", "lines"]
    assert "least to most over seed" in drawn["lines"]


@pytest.mark.parametrize("keys", [1, 2])
def test_a_search_is_drawn_as_dots(tmp_path, keys):
    for n in range(20):
        asked = {"optim.lr": 1e-4 * 1.4**n, "optim.momentum": 0.9 + n / 1000}
        job(tmp_path, f"{n}", dict(list(asked.items())[-keys:]), 0.9 + n / 1000)
    sweep = read_sweep([tmp_path])
    drawn = pictures(sweep)
    assert sorted(drawn) == ["curves", "lines" if keys == 1 else "scatter"]
    legend = curves(sweep.jobs, "optim.momentum", sweep.varying["optim.momentum"])
    assert legend is not None
    assert re.findall(r">(0\.9\d*)<", legend.svg) == ["0.9", "0.904", "0.908", "0.912", "0.916"]


def test_a_resumed_job_has_the_time_of_all_its_lives(tmp_path):
    job(tmp_path, "0", {"seed": 0}, 0.9)
    job(tmp_path, "1", {"seed": 1}, 0.8)
    sections = page_of(read_sweep([tmp_path])).sections
    (table,) = [section.tables[0] for section in sections if section.title == "Every job"]
    column = table.columns.index("wall s")
    assert [row[column].text for row in table.rows] == ["0.2", "0.2"]
