# C types of check.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport int64_t, uint64_t
from ratelimit.engine.sharing cimport Exchange
from ratelimit.engine.key cimport Key
from ratelimit.engine.networks cimport Networks
from ratelimit.engine.outcome cimport Outcome
from ratelimit.engine.query cimport Query
from ratelimit.engine.retry_after cimport RetryAfter
from ratelimit.engine.rule cimport Rule
from ratelimit.engine.table cimport Table

cdef int _THROTTLE, _BLOCK, DENYLIST
cdef uint64_t SIGHTS
cdef int ADDRESS, HOT, TELL, LISTED_BITS, _MINUTE_SHIFT, _GENERATION_SHIFT
cdef uint64_t NONE, MIXED, ALLOW, DENY, LOOK, APART, _MAX_MINUTE, _MAX_GENERATION, _DENY_WAIT
cdef uint64_t M32, M64
cdef uint64_t SECOND, MAPPED


@cython.final
cdef class Engine:
    cdef readonly list rules, exchanges
    cdef readonly Table table
    cdef RetryAfter retry_after
    cdef readonly Networks lists, barred
    cdef object strike
    cdef readonly uint64_t now, checks
    cdef readonly uint64_t shared, refresh, index
    cdef readonly uint64_t[::1] seen
    cdef readonly uint64_t sights
    cdef bint listing
    cdef uint64_t generation, minute_start, minute_id, minute, hi, lo
    cdef public bint urgent
    cdef public int64_t ahead
    cdef readonly Key key
    cdef Query query
    cdef Outcome outcome

    cpdef relist(self)
    cpdef begin_minute(self)
    cpdef void at(self, uint64_t now) noexcept
    @cython.locals(query=Query)
    cpdef int ask(self, Rule rule, bytes key, uint64_t hits) except -1
    @cython.locals(table=Table)
    cdef void aim(self, Query query) noexcept
    @cython.locals(
        table=Table, rule=Rule, slot=Py_ssize_t, until=uint64_t, listed=uint64_t, sure=bint,
        apart=bint,
    )
    cdef int judge(self, Query query, Outcome outcome) except -1
    @cython.locals(rule=Rule, counted=uint64_t, exchange=Exchange, place=uint64_t)
    cdef int count(self, Query query, Outcome outcome, Py_ssize_t slot, bint apart) except -1
    @cython.locals(
        table=Table, rule=Rule, mark=uint64_t, until=uint64_t, text=bytes, exchange=Exchange,
        wait=uint64_t,
    )
    cdef int exceed(
        self, Query query, Outcome outcome, Py_ssize_t slot, bint apart, uint64_t place
    ) except -1
    @cython.locals(at=Py_ssize_t)
    cdef void sight(self, Query query) noexcept
    cpdef Py_ssize_t slot(self, Rule rule, bytes key) except -1
    @cython.locals(table=Table, exchange=Exchange)
    cpdef int hold(self, Rule rule, Py_ssize_t slot, uint64_t until) except -1
    @cython.locals(table=Table, exchange=Exchange, counted=uint64_t, place=uint64_t)
    cpdef uint64_t hits(self, Rule rule, Py_ssize_t slot) except? 7777777777777777777
    @cython.locals(table=Table, mark=uint64_t)
    cdef uint64_t listed(self, Query query, Py_ssize_t slot) noexcept
    @cython.locals(
        rule=Rule, hi=uint64_t, lo=uint64_t, last_hi=uint64_t, last_lo=uint64_t,
        listed=uint64_t, barred=uint64_t,
    )
    cdef uint64_t classify(self, Query query) noexcept
    cdef void mask(self, Rule rule, int kind, uint64_t hi, uint64_t lo) noexcept
    @cython.locals(ident=uint64_t)
    cdef Py_ssize_t visit(self, Query query) except -1
    @cython.locals(rule=Rule, slot=Py_ssize_t, exchange=Exchange)
    cdef int announce(self, Query query) except -1
