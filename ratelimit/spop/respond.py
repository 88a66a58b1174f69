"""Answers NOTIFY frames (SPOE.txt, sections 3.2.6, 3.2.7 and 3.4).

The engine checks each message of a read, in order; after the last message of a frame, its ACK is
written. Other frames stop the pass and are left to ``spop.connection``.
"""

from __future__ import annotations

from ratelimit.engine.check import Engine
from ratelimit.engine.layout import FETCHED
from ratelimit.engine.outcome import Outcome
from ratelimit.model import Verdict
from ratelimit.spop.ack import Acknowledge
from ratelimit.spop.constants import CHECKED, KEYLESS, UNKNOWN
from ratelimit.spop.notify import Message, NotifyParser

# Of C's int type when compiled.
_ALLOW = int(Verdict.ALLOW)
_THROTTLE = int(Verdict.THROTTLE)
_BLOCK = int(Verdict.BLOCK)

_FEW = 3  # messages; below this number, prefetching does not pay

_MAX_NOTES = 64
_MAX_NOTE = 64  # bytes


class Responder:
    """Reads NOTIFY frames, asks the engine, and writes ACK frames; connections share one responder.

    Attributes:
        fetching: whether the table is prefetched before the checks; affects only the speed.
        unknown: number of messages whose name is no limit.
        keyless: number of messages without a valid key or valid hits.
        notes: the first of these as (problem, name), for the log.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ack = Acknowledge()
        self.parser = NotifyParser(engine)
        self.outcome = Outcome(engine.rules[0])  # of the frame so far
        # Plain Python spends its time on objects, not on the table.
        self.fetching = not __file__.endswith(".py")
        self.unknown = 0
        self.keyless = 0
        self.notes: dict[tuple[str, str], bool] = {}

    def answer(self, data: bytes, start: int, max_frame_size: int) -> int:
        """Answer the NOTIFY frames of ``data[start:]``; return where the pass stopped.

        The pass stops at anything that is not a whole NOTIFY frame, or when the output is full:
        call ``take()``, then continue if there was progress. Raises FrameError; ``take()`` still
        returns the answers to the frames before it.
        """
        parser = self.parser
        engine = self.engine
        parser.begin(data, start, max_frame_size)
        self.outcome.clear()
        count = FETCHED
        while count == FETCHED:
            count = parser.read(engine.rules, self.ack.room())
            if self.fetching and count >= _FEW:
                self.fetch(count)
            for i in range(count):
                self.respond(parser.messages[i])
        if parser.error is not None:
            raise parser.error
        return parser.pos

    def reserve(self, data: bytes, start: int, max_frame_size: int) -> None:
        """Announce to the store the messages that ``answer()`` will answer.

        A protocol error stops it; ``answer()`` reports the error.
        """
        parser = self.parser
        parser.begin(data, start, max_frame_size)
        count = FETCHED
        while count == FETCHED:
            count = parser.read(self.engine.rules, len(data))
            for i in range(count):
                message = parser.messages[i]
                if message.state == CHECKED:
                    self.engine.announce(message)

    def fetch(self, count: int) -> None:
        """Prefetch the table entries of the messages, all at once.

        The table is larger than any cache; without prefetching, each check waits for memory longer
        than it computes. These reads do not depend on each other, so a processor does many in
        parallel.
        """
        table = self.engine.table
        for i in range(count):
            message = self.parser.messages[i]
            if message.state == CHECKED:
                table.expect(message.base, message.tag)
        table.fetch()

    def take(self) -> bytes:
        """Return the ACK frames written since the last call."""
        return self.ack.take()

    def respond(self, message: Message) -> None:
        """Check a message; write the ACK if its frame ends with it."""
        if message.state == CHECKED:
            message.rule.asked += 1
            self.engine.judge(message, self.outcome)
        elif message.state == UNKNOWN:
            self.unknown += 1
            self.note("unknown message", message)
        elif message.state == KEYLESS:
            self.keyless += 1
            self.note("no usable key or hits", message)
        if message.ends:
            self.acknowledge(message)
            self.outcome.clear()

    def acknowledge(self, message: Message) -> None:
        ack = self.ack
        outcome = self.outcome
        ack.begin(self.parser.data, message.ids, message.ids_size)
        if outcome.verdict != _ALLOW:
            until = outcome.until
            if until > 0:
                # HAProxy compares it with its own clock, which is this machine's.
                until = max(until - self.engine.ahead, 1)
            if outcome.verdict == _THROTTLE:
                ack.refuse(b"throttle", outcome.wait, 0)
            elif outcome.verdict == _BLOCK:
                ack.refuse(b"block", outcome.wait, until)
            else:
                ack.refuse(b"denylist", outcome.wait, 0)
            ack.tell(outcome.rule, 0, outcome.wait)
        else:
            if outcome.told:
                ack.tell(outcome.rule, outcome.left, outcome.wait)
            if outcome.shadow == _BLOCK:
                ack.watch(b"block:", outcome.shadow_rule)
            elif outcome.shadow == _THROTTLE:
                ack.watch(b"throttle:", outcome.shadow_rule)
        ack.end()

    def note(self, problem: str, message: Message) -> None:
        """Store the name of a message that could not be checked, for the log."""
        if len(self.notes) < _MAX_NOTES:
            end = message.name + min(message.name_size, _MAX_NOTE)
            name = self.parser.data[message.name : end]
            self.notes.setdefault((problem, name.decode("ascii", "backslashreplace")), False)
