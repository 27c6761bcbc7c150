"""Which values are refused, and what does a config keep on its way through YAML?"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from clouds import make
from mach.config import Config, DigitsConfig, GenerateConfig, MlpConfig
from mach.config.describe import options as options_of
from mach.configfile import MODELS, SOURCES, fingerprint, from_mapping, from_yaml, load, to_yaml
from mach.errors import ConfigError
from mach.launcher.compose import compose, conf_dir

CONF = conf_dir()
GROUPS = ("data", "faults", "launch", "method", "model", "optim", "report", "student", "transport")
CHOICES = (Config, *MODELS.values(), *SOURCES.values(), GenerateConfig)
REQUIRED = {
    **{name: ["data.path=FILE"] for name in ("npz", "idx", "text")},
    "tokens": ["data.train=FILE", "data.vocabulary=9"],
    "custom": ["model.factory=package.module:function"],
}
"""What some options cannot do without."""
TOKENS = {"name": "tokens", "train": "x", "vocabulary": 9}
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"components": 0}, "components: expected 1 or more; got 0"),
        ({"delay": -1}, "delay: expected 0 or more; got -1"),
        ({"accumulate": 0}, "accumulate: expected 1 or more"),
        ({"steps": 0}, "steps: expected 1 or more"),
        ({"microbatch_size": 0}, "microbatch_size: expected 1 to 1048576; got 0"),
        ({"microbatch_size": 10**14}, "microbatch_size: expected 1 to 1048576; got 10"),
        ({"seed": -1}, "seed: expected 0 to 9223372036854775807; got -1"),
        ({"seed": 2**63}, "seed: expected 0 to 9223372036854775807; got 9223372036854775808"),
        ({"out": ""}, "out: expected a folder; got an empty name.* Say out=FOLDER, or leave out"),
        ({"resume": " "}, "resume: expected a folder; got an empty name"),
        ({"model": 3}, "model: expected a group of keys; got 3"),
        ({"feedback": -0.5}, "feedback: expected 0 or more"),
        ({"feedback": float("nan")}, "feedback: expected 0 or more; got nan"),
        ({"schedule": "fast"}, "schedule: expected one of sync, delayed, free.*'fast'"),
        ({"replay": "never"}, "replay: expected one of recompute, stash"),
        ({"model": {"depth": 3}}, "components: expected at most model.depth=3.*; got 4"),
        ({"model": {"blocks": 0}}, "model.blocks: expected 1 or more"),
        ({"model": {"width": 0}}, "model.width: expected 1 or more"),
        ({"model": {"name": "cnn"}}, "model.name: expected one of .*'cnn'"),
        ({"model": {"widht": 3}}, "model.widht: "),
        ({"data": {"name": "npz"}}, "data.path: expected a value; got none"),
        ({"data": {"name": "npz", "path": "x", "classes": 1}}, "data.classes: expected 2"),
        ({"data": {"name": "text", "path": "x", "context": 0}}, "data.context: expected 1"),
        ({"data": {"name": "text", "path": "x", "test_fraction": 1}}, "test_fraction: expected"),
        ({"data": {"name": "text", "path": "x", "tokenizer": "tiktoken:"}}, "data.tokenizer: exp"),
        ({"data": {"name": "text", "path": "x", "tokenizer": "word"}}, "byte, char or tiktoken:N"),
        ({"data": {"name": "tokens", "train": "x"}}, "data.vocabulary: expected a value; got none"),
        ({"data": TOKENS | {"vocabulary": 1}}, "data.vocabulary: expected 2 or more; got 1"),
        ({"data": TOKENS | {"dtype": "float32"}}, "data.dtype: expected one of uint8, uint16, "),
        ({"data": TOKENS | {"bytes_per_token": 0}}, "bytes_per_token: expected a number above 0"),
        ({"data": {"name": "mnist", "timeout_s": 0}}, "data.timeout_s: expected 1 to 31622400.0"),
        ({"data": {"prefetch": -1}}, "data.prefetch: expected 0 or more; got -1"),
        ({"head": {"weight": -1}}, "head.weight: expected 0 or more"),
        ({"head": {"lr": -1}}, "head.lr: expected 0 or more; got -1"),
        ({"feedback": 0, "head": {"weight": 0}}, "head.weight: expected more than 0"),
        ({"student": {"mix": 1.5}}, "student.mix: expected 0 to 1; got 1.5"),
        ({"student": {"lr": float("nan")}}, "student.lr"),
        ({"optim": {"name": "adma"}}, "optim.name: expected one of muon, adamw, sgd"),
        ({"optim": {"lr": -1}}, "optim.lr: expected 0 or more"),
        ({"optim": {"warmup": 2}}, "optim.warmup: expected 0 to 1"),
        ({"optim": {"precision": "fp8"}}, "optim.precision: expected one of fp32, bf16"),
        ({"transport": {"name": "mpi"}}, "transport.name: expected one of auto, gloo, nccl"),
        ({"transport": {"credits": 0}}, "transport.credits: expected"),
        ({"transport": {"timeout_s": 0}}, "transport.timeout_s: expected seconds above 0"),
        ({"transport": {"timeout_s": float("inf")}}, "transport.timeout_s"),
        ({"transport": {"timeout_s": 1e10}}, "timeout_s: .* above 0, at most 31622400; got 1e"),
        ({"transport": {"start_timeout_s": 1e10}}, "transport.start_timeout_s: expected seconds"),
        ({"report": {"finish_timeout_s": 1e10}}, "report.finish_timeout_s: expected 0 to"),
        ({"launch": {"device": "tpu"}}, "launch.device: expected one of auto, cpu, cuda"),
        ({"launch": {"threads": 0}}, "launch.threads: expected 1 to 1024"),
        ({"launch": {"threads": 100_000}}, "launch.threads: expected 1 to 1024; got 100000"),
        ({"launch": {"max_restarts": -1}}, "launch.max_restarts: expected 0 or more"),
        ({"report": {"every": 0}}, "report.every: expected 1 or more"),
        ({"report": {"wandb": "yes"}}, "report.wandb: expected one of auto, online"),
        ({"checkpoint": {"every": -1}}, "checkpoint.every: expected 0 or more"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep: expected 1 or more"),
        ({"eval": {"samples": 0}}, "eval.samples: expected 1 or more"),
        ({"speed": "high"}, "speed: expected a key of the config"),
        ({"delay": "soon"}, "delay: expected a whole number; got 'soon'"),
    ],
)
def test_nonsense_is_refused_and_named(values, says):
    with pytest.raises(ConfigError, match=says) as refused:
        from_mapping(values)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        (
            {"launch": {"on_exhausted": "continue"}},
            "launch.on_exhausted=continue: expected students, .*; got student.enabled=false",
        ),
        (
            {"faults": {"kind": "drop-link", "duration_s": float("inf")}},
            "faults.duration_s=inf: expected students, .*; got student.enabled=false",
        ),
    ],
)
def test_without_students_no_child_may_be_lost_for_good(lost, says):
    """Its parent waited for it for ever, which counts as progress: the run never ended."""
    chain = {"components": 3, "schedule": "free"}
    from_mapping({**chain, **lost})
    alone = {**chain, **lost, "student": {"enabled": False}}
    with pytest.raises(ConfigError, match=says):
        from_mapping(alone)
    from_mapping({**alone, "components": 1})  # nobody has a child


# --- what is kept --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        make(2, schedule="sync", resume="auto", out="runs/off"),
        from_mapping({"data": {"name": "text", "path": "a b.txt"}, "model": {"depth": 9}}),
        from_mapping({"report": {"wandb": "off"}, "transport": {"credits": 3}, "out": "1"}),
    ],
)
def test_a_config_comes_back_from_yaml_equal(config):
    assert from_yaml(to_yaml(config)) == config
    assert fingerprint(from_yaml(to_yaml(config))) == fingerprint(config)


@pytest.mark.parametrize(
    "values",
    [
        {"out": "elsewhere"},
        {"resume": "auto"},
        {"transport": {"name": "gloo", "credits": 9}},
        {"launch": {"threads": 3, "max_restarts": 2}},
        {"report": {"every": 7, "wandb": "off"}},
        {"checkpoint": {"keep": 9}},
        {"data": {"cache": "elsewhere", "prefetch": 3}},
        {"eval": {"samples": 9}},
    ],
)
def test_what_changes_no_number_leaves_the_fingerprint(values):
    assert fingerprint(from_mapping(values)) == fingerprint(Config())


@pytest.mark.parametrize(
    "values",
    [
        {"components": 3},
        {"schedule": "sync"},
        {"delay": 2},
        {"accumulate": 2},
        {"feedback": 0.5},
        {"replay": "stash"},
        {"steps": 999},
        {"microbatch_size": 8},
        {"seed": 1},
        {"model": {"width": 64}},
        {"data": {"name": "npz", "path": "x"}},
        {"data": {"validation": 9}},
        {"head": {"weight": 0.2}},
        {"student": {"enabled": False}},
        {"optim": {"lr": 0.5}},
        {"checkpoint": {"every": 5}},  # a flush: gradients in flight there come at another age
        {"eval": {"every": 5}},
    ],
)
def test_what_changes_a_number_changes_the_fingerprint(values):
    assert fingerprint(from_mapping(values)) != fingerprint(Config())


@pytest.mark.parametrize("text", ["", "- delay", "3"])
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path, text):
    """An empty one, as of a disk that was full, was once loaded as all defaults."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{path}: cannot be read as a config: "):
        load(path)


