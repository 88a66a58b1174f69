# C types of busiest.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.engine.rule cimport Rule
from ratelimit.engine.table cimport Table

cdef int WAYS, SET_WORDS, SLOT_WORDS, STAMP_BITS, SUM, UNTIL
cdef uint64_t SECOND, _SCALE, _RECENT, M32


@cython.final
cdef class Scan:
    cdef readonly Table table
    cdef readonly list known, rules
    cdef Py_ssize_t count, place, size
    cdef bint blocked
    cdef uint64_t horizon
    cdef uint64_t[::1] scores, slots, factors

    @cython.locals(
        table=Table, rule=Rule, end=Py_ssize_t, base=Py_ssize_t, slot=Py_ssize_t, way=int,
        tag=uint64_t, stamp=uint64_t, score=uint64_t,
    )
    cpdef int slice(self, Py_ssize_t sets, uint64_t now) except -1
    @cython.locals(
        table=Table, index=Py_ssize_t, until=uint64_t, factor=uint64_t, most=uint64_t,
    )
    cdef uint64_t score(self, Py_ssize_t slot) noexcept
    @cython.locals(at=Py_ssize_t, above=Py_ssize_t, below=Py_ssize_t)
    cdef void keep(self, uint64_t score, Py_ssize_t slot) noexcept
    @cython.locals(score=uint64_t, i=Py_ssize_t, count=Py_ssize_t)
    cpdef list order(self)
    @cython.locals(ident=uint64_t, index=Py_ssize_t)
    cpdef object busy(self, Py_ssize_t slot)
