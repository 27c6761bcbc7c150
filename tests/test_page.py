"""What a person sees of a run or a sweep: in a real browser, from real runs, damaged ones too."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from browser import opened
from mach import sweeptable
from mach.cli import answer
from mach.errors import RunFolderError
from mach.page.grid import layout_of
from mach.page.learning import frontier
from mach.page.main import report
from mach.page.picture import draw
from mach.page.time import _waits, _window
from mach.records import Notes, Slices, read_log
from mach.records.sweep import read_sweep
from mach.report.trace import Trace
from mach.secrets import HIDDEN, secrets_of, value_of, without
from mach.sweeptable import Row
from runs import SMALL
from spawn import MACH, TRAIN, run

pytestmark = pytest.mark.timeout(600)  # the first test waits for a sweep of 18 jobs

WIDTHS = {"phone": 390, "desk": 1200}
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A run to be damaged."""
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """3 x 3 x 2 jobs on digits; and a job that was refused, as the table tells of one."""
    folder = tmp_path_factory.mktemp("sweep")
    small = [word for word in SMALL if not word.startswith("components=")]
    small += ["launch=inprocess", "model.depth=4", "student=none", "accumulate=2", "steps=20"]
    grid = ["components=1,2,4", "delay=0,1,4", "seed=0,1"]
    done = run([*TRAIN, "-m", *grid, *small, "report.every=5", "out=s"], folder, deadline_s=500)
    assert done.code == 0, done
    asked = {"components": "9", "delay": "0", "seed": "0"}
    sweeptable.write(folder / "s", Row("18", asked, 2, "expected at most model.depth=4"))
    return folder / "s"


def problems(file: Path) -> str:
    """What the page says could not be read."""
    return file.read_text().partition('id="problems"')[2].partition("</section>")[0]


# --- in the browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory) -> Path:
    """The page of a finished run."""
    return report([finished[0]], tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
def test_a_run_is_shown_by_a_browser_without_complaint(page, chromium, width, scheme):
    with opened(chromium, page, width, scheme) as look:
        assert not look.said
        assert not look.fetched
        assert look.overflow_px <= 0
        for text in ("How good", "samples/s", "chain 0..1", "window 1..1", "component 1", "steps"):
            assert text in look.text
        drawn = look.page.eval_on_selector_all("figure", "all => all.map(one => one.id)")
        assert drawn == ["models", "loss", "student-loss", "time", "staleness"]
        colour = look.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (colour == "rgb(20, 24, 29)") == (scheme == "dark")
        # Every drawn letter can be read: high enough, and not of the colour of the paper.
        sizes = look.evaluate(
            "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
        )
        assert len(sizes) > 40
        assert min(sizes) >= 8
        colours = look.evaluate(
            "[...document.querySelectorAll('svg text')].map(t => getComputedStyle(t).fill)"
        )
        assert colour not in colours


def test_a_page_is_printed_on_paper_whatever_the_screen(page, chromium):
    with opened(chromium, page, scheme="dark") as look:
        look.page.emulate_media(media="print", color_scheme="dark")
        assert look.evaluate("getComputedStyle(document.body).color") == "rgb(28, 33, 39)"
        assert look.page.pdf(format="A4").startswith(b"%PDF")


def test_a_sweep_is_shown_and_sorted_by_a_browser(sweep, tmp_path, chromium):
    file = report([sweep], tmp_path)
    for width in WIDTHS.values():
        with opened(chromium, file, width) as look:
            assert not look.said
            assert not look.fetched
            assert look.overflow_px <= 0
            assert look.page.locator("figure svg").count() == 3
            rows = look.page.locator("table.sortable tbody tr")
            assert rows.count() == 18
            column = look.page.locator("table.sortable th").all_inner_texts().index("accuracy, %")
            scores = f"table.sortable tbody td:nth-child({column + 1})"
            best = [float(text) for text in look.page.locator(scores).all_inner_texts()]
            assert best == sorted(best, reverse=True)
            look.page.locator("table.sortable th button").nth(column).click()
            now = [float(text) for text in look.page.locator(scores).all_inner_texts()]
            assert now == sorted(best)
            for text in ("18 of 19 jobs", "model.depth=4", "components=9 delay=0 seed=0", "n=2"):
                assert text in " ".join(look.text.split()), text
    assert {"heat-map.png", "lines.png", "curves.png"} <= {p.name for p in tmp_path.iterdir()}


def test_names_and_values_are_escaped(copy, tmp_path, chromium):
    folder = copy.rename(tmp_path / SCRIPT.replace("/", "\N{FULLWIDTH SOLIDUS}"))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("name: mlp", f'name: "{SCRIPT}"'))
    (folder / "events.jsonl").write_text(
        json.dumps({"time": 1.0, "component": 0, "event": SCRIPT, "text": f'"{SCRIPT}'}) + "\n"
    )
    file = report([folder], tmp_path / "page")
    assert SCRIPT not in file.read_text()
    with opened(chromium, file) as look:
        assert not look.said
        assert SCRIPT in look.text