def test_letters_that_are_not_ascii_are_said_to_need_quotes():
    says = "not ASCII, inside the quotes of the shell: key='\"a=b\"'"
    with pytest.raises(ConfigError, match=says):
        compose(["data=text", "data.path=\N{LATIN SMALL LETTER E WITH ACUTE}.txt"])
    quoted = "data.path='\N{LATIN SMALL LETTER E WITH ACUTE}.txt'"
    assert compose(["data=text", quoted]).data.path == "\N{LATIN SMALL LETTER E WITH ACUTE}.txt"


# --- what follows from it ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "depth", "cut"),
    [
        (1, 5, [range(5)]),
        (2, 5, [range(3), range(3, 5)]),
        (3, 5, [range(2), range(2, 4), range(4, 5)]),
        (4, 4, [range(1), range(1, 2), range(2, 3), range(3, 4)]),
        (3, 8, [range(3), range(3, 6), range(6, 8)]),
    ],
)
def test_a_depth_is_cut_into_nearly_equal_bodies_the_first_take_the_rest(components, depth, cut):
    config = from_mapping({"components": components, "model": {"depth": depth}})
    assert config.bodies() == cut


def test_without_a_depth_every_body_has_the_same_blocks():
    config = replace(Config(), components=3, model=MlpConfig(blocks=2))
    assert config.bodies() == [range(2), range(2, 4), range(4, 6)]


