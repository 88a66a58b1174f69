# C types of respond.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport int64_t, uint64_t
from ratelimit.engine.check cimport Engine
from ratelimit.engine.outcome cimport Outcome
from ratelimit.engine.table cimport Table
from ratelimit.spop.ack cimport Acknowledge
from ratelimit.spop.notify cimport Message, NotifyParser

cdef int FETCHED, CHECKED, UNKNOWN, KEYLESS, _FEW, _ALLOW, _THROTTLE, _BLOCK


@cython.final
cdef class Responder:
    cdef readonly Engine engine
    cdef Acknowledge ack
    cdef NotifyParser parser
    cdef Outcome outcome
    cdef public bint fetching
    cdef readonly uint64_t unknown, keyless
    cdef readonly dict notes

    @cython.locals(parser=NotifyParser, engine=Engine, count=int, i=int)
    cpdef Py_ssize_t answer(
        self, bytes data, Py_ssize_t start, Py_ssize_t max_frame_size
    ) except -1
    @cython.locals(parser=NotifyParser, count=int, i=int, message=Message)
    cpdef int reserve(self, bytes data, Py_ssize_t start, Py_ssize_t max_frame_size) except -1
    @cython.locals(table=Table, i=int, message=Message)
    cdef void fetch(self, int count) noexcept
    cpdef bytes take(self)
    cdef int respond(self, Message message) except -1
    @cython.locals(ack=Acknowledge, outcome=Outcome, until=int64_t)
    cdef int acknowledge(self, Message message) except -1
    @cython.locals(end=Py_ssize_t, name=bytes)
    cdef int note(self, str problem, Message message) except -1
