"""Where is `conf/`, and how do overrides become a config without Hydra's command line?"""

from __future__ import annotations

from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mach.config import MODELS, SOURCES, Config, Schema, from_mapping
from mach.errors import ConfigError


def conf_dir() -> Path:
    """The folder of YAML: inside the installed package, or beside `src/` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def register_schema() -> None:
    """Make the dataclasses known to Hydra, so that it refuses unknown keys and wrong types."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Schema)
    for group, kinds in (("model", MODELS), ("data", SOURCES)):
        for name, kind in kinds.items():
            store.store(group=group, name=f"{name}_schema", node=kind)


def compose(overrides: list[str]) -> Config:
    """The config that `mach train` would run with these overrides.

    Raises:
        ConfigError: an override that cannot be applied, or a value that is refused.
    """
    register_schema()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra_compose("train", overrides)
            values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error.__cause__ or error).strip()) from error
    assert isinstance(values, dict)
    return from_mapping({str(key): value for key, value in values.items()})