def test_credits_follow_the_delay_and_cover_what_is_in_flight():
    assert make(2, delay=3).credits == 4
    assert make(2, schedule="sync", delay=3).credits == 2
    assert make(2, delay=3, transport={"credits": 7}).credits == 7


def test_a_chain_that_is_cut_or_flushed_has_no_delay():
    assert make(2, delay=3).effective_delay == 3
    assert make(2, delay=3, schedule="sync").effective_delay == 0
    assert make(2, delay=3, feedback=0, head={"weight": 1}).effective_delay == 0
    assert make(2, steps=5, accumulate=3).microbatches == 15


@pytest.mark.parametrize("delay", [0, 2])
def test_under_free_gradients_are_late_without_a_delay_too(delay):
    assert make(2, schedule="free", delay=delay).late
    assert not make(2, schedule="free", delay=delay, feedback=0, head={"weight": 1}).late
    assert make(2, delay=delay).late == (delay > 0)
    assert not make(2, schedule="sync", delay=delay).late


# --- conf/ ---------------------------------------------------------------------------------


def options() -> list[str]:
    return [f"{g}={p.stem}" for g in GROUPS for p in sorted((CONF / g).glob("*.yaml"))]


def test_every_folder_of_conf_is_a_group_that_is_tested_here():
    folders = {p.name for p in CONF.iterdir() if p.is_dir()}
    assert folders - {"experiment", "hydra"} == set(GROUPS)


@pytest.mark.parametrize("option", options())
def test_every_option_of_every_group_composes(option):
    group, _, name = option.partition("=")
    config = compose([option, *REQUIRED.get(name, [])])
    if group == "method":
        assert config.method == name
    elif group in ("model", "data", "launch", "optim", "transport"):
        assert getattr(config, group).name == name


def test_the_defaults_of_conf_are_those_of_the_dataclasses():
    """But for the rates of SGD and of a family, `conf/` only repeats them: a notebook gets what the
    shell gets."""
    assert compose([]) == Config(model=MlpConfig(), data=DigitsConfig())


@pytest.mark.parametrize(
    ("words", "rates"),
    [
        ([], (1e-3, 0.01)),
        (["model=resnet"], (0.032, 0.06)),
        (["model=gpt", "data=text", "data.path=any"], (0.016, 0.08)),
        (["model=resnet", "optim=adamw"], (1e-3, 0.06)),
        (["model=resnet", "optim=sgd"], (0.1, 0.06)),
        (["model=resnet", "optim.lr=0.5"], (0.5, 0.06)),
    ],
)
def test_rates_are_the_familys_unless_the_optimizer_has_its_own(words, rates):
    optim = compose(words).optim
    assert (optim.lr, optim.muon_lr) == rates


def test_what_comes_later_wins_and_the_command_line_above_all():
    assert compose(["method=dgl"]).feedback == 0
    assert compose(["method=dgl", "head.weight=0.5"]).head.weight == 0.5
    assert compose(["method=backprop"]).student.enabled is False


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_opens_with_the_command_that_runs_it(name):
    first, second, *_ = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    command = second if first.startswith("# @package") else first  # Hydra reads that line
    found = re.fullmatch(rf"# mach train (?:-m )?(experiment={name}\b.*)", command)
    assert found, command
    config = compose(found[1].split())
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
def test_every_option_is_explained_where_it_is_defined(kind):
    assert [option.key for option in options_of(kind) if len(option.text) < 10] == []


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_yaml_says_what_it_is(path: Path):
    lines = [x for x in path.read_text().splitlines() if not x.startswith("# @package")]
    assert lines[0].startswith("# "), path
