# C types of counts.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from ratelimit.engine.check cimport Engine
from ratelimit.engine.key cimport Key
from ratelimit.engine.outcome cimport Outcome
from ratelimit.engine.query cimport Query
from ratelimit.engine.reported cimport Reported
from ratelimit.engine.rule cimport Rule
from ratelimit.engine.table cimport Table
from ratelimit.peers.baselines cimport Baselines
from ratelimit.peers.listener cimport Listener
from ratelimit.peers.sources cimport Feed, Origin, Source
from ratelimit.peers.told cimport Told
from ratelimit.peers.updates cimport UpdateReader

cdef int ADDRESS, TEXT, FORMER, OPEN, REQUESTS, BYTES_IN, _REQUESTS, _REFUSALS, _BYTES, _COUNTERS, _OPEN
cdef int _IPV4, _IPV6, _TABLE, _UPDATE, _INCREMENTAL, _TIMED, _INCREMENTAL_TIMED, _ONE_BYTE
cdef int FETCHED, _SHORTEST, _CLOCK, _ERRORS
cdef uint64_t M32, SECOND, _MILLISECOND, _PAST, _GRACE, _OVERLAP, _HOLD, _DENIED, _LEAST, _PART
cdef uint64_t _MOST, _PROMPT


cdef class Counts(Listener):
    cdef readonly Engine engine
    cdef readonly Baselines baselines
    cdef readonly Told told
    cdef readonly dict origins
    cdef dict tables
    cdef Reported reported
    cdef Outcome outcome
    cdef readonly uint64_t since
    cdef readonly uint64_t clock
    cdef public bint clocked, translated
    cdef uint64_t millisecond, hi, lo
    cdef int kind
    cdef uint64_t[::1] gains
    cdef public bint fetching
    cdef bytes fetched
    cdef Py_ssize_t fetched_to

    cpdef void at(self, uint64_t now, uint64_t since) noexcept
    @cython.locals(owner=object, source=Source)
    cpdef object on_update(self, object session, object definition, UpdateReader update)
    cpdef object on_entry(self, object session, object definition, UpdateReader update)
    @cython.locals(
        origin=Origin, base=Baselines, slot=Py_ssize_t, begin=uint64_t, fresh=bint, known=bint,
        idle=uint64_t, feed=Feed, now=uint64_t, stamp=uint64_t, ahead=bint, first=bint,
    )
    cdef void count(self, Source source, UpdateReader update) except *
    @cython.locals(
        p='const unsigned char *', size=Py_ssize_t, table=Table, feed=Feed, ident=uint64_t,
        key=Py_ssize_t, end=Py_ssize_t, count=int, hi=uint64_t, lo=uint64_t, i=int,
    )
    cdef int fetch(self, Source source, UpdateReader update) except -1
    @cython.locals(p='const unsigned char *', hi=uint64_t, lo=uint64_t, i=int, key=Key)
    cdef int find(self, Source source, UpdateReader update) except -1
    @cython.locals(origin=Origin, idle=uint64_t)
    cdef bint gone(self, Source source, uint64_t stamp, uint64_t held) noexcept
    @cython.locals(place=int)
    cdef bint is_new(self, Source source, UpdateReader update) noexcept
    @cython.locals(place=int)
    cdef bint is_recent(self, Source source, UpdateReader update) noexcept
    cdef uint64_t lateness(self) noexcept
    @cython.locals(
        base=Baselines, i=int, at=Py_ssize_t, new=uint64_t, old=uint64_t, place=int,
        former=uint64_t, overwritten=bint,
    )
    cdef void gain(
        self, Source source, UpdateReader update, Py_ssize_t slot, bint fresh, bint known
    ) noexcept
    @cython.locals(query=Query, key=Key)
    cdef bint aim(self, Source source, Feed feed, UpdateReader update) noexcept
    @cython.locals(query=Query, hits=uint64_t, refused=uint64_t)
    cdef void add(
        self, Source source, Feed feed, UpdateReader update, uint64_t begin
    ) except *
    @cython.locals(
        query=Query, now=uint64_t, age=uint64_t, period=uint64_t, place=int, last=uint64_t,
        start=uint64_t, past=uint64_t,
    )
    cdef void seed(self, Source source, Feed feed, UpdateReader update) except *
    @cython.locals(
        rule=Rule, allowed=uint64_t, throttled=uint64_t, blocked=uint64_t, denied=uint64_t, end=uint64_t, ident=uint64_t,
        query=Query,
    )
    cdef int judge(
        self, Feed feed, UpdateReader update, uint64_t passed, uint64_t refused
    ) except -1
    @cython.locals(told=uint64_t, ident=uint64_t)
    cdef int tell(self, Feed feed, UpdateReader update, uint64_t end, uint64_t slack) except -1
    @cython.locals(size=Py_ssize_t)
    cdef int send(self, uint64_t ident, UpdateReader update, uint64_t end) except -1
    @cython.locals(
        now=uint64_t, told=uint64_t, ident=uint64_t, client=uint64_t, end=uint64_t,
        slot=Py_ssize_t, query=Query,
    )
    cdef void limit_open(self, Source source, Feed feed, UpdateReader update) except *
    @cython.locals(total=uint64_t, other=Source, slot=Py_ssize_t, base=Baselines, held=uint64_t)
    cdef uint64_t open(self, Source source, uint64_t own) noexcept
