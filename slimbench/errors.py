"""Every error that slimbench raises on purpose.

    SlimbenchError           one line: what was found and where, what was expected, what to do
    ├── UsageError           what was typed or passed: unknown names, values out of range
    ├── CohortError          the user's data: files, tables, splits, features
    ├── TextError            a text encoder that cannot be found or loaded
    ├── CheckpointError      weights that do not fit the encoder
    ├── PluginError          a plugin that cannot be imported or built
    │   └── ReducerError     a reducer that broke one of its promises during a run
    └── RecordError          a record or results folder that cannot be read or written

The command line prints the message of a SlimbenchError without a traceback and exits with 1;
anything else is a bug of ours and keeps its traceback.
"""


class SlimbenchError(Exception):
    """Base of all errors raised on purpose; its message is one line for a person."""


class UsageError(SlimbenchError, ValueError):
    """An argument that names nothing known or lies outside its range."""


class CohortError(SlimbenchError):
    """The user's data cannot be used as it is; the message names file, slide and remedy."""


class TextError(SlimbenchError):
    """A text encoder cannot be found, loaded, or does not fit."""


class CheckpointError(SlimbenchError):
    """A checkpoint does not hold the tensors that the encoder needs."""


class PluginError(SlimbenchError):
    """A plugin could not be imported or built; the message names it and its package."""


class ReducerError(PluginError):
    """A reducer broke a promise of its class; `promise` is its name in slimbench.conformance."""

    def __init__(self, message: str, promise: str = "") -> None:
        super().__init__(message)
        self.promise = promise


class RecordError(SlimbenchError):
    """A record or a results folder cannot be read or written."""
