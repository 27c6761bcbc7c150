"""Where is `conf/`, and how do overrides become a config without Hydra's command line?"""

from __future__ import annotations

import re
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException

from mach.config import Config
from mach.configerrors import refusal
from mach.configfile import MODELS, SOURCES, Schema, from_mapping, keys
from mach.errors import ConfigError
from mach.launcher.manual import manual


def conf_dir() -> Path:
    """The folder of YAML: inside the installed package, or beside `src/` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


# `${mach.or:a,b}`: a, or b where a is null. Here, since the processes of a sweep import this file.
OmegaConf.register_new_resolver("mach.or", lambda a, b: b if a is None else a, replace=True)
OmegaConf.register_new_resolver(
    "mach.manual", lambda model, data: manual(conf_dir(), model, data), replace=True
)


def register_schema() -> None:
    """Make the dataclasses known to Hydra, so that it refuses unknown keys and wrong types."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Schema)
    for group, kinds in (("model", MODELS), ("data", SOURCES)):
        for name, kind in kinds.items():
            store.store(group=group, name=f"{name}_schema", node=kind)
    # What conf/ has for a plugin takes the place of the plugin's own, which is stored when Hydra
    # imports it: two of one name would be merged, which is deprecated, or refused.
    Plugins.instance()
    for path in conf_dir().glob("hydra/*/*.yaml"):
        store.repo.get("hydra", {}).get(path.parent.name, {}).pop(path.name, None)


def compose(overrides: list[str], folder: Path | None = None) -> Config:
    """The config that `mach train` would run with these overrides.

    Args:
        folder: YAML of the user's own, as `mach train --config-dir` takes it.

    Raises:
        ConfigError: an override that cannot be applied, or a value that is refused.
    """
    register_schema()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = hydra_compose("train", [*overrides, *_searched(folder)])
            values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(values, dict)
    return from_mapping({str(key): value for key, value in values.items()})


def value_in(override: str) -> str:
    """The value in an override, without the quotes and backslashes that Hydra takes away."""
    return str(OverridesParser.create().parse_override(override).value())


def _searched(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    # Hydra takes what follows file:// as it is: nothing in it may be escaped as in a URI.
    place = QuotedString(f"file://{folder.resolve()}", Quote.single)
    return [f"hydra.searchpath=[{place.with_quotes()}]"]


def explain(error: Exception) -> str:
    """What Hydra or OmegaConf refused, said like every other mistake in the config."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group == "hydra/sweeper/sampler" and not error.options:
            return (
                "hydra/sweeper=optuna: expected the package hydra-optuna-sweeper; it is not "
                "installed. pip install 'mach[sweep]'"
            )
        options = [name for name in error.options or () if not name.endswith("_schema")]
        return f"{group}: expected one of {', '.join(options) or 'none at all'}; got {option!r}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: expected key=value; got something that is not. Quote a value that "
            "has special signs, or letters that are not ASCII, inside the quotes of the shell: "
            "key='\"a=b\"'"
        )
    if isinstance(cause, ConfigTypeError) and cause.full_key:  # ~key: Hydra takes out choices alone
        return f"{cause.full_key}: expected a choice to take out; got a key. Set it to a value"
    if isinstance(cause, OmegaConfBaseException):
        return refusal(cause, keys())
    said = str(error).strip().partition("\n")[0]
    several = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)=(.*)'", said)
    if several:
        key, values = several.groups()
        return (
            f"{key}: expected one value; got several: {values}. For a sweep say mach train -m; a "
            f"list is {key}=[a,b]"
        )
    if said.startswith(("Could not append", "Multiple values for")):  # to what is there already
        return f"{said.partition(' To override')[0]} Take the + away."
    return said
