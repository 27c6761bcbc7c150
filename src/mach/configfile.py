"""How does a config get in and out: from Hydra, from a file, into a file, into a hash?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mach.config import (
    Cifar10Config,
    Config,
    CustomConfig,
    DataConfig,
    DigitsConfig,
    FashionMnistConfig,
    GptConfig,
    IdxConfig,
    MlpConfig,
    MnistConfig,
    ModelConfig,
    NpzConfig,
    ResNetConfig,
    TextConfig,
    TokensConfig,
    one_of,
)
from mach.configerrors import refusal
from mach.errors import ConfigError
from mach.secrets import covered


@dataclass
class Schema(Config):
    """`Config` as Hydra composes it: which model and which data is still open."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)


MODELS: dict[str, type[ModelConfig]] = {
    "mlp": MlpConfig,
    "gpt": GptConfig,
    "resnet": ResNetConfig,
    "custom": CustomConfig,
}
SOURCES: dict[str, type[DataConfig]] = {
    "digits": DigitsConfig,
    "npz": NpzConfig,
    "idx": IdxConfig,
    "text": TextConfig,
    "tokens": TokensConfig,
    "cifar10": Cifar10Config,
    "mnist": MnistConfig,
    "fashion_mnist": FashionMnistConfig,
}

# What may differ between the run that wrote a checkpoint and the run that goes on from it.
_FREE = ("out", "resume", "transport", "launch", "report", "checkpoint", "eval", "method", "faults")

_FREE_OF_DATA = ("cache", "prefetch", "timeout_s")


def from_mapping(values: Mapping[str, Any]) -> Config:
    """Build and check a `Config`.

    Args:
        values: nested mapping as composed by Hydra or read from `config.yaml`. `model.name` and
            `data.name` choose the dataclass of their part.

    Raises:
        ConfigError: unknown key, wrong type, missing value, or a value that is refused.
    """
    schema = OmegaConf.structured(Config)
    try:
        for key, kinds in (("model", MODELS), ("data", SOURCES)):
            part = values.get(key, {})
            if not isinstance(part, Mapping):
                raise ConfigError(f"{key}: expected a group of keys; got {part!r}")
            name = part.get("name", schema[key].name)
            one_of(f"{key}.name", name, tuple(kinds))
            schema[key] = OmegaConf.structured(kinds[name])
        merged = OmegaConf.merge(schema, OmegaConf.create(dict(values)))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]}: expected a value; got none. Set {missing[0]}=..")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(refusal(error, keys())) from error
    assert isinstance(config, Config)
    return config


Arguments = TypeVar("Arguments")


def from_arguments(kind: type[Arguments], words: Sequence[str]) -> Arguments:
    """Build and check a dataclass from the key=value words of a command line.

    A value is read as its field's type says, and text is taken as it is: no sign in it is special.

    Raises:
        ConfigError: unknown key, wrong type, missing value, or a value that is refused.
    """
    types = get_type_hints(kind)
    typed = OmegaConf.structured(kind)
    text: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: expected key=value; got no =")
        one_of("argument", key, tuple(types))
        if str in (types[key], *get_args(types[key])):
            text[key] = value
            continue
        try:
            typed[key] = None if value == "null" else value
        except OmegaConfBaseException as error:
            raise ConfigError(refusal(error, tuple(types))) from error
    missing = sorted(OmegaConf.missing_keys(typed) - text.keys())
    if missing:
        raise ConfigError(f"{missing[0]}: expected a value; got none. Say {missing[0]}=..")
    values = OmegaConf.to_container(typed)
    assert isinstance(values, dict)
    return kind(**{str(key): value for key, value in values.items()} | text)


def from_yaml(text: str) -> Config:
    """Build and check a `Config` from what `to_yaml` wrote.

    Raises:
        ValueError: the text is something else.
        ConfigError: as `from_mapping`.
    """
    values = OmegaConf.to_container(OmegaConf.create(text))
    if not isinstance(values, dict) or not values:
        raise ValueError(f"expected keys with values; got {values or 'nothing'}")
    return from_mapping({str(key): value for key, value in values.items()})


def load(path: Path) -> Config:
    """Read a run's `config.yaml`.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return from_yaml(path.read_text())
    except (OSError, ValueError, AssertionError, yaml.YAMLError, OmegaConfBaseException) as error:
        # OmegaConf asserts that there is a list or a group of keys.
        raise ConfigError(f"{path}: cannot be read as a config: {error}") from error


def keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Every key of a config, dotted, with those of every model and every data source."""
    families: dict[str, dict[str, type]] = {"model": {**MODELS}, "data": {**SOURCES}}
    found: list[str] = []
    for one in fields(kind):
        name = prefix + one.name
        found.append(name)
        part = one.default_factory
        for inner in families.get(name, {name: part}).values():
            if is_dataclass(inner) and isinstance(inner, type):
                found += keys(inner, f"{name}.")
    return sorted(set(found))


def unknown_keys(values: Mapping[str, Any]) -> list[str]:
    """Dotted keys that a config of this version does not have, in `values` as `to_yaml` writes
    them. Checks names alone, so it is quick; `from_mapping` checks everything."""
    kinds: dict[str, Mapping[str, type]] = {"model": MODELS, "data": SOURCES}
    unknown: list[str] = []
    for part in fields(Config):
        inner, kind = values.get(part.name), part.default_factory
        if not isinstance(inner, Mapping) or not is_dataclass(kind):
            continue
        if part.name in kinds:
            found = kinds[part.name].get(str(inner.get("name")))
            if found is None:
                unknown.append(f"{part.name}.name={inner.get('name')}")
                continue
            kind = found
        known = {one.name for one in fields(kind)}
        unknown += [f"{part.name}.{key}" for key in inner if key not in known]
    known = {part.name for part in fields(Config)}
    return [*(str(key) for key in values if key not in known), *unknown]


def to_yaml(config: Config) -> str:
    """The resolved config as YAML; `load` reads it back to an equal `Config`."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def shown(config: Config) -> dict[str, Any]:
    """The resolved config for others to read: every secret in it is covered."""
    return {key: covered(key, value) for key, value in asdict(config).items()}


def shown_yaml(config: Config) -> str:
    """The same as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(shown(config)))


def fingerprint(config: Config) -> str:
    """Hash of all that changes the numbers: the same on every rank and in every checkpoint."""
    values = {key: value for key, value in asdict(config).items() if key not in _FREE}
    values["data"] = {k: v for k, v in values["data"].items() if k not in _FREE_OF_DATA}
    # These two move the flush points, and with them the numbers under `delayed`.
    values["flush"] = [config.save_every, config.eval.every]
    values["wire_dtype"] = config.transport.wire_dtype  # of the transport, this one changes numbers
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
