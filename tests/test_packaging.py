"""What does a user get who installs mach from a wheel?"""

from __future__ import annotations

import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from spawn import run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> list[str]:
    """Names of the files in a wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder)]
    if find_spec("hatchling"):  # else pip fetches it
        build.append("--no-build-isolation")
    done = run([*build, str(ROOT)], folder, deadline_s=110)
    assert done.code == 0, done
    (wheel,) = folder.glob("mach-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_has_the_config_and_says_that_it_is_typed(contents):
    conf = {f"mach/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml")}
    assert "mach/conf/train.yaml" in conf
    assert conf | {"mach/py.typed", "mach/cli.py", "mach/train.py"} <= set(contents)


def test_the_wheel_has_every_module_and_nothing_else(contents):
    modules = {f"mach/{p.relative_to(ROOT / 'src/mach')}" for p in (ROOT / "src").rglob("*.py")}
    assert modules <= set(contents)
    assert {"mach/page/templates/page.html.j2", "mach/page/templates/page.css"} <= set(contents)
    assert {name.split("/")[0].split("-")[0] for name in contents} == {"mach"}
