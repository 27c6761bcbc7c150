"""What can go wrong, and the exit code each mistake ends a process with.

Exit code 2: refused before training starts (config, data, run folder, checkpoint).
Exit code 1: went wrong while running (a neighbour died, the loss diverged, the disk filled).
"""


class MachError(Exception):
    """Base of every error mach raises on purpose. Its text alone must be enough for the user."""

    exit_code = 1


class ConfigError(MachError):
    """A value of the config that cannot work, found before any process starts."""

    exit_code = 2


class DataError(MachError):
    """The data is missing, damaged, or not what the config says it is."""

    exit_code = 2


class FetchError(MachError):
    """Something could not be fetched from the network. Its text continues a sentence of whoever
    needed it."""


class RunFolderError(MachError):
    """The run folder cannot be written, or already belongs to another run."""

    exit_code = 2


class FolderInUseError(RunFolderError):
    """Somebody else runs in the run folder now."""


class CheckpointError(MachError):
    """A checkpoint that is damaged, incomplete, or of another network."""

    exit_code = 2


class ConsolidationError(MachError):
    """A window that training together did not make better."""


class ExportError(MachError):
    """A model that cannot be written in a format, or that answers otherwise there."""


class InputError(MachError):
    """What a model is asked about is not what it takes."""

    exit_code = 2


class ScheduleError(MachError):
    """Actions that wait for each other in a circle. Ours to mend, never the user's."""


class ChannelError(MachError):
    """An edge between two components could not be built, or broke its contract."""


class PeerLostError(ChannelError):
    """The neighbour at the other end of an edge is gone. A consequence, never the first cause."""


class ChannelTimeoutError(ChannelError):
    """A neighbour stayed silent for longer than the deadline allows."""


class DivergedError(MachError):
    """The loss or the gradient is no longer finite."""


class RankFailedError(MachError):
    """A rank ended the run; the text names it and says why."""


class OutOfMemoryError(MachError):
    """There is no memory left, of the machine or of its GPU."""


class LeaseError(MachError):
    """A job of a sweep did not get its part of the machine in time."""


class SaveError(MachError):
    """A checkpoint could not be written, as on a full disk. Training can go on without it."""


class StoppedError(MachError):
    """Somebody asked this process to stop, and it has saved what it had."""

    exit_code = 143