def test_the_title_of_a_picture_cannot_end_its_attribute():
    # Names of keys are in titles, and the keys of a config may hold anything.
    picture = draw("name", f'">{SCRIPT}', "", lambda figure: None)
    assert SCRIPT not in picture.svg
    assert 'aria-label="&quot;&gt;&lt;script&gt;' in picture.svg


def test_a_sweep_over_odd_values_is_escaped(sweep, tmp_path, chromium):
    rows = ["job,<b>key</b>,$x$,exit_code,error"]
    for number, (a, b) in enumerate(itertools.product((SCRIPT, "$\\frac{"), (1, 2))):
        shutil.copytree(sweep / str(number), tmp_path / "s" / str(number))
        rows.append(f'{number},"{a}",{b},0,')
    (tmp_path / "s" / "sweep.csv").write_text("\n".join(rows))
    file = report([tmp_path / "s"], tmp_path / "page")
    assert SCRIPT not in file.read_text()
    with opened(chromium, file) as look:
        assert not look.said
        assert SCRIPT in look.text


# --- what is on it -----------------------------------------------------------------------------


def test_a_traced_run_has_a_timeline_and_one_trace_for_perfetto(copy, tmp_path):
    with Trace(copy / "trace-0.json", 0) as trace:
        trace._slices += [("forward", "work", 0, 5_000_000, 0), ("wait child", "wait", 0, 9, -1)]
    file = report([copy], tmp_path / "page")
    assert 'id="timeline"' in file.read_text()
    assert json.loads((tmp_path / "page" / "trace.json").read_text())["traceEvents"]


def test_a_run_that_went_on_waited_for_a_part_of_the_time_of_all_its_lives(tmp_path):
    # What it waited in both lives was told as a part of the last one's time: 120 % here.
    (tmp_path / "config.yaml").write_text("components: 1\nsteps: 90\n")
    lines = [
        {"step": step, "wall_s": wall_s, "samples_per_s": rate, "wait_data_ms": 2000.0}
        for step, wall_s, rate in ((1, 5.0, None), (50, 10.0, 64.0), (60, 5.0, None))
    ]
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "component-0.jsonl").write_text(log)
    text = report([tmp_path], tmp_path / "page").read_text()
    assert "40.0 %" in text
    assert "15.0 s of training" in text
    (tmp_path / "result.json").write_text('{"wall_s": 5.0}')  # of its last launch alone
    assert "15.0 s of training" in report([tmp_path], tmp_path / "page").read_text()
    assert _waits(read_log(tmp_path / "component-0.jsonl", 0, Notes())) == {
        "work": 0.6,
        "wait": 0.4,
    }


def test_a_run_without_a_result_has_the_mean_staleness_of_its_log(copy, tmp_path):
    # It had that of the last line, and none where that was 0: at the top, under sync everywhere.
    (copy / "result.json").unlink()
    ages = [(1, 0.0), (2, 3.0), (3, 0.0)]
    log = "".join(json.dumps({"step": n, "staleness_steps": age}) + "\n" for n, age in ages)
    (copy / "component-0.jsonl").write_text(log)
    assert "0 first: 1.0, 0.0" in report([copy], tmp_path / "page").read_text()


