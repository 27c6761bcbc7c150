"""What benchmarks/windows/ concludes, and that its README says what was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "windows"


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    """By its path, as another benchmark has a module of this name, too."""
    sys.path.append(str(FOLDER))  # what it imports
    spec = importlib.util.spec_from_file_location("windows_summary", FOLDER / "summary.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model(kind: str, name: str | None, value: float, flops: int, **more: object) -> dict:
    steps = 120 if kind in ("consolidated", "alone, longer") else 90
    own = {"kind": kind, "name": name, "value": value, "flops": flops, "params": 1}
    return {**own, "steps": steps, **more}


def row(seed: int, chain: float, first: float, second: float, alone: float) -> dict:
    """A seed; validation prefers 2..2, test 3..3."""
    point = {"threshold": 0.5, "accuracy": 0.9, "asked": 0.25, "flops": 75.0}
    return {
        "task": "mnist1d",
        "metric": "accuracy",
        "seed": seed,
        "steps": 90,
        "batch": 64,
        "validation": 2000,
        "student": 112,
        "words": [],
        "models": [
            model("exit", "0..0", 0.5, 40),
            model("exit", "0..3", chain, 100),
            model("raw", "2..2", 0.6, 48),
            model("consolidated", "2..2", first, 48, validated=0.99),
            model("consolidated", "3..3", second, 48, validated=0.98),
            model("alone", None, alone, 48),
            model("alone, longer", None, alone + 0.03, 48),
        ],
        "cascade": {"small": point, "cascade": point, "large": point, "threshold": 0.5},
        "seconds": 10,
        "environment": {
            "cpu": "a CPU",
            "cores": 2,
            "load": 0.0,
            "system": "Linux",
            "python": "3",
            "torch": "2",
            "commit": "0123456789abcdef",
            "changed": False,
            "date": "2026-01-01",
        },
    }


def test_the_window_is_chosen_on_validation_and_judged_on_test(summary):
    rows = [row(0, 0.90, 0.88, 0.99, 0.87), row(1, 0.92, 0.92, 0.99, 0.89)]
    assert summary.chosen(rows) == "2..2"
    told = summary.markdown(rows)
    kept = (0.88 + 0.92) / (0.90 + 0.92)
    keeps = f"part of the chain's accuracy that it keeps | {kept:.4f} | ≥ 0.99 | **no** |"
    assert f"| consolidated 2..2 (best on validation): {keeps}" in told
    assert "of a network alone, samples of the chain, points | +2.00 | > 0 | yes |" in told
    assert "of chain and consolidation, points | -1.00 | > 0 | **no** |" in told
    assert "| chain 0..3 | 100 | 1.00 | 91.00 (90.00 .. 92.00) |" in told
    assert "trained on 5,760 samples, windows consolidated with 1,920 more; 2 seeds" in told


def test_of_bits_per_byte_fewer_are_better(summary):
    """The same two seeds, with what was a part as bits."""
    rows = [row(0, 2.0, 2.5, 1.9, 2.6), row(1, 2.2, 2.3, 1.9, 2.6)]
    for own in rows:
        own |= {"task": "gpt", "metric": "bits_per_byte", "cascade": None}
        for found in own["models"]:
            if "validated" in found:
                found["validated"] = 1 - found["validated"]
    assert summary.chosen(rows) == "2..2"
    told = summary.markdown(rows)
    assert f"bits per byte, as one of its own | {2.1 / 2.4:.4f} | ≥ 0.99 | **no** |" in told
    assert "of a network alone, samples of the chain, bits per byte | +0.200 | > 0 | yes |" in told
    assert "| chain 0..3 | 100 | 1.00 | 2.100 (2.000 .. 2.200) |" in told
    assert "Cascade" not in told


def test_the_readme_has_the_tables_of_its_result(summary):
    readme = (FOLDER / "README.md").read_text()
    rows = json.loads((FOLDER / "result.json").read_text())
    assert summary.markdown(rows) in readme
