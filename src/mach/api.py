"""How is a network trained, and a trained one loaded, from Python in a few lines?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mach.configfile import from_mapping
from mach.errors import ConfigError
from mach.introduce import default_run_dir

if TYPE_CHECKING:
    from torch import nn

    from mach.config import Config

Factory = Callable[..., "Sequence[nn.Module]"]


def fit(
    blocks: str | Factory,
    data: str | Path | Mapping[str, Any],
    *,
    processes: bool = True,
    **values: Any,
) -> dict[str, Any]:
    """Train a network, given as a function that returns its blocks, as a chain of components.

    Args:
        blocks: the function, or where it is: `package.module:function`. See
            `mach.config.CustomConfig` for what it returns.
        data: an .npz file, a folder in the MNIST layout, any other file for its bytes; or the
            `data` part of a config, as in {"name": "digits"}.
        processes: True starts a process for each component, as `mach train` does. They import the
            function, so it has to be in a module, in the working directory or on PYTHONPATH: not in
            a notebook. Where that module calls `fit` itself, it does so under
            `if __name__ == "__main__":`. False trains the chain in this process, with the same
            numbers and as fast as one process is, and keeps nothing: there is no run folder.
        values: of the config, as in components=4, delay=1, optim={"lr": 1e-3} (or, as on a command
            line, **{"optim.lr": 1e-3}); those of `model` beside the function as in
            model={"balance": "time"}.

    Returns:
        The run's result: `chain`, `windows`, `samples_per_s` and more.

    Raises:
        MachError: something was refused, or a component fell.
    """
    from mach.models.factory import refuse_if_imported

    refuse_if_imported()
    config = _config(blocks, data, processes, values)
    if not processes:
        return _fit_here(config)
    from mach.launcher.app import launch
    from mach.launcher.folder import with_folder

    return dict(launch(with_folder(config, default_run_dir(datetime.now()))))


def load(
    path: str | Path, window: str | tuple[int, int] | None = None, *, device: str = "cpu"
) -> nn.Module:
    """A trained model as one plain module, in evaluation mode: `mach.load("runs/mine")(x)`.

    Args:
        path: a run folder, or what `mach export` (format=safetensors or onnx) or `mach consolidate`
            has written: the folder, or the file with the weights in it. Nothing that could run code
            is unpickled; but of a run of model=custom the function that its config names is called.
        window: (j, i) or "j..i": student j, bodies j to i, head i; (0, i) is the chain.
            "consolidated/j..i": what `mach consolidate` has made of it. None: the whole chain of a
            run, and of another folder what it has.
        device: where it goes; onnx stays on the CPU.

    Returns:
        A module from samples [B, ..] as the data has them to logits [N, C]: N is B, or for a model
        that predicts a token after each of T, B * T. Text is int64 tokens. Features are
        standardised inside; how is read from the run's data, which must still be there, or from
        the exported folder, which has it.

    Raises:
        MachError: there is no such model, or its files are damaged or of another network.
    """
    from mach.predictor import open_predictor

    return open_predictor(path, _window(window)).module.to(device)


def _fit_here(config: Config) -> dict[str, Any]:
    _check_leaves_nothing(config)
    import torch

    from mach.launcher.preflight import prepare
    from mach.rank import device_kind
    from mach.trainer import Oracle
    from mach.trainer.measure import threads_of_a_rank

    config, dataset = prepare(config, config.components)
    with threads_of_a_rank(config, config.components):
        return Oracle(config, dataset, device=torch.device(device_kind(config))).run()


def _check_leaves_nothing(config: Config) -> None:
    """Refuse what takes a run folder, or processes."""
    if config.schedule == "free":
        raise ConfigError(
            "mach.fit: expected schedule=sync or delayed in one process, where nobody is late; "
            "got free. Set processes=True, or see mach.trainer.Simulation."
        )
    asked = {
        "out": config.out,
        "resume": config.resume,
        "checkpoint.every": config.checkpoint.every,
        "report.wandb": config.report.wandb,
        "report.tensorboard": config.report.tensorboard,
        "report.trace": config.report.trace,
        "faults.kind": config.faults.kind,
        "launch.name": config.launch.name,
    }
    for key, value in asked.items():
        if value not in (None, False, "auto", "off", "none"):
            raise ConfigError(
                f"mach.fit: {key}: expected none with processes=False, which has no processes and "
                f"no run folder; got {value}. Set processes=True; launch={{'name': 'inprocess'}} "
                "then trains in this process and keeps all that a run keeps."
            )


def _window(window: str | tuple[int, int] | None) -> str | None:
    if window is None or isinstance(window, str):
        return window
    if isinstance(window, tuple) and [type(k) for k in window] == [int, int]:
        return "{}..{}".format(*window)
    raise ConfigError(f'mach.load: window: expected (j, i) or "j..i"; got {window!r}')


def _config(
    blocks: str | Factory,
    data: str | Path | Mapping[str, Any],
    processes: bool,
    values: Mapping[str, Any],
) -> Config:
    place = blocks if isinstance(blocks, str) else _place_of(blocks)
    if processes and place.startswith("__main__:"):
        raise ConfigError(
            f"mach.fit: expected a function in a module that other processes can import; got "
            f"{place.partition(':')[2]} of the program itself. Move it into a file, or set "
            "processes=False."
        )
    nested = _nested(values)
    model = {"name": "custom", "factory": place, **nested.get("model", {})}
    return from_mapping({**nested, "model": model, "data": _source(data)})


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with {"optim": {"lr": 1}} for {"optim.lr": 1}, as a command line says it."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *groups, last = key.split(".")
        part = nested
        for group in groups:
            part = part.setdefault(group, {})
        if isinstance(value, Mapping):
            part.setdefault(last, {}).update(value)
        else:
            part[last] = value
    return nested


def _place_of(function: Factory) -> str:
    name = getattr(function, "__qualname__", repr(function))
    if not name.isidentifier():  # a lambda, a method, or a function inside a function
        raise ConfigError(
            f"mach.fit: expected a function at the top of a module, which can be found by its "
            f"name; got {name}. Define it with `def` at the top."
        )
    return f"{function.__module__}:{name}"


def _source(data: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(data, Mapping):
        arrays = [key for key, value in data.items() if hasattr(value, "__array__")]
        if arrays:
            raise ConfigError(
                f"mach.fit: data: expected a file, which all components open; got {arrays[0]} as "
                "an array. Save it: numpy.savez('mine.npz', x_train=.., y_train=.., x_test=.., "
                "y_test=..), and say 'mine.npz'."
            )
        return dict(data)
    path = Path(data)
    name = "npz" if path.suffix == ".npz" else "idx" if path.is_dir() else "text"
    return {"name": name, "path": str(path)}
