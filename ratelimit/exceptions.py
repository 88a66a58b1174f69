"""The exceptions of ratelimit.

RatelimitError
├── ConfigError      the configuration is invalid
├── ApiError         the HTTP API is unreachable or answered with an error
├── StartError       a requirement is missing: a free address, HAProxy
├── StoreError       the store is not available; ``unsent`` says that nothing was done
└── FrameError       a peer sent bytes that break the protocol of the connection
    ├── SpopError    the same, with the status for AGENT-DISCONNECT
    ├── PeersError   the same, with the status or error for a peer of HAProxy
    └── TableError   a table of a peer can't be read; the session goes on without the table
"""

from __future__ import annotations


class RatelimitError(Exception):
    """Base class; the text is suitable for operators.

    Raised itself if no caller has to tell the error from others.
    """


class ConfigError(RatelimitError):
    """The configuration is invalid.

    ``problems`` has one line ``source: field: problem`` for each mistake.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ApiError(RatelimitError):
    """The API of a node gave no answer or an error.

    ``status`` is the HTTP status, 0 without an answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class StartError(RatelimitError):
    """The program can't start for a reason outside of its configuration."""


class StoreError(RatelimitError):
    """The store is not available or did not answer in time.

    ``unsent`` is true if the store has certainly done nothing, so that a retry counts nothing
    twice.
    """

    def __init__(self, message: str, unsent: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent


class FrameError(RatelimitError):
    """A peer sent bytes that break the protocol; the connection must be closed.

    ``status`` is the code with which the protocol names the error; 0 for its general one.
    """

    status = 0


class SpopError(FrameError):
    """A peer violated SPOP; ``status`` is the code for AGENT-DISCONNECT (SPOE.txt, section 3.5)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class PeersError(FrameError):
    """A peer violated the peers protocol, or refused this side.

    ``status`` is a code of the handshake (300 to 504), or the type of an error message: 0 for a
    protocol error, 1 for a message that is too long.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TableError(FrameError):
    """The table ``name`` of a peer can't be read; ``number`` is its id in the session."""

    def __init__(self, number: int, name: str, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.name = name
