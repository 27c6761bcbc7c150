"""Does every part know only what it may know? Read from the source, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mach

ROOT = Path(mach.__file__).parent

LINES = [
    "errors extras outofmemory paths shapes metrics config configerrors configfile topology "
    "schedule policy balance forecast results introduce provenance runfolder say secrets "
    "storeaddress sweepfolder sweeptable",
    "randomness rank roster",
    "component",
    "models",
    "channels",
    "data muon optim",
    "trainer",
    "checkpoint",
    "inference signature",
    "export consolidation",
    "predictor",
    "choice asking serve",
    "report records page",
    "launcher",
    "session",
    "train generate cli api",
]
"""Imports point from lower lines to upper ones, or stay in their own."""

LINE = {part: number for number, line in enumerate(LINES) for part in line.split()}


def name_of(path: Path) -> str:
    """`data.npz` of `mach/data/npz.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


FILES = {name_of(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
del FILES["__init__"]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is named in an import, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def parts_of(tree: ast.AST) -> set[str]:
    """Parts of mach that are imported: `data` for `from mach.data.npz import ..`."""
    names = {name.split(".")[1] for name in imported(tree) if name.startswith("mach.")}
    return names & LINE.keys()


def uses(package: str) -> set[str]:
    return {file for file, tree in FILES.items() if any(inside(n, package) for n in imported(tree))}


def names_in(tree: ast.AST, owner: str) -> set[str]:
    """`x` for every `owner.x`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == owner
    }


def test_every_module_has_a_line():
    assert {file.split(".")[0] for file in FILES} == LINE.keys()


@pytest.mark.parametrize("file", FILES)
def test_imports_point_upwards(file):
    part = file.split(".")[0]
    below = {other for other in parts_of(FILES[file]) if LINE[other] > LINE[part]}
    assert not below


def test_a_component_trains_alone():
    for file, tree in FILES.items():
        if inside(file, "component"):
            known = {"component", "errors", "shapes", "metrics", "randomness"}
            assert parts_of(tree) <= known, file


def test_the_pure_parts_know_no_processes():
    for file, tree in FILES.items():
        if file in LINES[0].split():
            assert not [n for n in imported(tree) if inside(n, "torch.distributed", "hydra")], file


def test_what_answers_questions_does_not_import_torch():
    """`mach --help` is waited for: see also the launch tests."""
    for file in (
        "errors",
        "config",
        "configfile",
        "schedule",
        "introduce",
        "introduce runfolder",
        "sweepfolder",
        "sweeptable",
        "launcher.sweep",
        "topology",
        "cli",
    ):
        assert file not in uses("torch"), file


def test_only_the_launcher_knows_hydra():
    assert uses("hydra") == {"launcher.app", "launcher.compose"}


def test_only_the_config_and_the_launcher_know_omegaconf():
    assert uses("omegaconf") == {"configerrors", "configfile", "launcher.app", "launcher.compose"}


def test_only_the_report_knows_wandb():
    assert uses("wandb") == {"report.wandb_sink", "report.dashboard"}


def test_only_the_launcher_and_the_report_know_rich():
    launcher = {"launcher.app", "launcher.plan", "launcher.compare"}
    reports = {"cascade", "compare", "console", "models", "plan", "screen", "watch"}
    assert uses("rich") == launcher | {f"report.{name}" for name in reports}


ENVIRONMENT = {
    "rank": "what a launcher set",
    "introduce": "what a launcher set, before anything slow is imported",
    "report.publish": "wandb's own variables: is the user logged in?",
    "report.reporter": "wandb's own variables: is the user logged in?",
    "data.cache": "XDG_CACHE_HOME: where users keep what can be made again",
    "page.write": "keys and tokens, to keep them off the page",
    "export.card": "keys and tokens, to keep them off the model card",
    # These write it, for the processes they start or the library they are about to import.
    "launcher.agent": "MACH_COMPONENT, TORCHELASTIC_..",
    "launcher.nursery": "MACH_RUN_DIR, numbers of threads, PYTORCH_NVML_.., CUDA_VISIBLE_DEVICES",
    "channels.ncclpair": "NCCL_.. and TORCH_NCCL_.., where the user has not set them",
    "launcher.app": "HYDRA_FULL_ERROR",
    "launcher.completion": "COMP_LINE: what a shell asks to be completed",
    "report.dashboard": "wandb's own variables: is the user logged in?",
    "report.companion": "without MACH_RUN_DIR and MACH_COMPONENT: it is no rank",
    "report.wandb_sink": "WANDB_ERROR_REPORTING, WANDB_INIT_TIMEOUT",
}


def test_the_environment_is_read_where_it_is_listed():
    readers = {file for file, tree in FILES.items() if {"environ", "getenv"} & names_in(tree, "os")}
    assert readers == ENVIRONMENT.keys()


def test_nothing_outside_channels_sends_or_receives():
    """Elsewhere torch.distributed is a store, a rendezvous, a launcher and a file format."""
    allowed = {"Store", "PrefixStore", "DistStoreError", "DistNetworkError", "rendezvous"}
    stores = {  # those that are hosted or joined, rather than handed on
        "rank": {"TCPStore"},
        "launcher.store": {"TCPStore"},
        "launcher.agent": {"HashStore"},
        "launcher.inprocess": {"HashStore"},
    }
    modules = ("torch.distributed.checkpoint", "torch.distributed.elastic")
    launcher = ("torch.distributed.launcher",)
    for file, tree in FILES.items():
        if inside(file, "channels"):
            continue
        assert names_in(tree, "dist") <= allowed | stores.get(file, set()), file
        assert names_in(tree, "torch.distributed") <= {*allowed, "checkpoint"}, file
        for name in imported(tree):
            if inside(name, "torch.distributed") and name != "torch.distributed":
                assert inside(name, *modules, *launcher), f"{file}: {name}"
