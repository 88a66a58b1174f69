# C types of retry_after.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from ratelimit.engine.rule cimport Rule
from ratelimit.engine.table cimport Table

cdef int FIRST_COUNTER, SUM
cdef uint64_t RING, SECOND, _SMALL


@cython.final
cdef class RetryAfter:
    cdef Table table
    cdef uint32_t[::1] none

    cdef uint64_t alone(self, Py_ssize_t slot, Rule rule) noexcept
    cdef uint64_t shared(
        self, Py_ssize_t slot, Rule rule, uint32_t[::1] others, Py_ssize_t start
    ) noexcept
    @cython.locals(
        table=Table,
        first=Py_ssize_t, left=uint64_t, at=uint64_t, parts=uint64_t,
        until=uint64_t, counter=uint64_t, room=uint64_t, spare=uint64_t,
    )
    cdef uint64_t exact(
        self, Py_ssize_t slot, Rule rule, uint32_t[::1] others, Py_ssize_t start
    ) noexcept
