# C types of reported.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.engine.check cimport Engine
from ratelimit.engine.outcome cimport Outcome
from ratelimit.engine.query cimport Query
from ratelimit.engine.retry_after cimport RetryAfter
from ratelimit.engine.rule cimport Rule
from ratelimit.engine.sharing cimport Exchange
from ratelimit.engine.table cimport Table

cdef int HOT, _COARSE
cdef uint64_t RING, NONE


@cython.final
cdef class Reported:
    cdef Engine engine
    cdef RetryAfter waits
    cdef uint64_t newest, oldest, all

    @cython.locals(
        engine=Engine, table=Table, rule=Rule, slot=Py_ssize_t, place=uint64_t, exchange=Exchange,
        parts=uint64_t, age=uint64_t, now=uint64_t, newer=uint64_t, placed=uint64_t,
        here=uint64_t,
    )
    cdef void spread(self, Query query, uint64_t begin, uint64_t end) except *
    @cython.locals(table=Table, rule=Rule, slot=Py_ssize_t, ident=uint64_t)
    cdef uint64_t judge(self, Query query, Outcome outcome) except? 7777777777777777777
    @cython.locals(engine=Engine, table=Table, place=uint64_t, exchange=Exchange)
    cdef uint64_t free(self, Rule rule, Py_ssize_t slot) except? 7777777777777777777
    @cython.locals(length=uint64_t)
    cdef uint64_t newer(self, uint64_t age) noexcept
