"""What can be configured, what are the defaults, and which values are refused?

YAML in `conf/` picks values; the dataclasses here define them. `mach.configfile` turns a mapping
(composed by Hydra, or read from a run's `config.yaml`) into a `Config`; beyond that file nobody
meets an OmegaConf object. Every `__post_init__` refuses nonsense before any process starts.
"""

from mach.config.checks import one_of
from mach.config.data import DataConfig, DigitsConfig, IdxConfig, NpzConfig, TextConfig
from mach.config.learning import HeadConfig, OptimConfig, StudentConfig
from mach.config.model import MlpConfig, ModelConfig
from mach.config.run import Config
from mach.config.running import (
    CheckpointConfig,
    EvalConfig,
    FaultsConfig,
    LaunchConfig,
    ReportConfig,
    TransportConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DigitsConfig",
    "EvalConfig",
    "FaultsConfig",
    "HeadConfig",
    "IdxConfig",
    "LaunchConfig",
    "MlpConfig",
    "ModelConfig",
    "NpzConfig",
    "OptimConfig",
    "ReportConfig",
    "StudentConfig",
    "TextConfig",
    "TransportConfig",
    "one_of",
]
