"""Every error that ratelimit raises on purpose.

RatelimitError
├── ConfigError      a file or a variable says something impossible
├── LogError         an access log can't be read
├── ApiError         the HTTP API can't be reached, or refuses
├── StartError       what is needed to run is missing: a free address, HAProxy
├── StoreError       the store can't be used now; says whether what was asked can have happened
└── SpopError        a peer broke the SPOP; carries the status that it is told
"""

from __future__ import annotations


class RatelimitError(Exception):
    """Base of all others; its text is fit to be shown to an operator."""


class ConfigError(RatelimitError):
    """The configuration is wrong.

    ``problems`` holds one ``source: field: what is wrong`` for each mistake, all of them at once.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class LogError(RatelimitError):
    """An access log can't be read, or is of no known format."""


class ApiError(RatelimitError):
    """The API of a node gave no answer, or one that is an error.

    ``status`` is the HTTP status, 0 without one.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class StartError(RatelimitError):
    """Something outside of the configuration keeps the program from starting."""


class StoreError(RatelimitError):
    """The store can't be used now, or gave no answer in time.

    ``unsent`` is true if nothing of what was asked can have happened, so that it may be asked
    again without being counted twice.
    """

    def __init__(self, message: str, unsent: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent


class SpopError(RatelimitError):
    """The peer broke the protocol, and the connection ends.

    ``status`` is the code sent in AGENT-DISCONNECT (SPOE.txt, sections 3.2.9 and 3.5).
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
