# C types of ack.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.engine.rule cimport Rule
from ratelimit.wire.writer cimport Writer

cdef int _ACK, _FIN, MAX_ACK
cdef bytes _DENY, _REASON, _RETRY_AFTER, _BLOCK_UNTIL, _LIMIT, _REMAINING, _RESET, _WINDOW
cdef bytes _NO_WINDOW, _LIMIT_NAME, _SHADOW


@cython.final
cdef class Acknowledge:
    cdef Writer writer
    cdef Py_ssize_t frame

    cpdef Py_ssize_t room(self) noexcept
    cpdef bytes take(self)
    @cython.locals(writer=Writer)
    cdef void begin(self, bytes data, Py_ssize_t ids, Py_ssize_t ids_size) noexcept
    cdef void end(self) noexcept
    cdef void refuse(self, bytes reason, uint64_t wait, uint64_t until) noexcept
    cdef int tell(self, Rule rule, uint64_t remaining, uint64_t reset) except -1
    @cython.locals(writer=Writer)
    cdef void watch(self, bytes verdict, Rule rule) noexcept
    @cython.locals(writer=Writer, start=Py_ssize_t)
    cdef int describe(self, Rule rule) except -1
    cdef void head(self, bytes head) noexcept
    cdef void integer(self, bytes head, uint64_t value) noexcept