def test_an_unfinished_language_model_has_its_bits_on_the_page(copy, tmp_path):
    (copy / "result.json").unlink()
    looks = [{"step": n, "eval_loss": 2.0, "eval_bits_per_byte": 3.0 - n / 10} for n in (1, 2)]
    for k in range(2):
        (copy / f"component-{k}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in looks))
    text = report([copy], tmp_path / "page").read_text()
    assert 'id="exits"' in text
    assert "Test bits per byte of every exit" in text


def test_the_timeline_shows_a_stretch_in_which_all_work():
    def slices(k: int, starts: np.ndarray) -> Slices:
        work = np.zeros(len(starts), dtype=np.int64)
        return Slices(k, ["forward"], work, starts, np.full(len(starts), 0.01))

    early = np.arange(0.0, 3.0, 0.02)
    traces = [slices(0, early), slices(1, np.append(early, np.arange(50.0, 53.0, 0.02)))]
    begin, end = _window(traces)
    assert 0 <= begin < 3
    steady = [slices(k, np.arange(0.0, 60.0, 0.02)) for k in range(2)]
    begin, end = _window(steady)
    assert (begin + end) / 2 == pytest.approx(30, abs=1)


def test_the_frontier_is_what_no_other_beats():
    points = [("a", 1.0, 90.0), ("b", 2.0, 80.0), ("c", 3.0, 95.0), ("d", 3.0, 94.0)]
    assert [name for name, _, _ in frontier(points, higher_is_better=True)] == ["a", "c"]
    assert [name for name, _, _ in frontier(points, higher_is_better=False)] == ["a", "b"]


def test_the_map_is_spanned_by_what_varies_most(sweep, tmp_path):
    layout = layout_of(read_sweep([sweep]))
    assert layout is not None
    assert (layout.rows.key, layout.columns.key) == ("components", "delay")
    assert layout.rows.values == [1, 2, 4, 9]
    assert layout.columns.values == [0, 1, 4]
    assert layout.facets is None
    assert layout.averaged == ["seed"]
    table = "job,optim.lr,model.width,seed,exit_code\n"
    for n in range(12):
        table += f"{n},{n % 3},{8 * (n % 2)},{n // 6},1\n"
    (tmp_path / "sweep.csv").write_text(table)
    other = layout_of(read_sweep([tmp_path]))
    assert other is not None
    assert {other.rows.key, other.columns.key} == {"optim.lr", "model.width"}


def test_jobs_without_a_table_are_told_apart_by_their_configs(sweep, tmp_path):
    left = shutil.ignore_patterns("sweep.csv", "overrides.yaml", "checkpoints")
    shutil.copytree(sweep, tmp_path / "s", ignore=left)
    found = read_sweep([tmp_path / "s"])
    assert found.varying == {
        "components": [1, 2, 4],
        "delay": [0, 1, 4],
        "seed": [0, 1],
    }
    assert not any(job.failed for job in found.jobs)


def test_a_language_model_is_judged_by_bits_per_byte(language_run, tmp_path):
    file = report([language_run[0]], tmp_path)
    assert "bits per byte" in file.read_text()


def test_a_page_says_on_which_split_its_models_were_evaluated(copy, tmp_path):
    config, result = copy / "config.yaml", copy / "result.json"
    config.write_text(config.read_text().replace("split: test", "split: validation"))
    result.write_text(json.dumps(json.loads(result.read_text()) | {"split": "validation"}))
    table = "job,optim,student,exit_code,error\n"
    for number, asked in enumerate(itertools.product(("adamw", "muon"), ("none", "distil"))):
        table += f"{number},{','.join(asked)},0,\n"
        shutil.copytree(copy, tmp_path / "s" / str(number))
    (tmp_path / "s" / "sweep.csv").write_text(table)
    for path in (copy, tmp_path / "s"):
        text = report([path], tmp_path / "page").read_text().lower()
        assert text.count("validation accuracy, %") >= 1
        assert "test accuracy" not in text
        assert "test split" not in text


def test_consolidated_windows_stand_beside_the_runs_own(copy, tmp_path):
    kept = {"first": 1, "last": 1, "params": 9876, "flops": 12345}
    kept["metrics"] = {"loss": 0.1, "accuracy": 0.9753}
    for name, text in (("1..1", json.dumps(kept)), ("0..1", "{")):
        (copy / f"consolidated/{name}").mkdir(parents=True)
        (copy / f"consolidated/{name}/consolidated.json").write_text(text)
    file = report([copy], tmp_path / "page")
    text = file.read_text()
    assert "consolidated 1..1" in text
    assert "97.53" in text
    assert "window, consolidated" in text  # in the picture's legend
    assert "0..1/consolidated.json" in problems(file)


def test_runs_of_several_folders_are_shown_side_by_side(finished, sweep, tmp_path):
    file = report([finished[0], sweep / "3", sweep / "7"], tmp_path)
    text = file.read_text()
    assert "3 jobs" in text
    assert "steps (2 values)" in text


def test_sweeps_over_different_choices_are_shown_side_by_side(finished, tmp_path):
    # No job was asked for both: what it had of the other is in its config, or is not known.
    for key, values in (("optim", ("adamw", "muon")), ("student", ("none", "distil"))):
        table = f"job,{key},exit_code,error\n"
        for number, value in enumerate(values):
            table += f"{number},{value},0,\n"
            left = shutil.ignore_patterns("checkpoints")
            shutil.copytree(finished[0], tmp_path / key / str(number), ignore=left)
        (tmp_path / key / "sweep.csv").write_text(table)
    file = report([tmp_path / "optim", tmp_path / "student"], tmp_path / "page")
    assert (
        "4 jobs over optim (2 values) and student (2 values); 4 have a result" in file.read_text()
    )
    assert (tmp_path / "page" / "heat-map.png").exists()


# --- bad input ---------------------------------------------------------------------------------


def test_a_half_written_line_is_reported(copy, tmp_path):
    with (copy / "component-0.jsonl").open("a") as file:
        file.write('{"step": 9')
    assert "half-written" in problems(report([copy], tmp_path / "page"))


def test_an_empty_run_is_reported(tmp_path):
    (tmp_path / "config.yaml").write_text("components: 2\n")
    (tmp_path / "component-0.jsonl").touch()
    file = report([tmp_path])
    assert file == tmp_path / "report" / "report.html"
    assert "an empty log" in problems(file)
    assert "no result" in problems(file)


def test_a_run_of_another_version_is_reported(copy, tmp_path):
    (copy / "config.yaml").write_text("components: 2\nlateness: 4\nmodel: {name: perceptron}\n")
    result = json.loads((copy / "result.json").read_text())
    for key in ("cut", "staleness_steps", "samples_per_s"):
        result.pop(key)
    result["chain"][0].pop("flops")
    result["windows"] = "none"
    (copy / "result.json").write_text(json.dumps(result))
    text = problems(report([copy], tmp_path / "page"))
    assert "lateness is not known" in text
    assert "perceptron" in text


@pytest.mark.parametrize("value", [None, "x", [], -1, 1e400])
def test_a_result_with_odd_values_is_shown(copy, tmp_path, value):
    result = json.loads((copy / "result.json").read_text())
    odd = dict.fromkeys(result, value) | {
        "chain": [{"exit": 0, "accuracy": value, "loss": value, "params": value, "flops": value}],
        "cut": [{"component": value, "body": value}],
        "free": [{"component": 0, "imagined": value}],
    }
    (copy / "result.json").write_text(json.dumps(odd))
    report([copy], tmp_path / "page")
    assert read_sweep([copy]).jobs


def test_a_folder_without_runs_is_refused_in_one_line(tmp_path, capsys):
    assert answer("report", [str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(RunFolderError, match="no run"):
        report([tmp_path, tmp_path / "nowhere"])


def test_a_path_without_a_run_beside_others_is_left_out_and_counted(sweep, tmp_path):
    (tmp_path / "empty").mkdir()
    file = report([sweep / "0", sweep / "1", tmp_path / "empty"], tmp_path / "page")
    assert "no run in it" in problems(file)


def test_a_run_that_is_named_twice_counts_once(sweep, tmp_path):
    notes = Notes()
    paths = [sweep / "0", sweep / "1", sweep / "1" / ".." / "0"]
    assert len(read_sweep(paths, notes).jobs) == 2
    assert [str(note) for note in notes if "named twice" in str(note)]


def test_two_results_for_one_job_are_reported_and_one_is_taken(sweep, tmp_path):
    folder = tmp_path / "sweep"
    for number, name in (("0", "0"), ("1", "1"), ("1", "again")):
        shutil.copytree(sweep / number, folder / name)
    notes = Notes()
    assert len(read_sweep([folder], notes).jobs) == 2
    assert [str(note) for note in notes if "two results" in str(note)]
    table = "job,seed,exit_code,error\n0,0,0,\n0,0,0,\n1,1,0,\n1"
    (folder / "sweep.csv").write_text(table)
    shutil.rmtree(folder / "again")
    notes = Notes()
    assert len(read_sweep([folder], notes).jobs) == 2
    assert sum("two results" in str(note) for note in notes) == 1
    assert sum("without a job" in str(note) for note in notes) == 1


def test_jobs_that_began_from_other_runs_are_jobs_of_their_own(sweep, tmp_path):
    folder = tmp_path / "sweep"
    for job, start in (("0", "a"), ("1", "b")):
        shutil.copytree(sweep / "0", folder / job)
        (folder / job / "overrides.yaml").write_text(f"[seed=0, resume={start}]")
        file = folder / job / "config.yaml"
        file.write_text(re.sub("(?m)^resume: .*", f"resume: {start}", file.read_text()))
    (folder / "sweep.csv").unlink(missing_ok=True)
    assert read_sweep([folder]).varying == {"resume": ["a", "b"]}
    for job in ("0", "1"):
        (folder / job / "overrides.yaml").unlink()
    assert read_sweep([folder]).varying == {"resume": ["a", "b"]}


@pytest.mark.parametrize("text", ["", "\0\0", "a,b\n1,2\n", "job,exit_code\n\n", '"job'])
def test_a_table_that_is_none_is_reported(sweep, tmp_path, text):
    folder = tmp_path / "sweep"
    shutil.copytree(sweep / "0", folder / "0")
    (folder / "sweep.csv").write_text(text)
    assert len(read_sweep([folder]).jobs) == 1


def test_a_folder_that_cannot_be_written_is_refused(finished, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="--out"):
        report([finished[0]], tmp_path / "file")


# --- what is not on it -------------------------------------------------------------------------

KEY = "0123456789abcdef0123456789abcdef01234567"


def test_no_key_of_the_environment_is_on_the_page(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (copy / "config.yaml").write_text(
        "components: 2\nmodel:\n  name: custom\n  arguments:\n"
        f"    note: {KEY}\n    hf_token: other-secret\n"
        "data: {name: digits, source: 'https://me:pass-word@example.org/data'}\n"
    )
    (copy / "events.jsonl").write_text(
        json.dumps({"time": 1.0, "component": 0, "event": "died", "text": f"key {KEY}"}) + "\n"
    )
    report([copy], tmp_path / "page")
    for path in (tmp_path / "page").iterdir():
        assert KEY.encode() not in path.read_bytes(), path
    text = (tmp_path / "page" / "report.html").read_text()
    assert "other-secret" not in text
    assert "pass-word" not in text
    assert HIDDEN in text


def test_names_that_only_sound_like_secrets_are_shown():
    for key in ("data.tokenizer", "tokens", "data.bytes_per_token", "keys"):
        assert value_of(key, "byte") == "byte"
    for key in ("api_key", "model.arguments.hf_token", "wandb_api_key", "secret", "db.password"):
        assert value_of(key, "byte") == HIDDEN
    assert secrets_of({"WANDB_API_KEY": KEY, "PATH": "/usr/bin:/bin", "A_TOKEN": "short"}) == [KEY]
    assert without("see https://me:word@host/x", []) == f"see https://{HIDDEN}@host/x"


def test_a_missing_extra_is_named(finished, tmp_path):
    code = (
        "import sys; from importlib.abc import MetaPathFinder\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'matplotlib' else find(name, *a)\n"
        "from mach.cli import answer; sys.exit(answer('report', sys.argv[1:]))"
    )
    done = run([sys.executable, "-c", code, str(finished[0])], tmp_path)
    assert done.code == 2
    assert "pip install 'mach[report]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_writes_the_page_and_says_where(finished, tmp_path):
    done = run([*MACH, "report", str(finished[0]), "--out", "page"], tmp_path)
    assert done.code == 0, done
    assert done.stdout.strip() == "Report: page/report.html"
    assert (tmp_path / "page" / "report.html").stat().st_size < 1_000_000
