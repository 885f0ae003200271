"""The errors a user meets: one sentence that says what is wrong, where, and what to do."""


class WatchrankError(Exception):
    """Base of every error that watchrank raises on purpose; `exit_code` is the command line's."""

    exit_code = 1


class InputError(WatchrankError, ValueError):
    """Bad input: a file, a column, a setting or an argument. Nothing was written."""

    exit_code = 2


class StorageError(WatchrankError, OSError):
    """The disk is full, or a place cannot be written; what was there before is as it was."""


class AbsentError(InputError):
    """The log lacks what an optional stage needs; the other stages do without."""


class ValidationError(WatchrankError):
    """The data broke a rule of its suite; the report names the rule and the rows."""

    exit_code = 3


class ParityError(WatchrankError):
    """The exported graph answers differently from the trained model."""

    exit_code = 4


class DeploymentError(WatchrankError):
    """The server did not take up the release; what served before serves on."""

    exit_code = 5


class GateError(WatchrankError):
    """A model is not better than what it must beat."""

    exit_code = 6


class JobError(WatchrankError):
    """Work that was handed to other processes or to a cluster failed; its log stands above."""
