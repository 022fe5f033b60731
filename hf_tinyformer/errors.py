"""Every error a user can cause, as one tree.

    TinyFormerError
    ├── ConfigError      a setting is wrong, or two settings contradict each other
    ├── DataError        a text, a file or a data set cannot be used as it is
    ├── ArtifactError    a folder a stage left behind is missing, damaged or of another run
    ├── TrainingError    training cannot go on
    ├── ExportError      a checkpoint cannot be written in another format
    └── HubError         the Hub refused, or could not be reached

Each message is one line: what is set and its value, the rule with its other number, what to change.
The model room raises ValueError and TypeError instead, since its files travel without this one.
"""


class TinyFormerError(Exception):
    """Something the user can put right. Its message is shown without a traceback."""


class ConfigError(TinyFormerError):
    """A setting is wrong, or two settings contradict each other."""


class DataError(TinyFormerError):
    """A text, a file or a data set cannot be used as it is."""


class ArtifactError(TinyFormerError):
    """A folder a stage left behind is missing, damaged or of another run."""


class TrainingError(TinyFormerError):
    """Training cannot go on."""


class ExportError(TinyFormerError):
    """A checkpoint cannot be written in another format."""


class HubError(TinyFormerError):
    """The Hub refused, or could not be reached."""
