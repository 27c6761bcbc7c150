"""What can be configured, what are the defaults, and which values are refused?

YAML in `conf/` picks values; the dataclasses here define them. `mach.configfile` turns a mapping
(composed by Hydra, or read from a run's `config.yaml`) into a `Config`; beyond that file nobody
meets an OmegaConf object. Every `__post_init__` refuses nonsense before any process starts.
"""

from mach.config.checks import one_of
from mach.config.consolidation import ConsolidateConfig
from mach.config.data import (
    Cifar10Config,
    DataConfig,
    DigitsConfig,
    FashionMnistConfig,
    HubConfig,
    IdxConfig,
    LabelledConfig,
    MnistConfig,
    NpzConfig,
    SequenceConfig,
    TextConfig,
    TokensConfig,
)
from mach.config.deploy import CascadeConfig, ExportConfig, ModelsConfig, PredictConfig, ServeConfig
from mach.config.generate import GenerateConfig
from mach.config.learning import HeadConfig, OptimConfig, PredictorConfig, StudentConfig
from mach.config.model import CustomConfig, GptConfig, MlpConfig, ModelConfig, ResNetConfig
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
    "CascadeConfig",
    "CheckpointConfig",
    "Cifar10Config",
    "Config",
    "ConsolidateConfig",
    "CustomConfig",
    "DataConfig",
    "DigitsConfig",
    "EvalConfig",
    "ExportConfig",
    "FashionMnistConfig",
    "FaultsConfig",
    "GenerateConfig",
    "GptConfig",
    "HeadConfig",
    "HubConfig",
    "IdxConfig",
    "LabelledConfig",
    "LaunchConfig",
    "MlpConfig",
    "MnistConfig",
    "ModelConfig",
    "ModelsConfig",
    "NpzConfig",
    "OptimConfig",
    "PredictConfig",
    "PredictorConfig",
    "ReportConfig",
    "ResNetConfig",
    "SequenceConfig",
    "ServeConfig",
    "StudentConfig",
    "TextConfig",
    "TokensConfig",
    "TransportConfig",
    "one_of",
]
