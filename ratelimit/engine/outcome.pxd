# C types of outcome.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.engine.rule cimport Rule

cdef int _ALLOW


@cython.final
cdef class Outcome:
    cdef int verdict, shadow
    cdef Rule rule, shadow_rule
    cdef uint64_t wait, until, left
    cdef bint told

    cdef void clear(self) noexcept
    @cython.locals(reports=bint)
    cdef void allow(self, Rule rule, uint64_t left, uint64_t known) noexcept
    cdef void refuse(
        self, Rule rule, int verdict, uint64_t wait, uint64_t until, bint sure
    ) noexcept
