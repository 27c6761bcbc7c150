"""Which model does somebody mean by a folder or a file?

    MODEL              what it is
    a run folder       the chain, or the window that `window=` names, as last saved or consolidated
    a folder in it     of a consolidated window; or the file in it that has the weights
    an exported one    of format safetensors or onnx; or the file in it that has the weights

Nothing that could run code is unpickled: files that torch or Python would have to unpickle are
refused. But of a run of model=custom the function that its config names is called: it is as good as
who made it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from mach import runfolder
from mach.checkpoint import consolidated
from mach.config.window import Name, name_of
from mach.errors import CheckpointError, ConfigError, RunFolderError
from mach.export.export import from_raw
from mach.export.folder import DESCRIPTION, Exported, open_exported
from mach.inference import Window, open_model
from mach.paths import looked_at
from mach.signature import Signature, signature_of

_PICKLES = frozenset((".pt", ".pth", ".pt2", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib"))
_WEIGHTS = frozenset((".safetensors", ".onnx"))


@dataclass(frozen=True)
class Predictor:
    """A model that can be asked."""

    title: str
    """`window 1..3`, or `chain 0..3`."""
    source: Path
    """Where it is from."""
    signature: Signature
    module: nn.Module
    """From samples as the data has them [B, ..] to logits [N, C]; in evaluation mode."""
    exits: tuple[str, ...]
    """Names of its exits, the lowest first."""
    every: Callable[[Tensor], list[Tensor]]
    """To the logits of every exit; the last are those of `module`."""


def open_predictor(path: Path | str, window: str | None = None) -> Predictor:
    """Load a model.

    Args:
        path: of a run folder, an exported or a consolidated folder, or the weights in one.
        window: j..i or consolidated/j..i, of a run. None: the whole chain; of an exported or a
            consolidated folder, what it has.

    Raises:
        MachError: there is no such model, or it is damaged.
    """
    found = locate(path)
    if isinstance(found, Exported):
        check_window(found, window)
        return _of_one_exit(found.title, found.path, found.signature, found.load())
    run, name = open_model(found, window)
    signature = signature_of(run)
    if name.consolidated:  # its other heads know nothing of what its bodies have become
        module = from_raw(run.model(name), run)
        return _of_one_exit(name.title, run.run_dir, signature, module)
    exits = run.exits(name.first, name.last)
    whole = Window(exits.student, list(exits.bodies), exits.heads[-1])
    return Predictor(
        title=name.title,
        source=run.run_dir,
        signature=signature,
        module=from_raw(whole, run),
        exits=tuple(replace(name, last=k).title for k in range(name.first, name.last + 1)),
        every=from_raw(exits, run),
    )


def _of_one_exit(title: str, source: Path, signature: Signature, module: nn.Module) -> Predictor:
    return Predictor(title, source, signature, module, (title,), lambda x: [module(x)])


def locate(path: Path | str) -> Path | Exported:
    """The exported model that a path means; itself, if it means a run or a part of one.

    Raises:
        MachError: it means none.
    """
    with looked_at(str(path), RunFolderError):
        return _locate(Path(path).expanduser())


def _locate(path: Path) -> Path | Exported:
    if path.suffix in _PICKLES and not path.is_dir():
        raise CheckpointError(
            f"{path}: expected a run folder, or what `mach export` has written as safetensors or "
            f"onnx; got a {path.suffix} file, which torch or Python would have to unpickle: that "
            "can run any code in it, and is never done. Save the weights as safetensors."
        )
    if consolidated.run_of(path) is not None:
        return path
    if path.is_file() and (path.suffix in _WEIGHTS or path.name == DESCRIPTION):
        return open_exported(path.parent)
    if (path / runfolder.CONFIG).is_file():
        return path
    if (path / DESCRIPTION).is_file():
        return open_exported(path)
    found = "a file" if path.is_file() else "a folder" if path.is_dir() else "nothing there"
    raise RunFolderError(
        f"{path}: expected a run folder, which has {runfolder.CONFIG}, or an exported one, which "
        f"has {DESCRIPTION}; got {found}"
        f"{' with neither' if path.is_dir() else ''}. Give what `mach train` printed as Result, or "
        "what `mach export` wrote."
    )


def check_window(exported: Exported, window: str | None) -> None:
    """Refuse another window than the one that was exported."""
    if window is None:
        return
    has = exported.description
    own = Name(has["first"], has["last"], has.get("consolidated", False))
    if name_of(window) != own:
        raise ConfigError(
            f"window={window}: expected {own}, the only one that {exported.path} has. Leave it "
            "out, or give the run folder."
        )
