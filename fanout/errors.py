"""The exceptions a user of fanout can meet.

    FanoutError
    ├── UsageError            exit code 2: the command, a file or the configuration is wrong
    │   ├── ConfigError       fanout.toml or FANOUT_* cannot be used
    │   ├── UnknownTask       no task kind of that name is installed
    │   └── PluginError       a task kind is installed but cannot be imported
    ├── Unavailable           exit code 2: Redis or an endpoint does not answer
    ├── Stalled               exit code 3: a job gives no records, and was to be left then
    └── JobError              the job is unknown, or in a state that forbids the call
        └── Collected         somebody else collects it

How one request to a model fails is a different matter: see `fanout.failures`.
"""


class FanoutError(Exception):
    """Something fanout refuses or cannot do; the message is one sentence for a person.

    Attributes:
        has_lines: whether lines of a log, which have been made safe, follow the sentence.
    """

    has_lines = False


class UsageError(FanoutError):
    """The command, a file or the configuration is wrong, and a person has to mend it."""


class ConfigError(UsageError):
    """fanout.toml or a FANOUT_* variable cannot be used."""


class UnknownTask(UsageError):
    """No task kind of that name is installed."""


class PluginError(UsageError):
    """A task kind is installed but cannot be imported or does not follow the protocol."""


class Unavailable(FanoutError):
    """Redis or an endpoint does not answer."""


class Stalled(FanoutError):
    """A job gives no records although items are open, and it was to be left then."""


class JobError(FanoutError):
    """The job is unknown, or in a state that forbids the call."""


class Collected(JobError):
    """Another process collects the job, and only one can."""
