# C types of sharing.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from ratelimit.wire.writer cimport Writer
from ratelimit.engine.retry_after cimport RetryAfter
from ratelimit.engine.rule cimport Rule
from ratelimit.engine.table cimport Table

cdef uint64_t RING
cdef int WEIGHT_BITS, HOT, EPOCH, MISSED, ANSWER_BYTES, NOTICE_BYTES, RECORD_BYTES, FIRST_COUNTER
cdef uint64_t _AGES, HALF, _INTERVAL, _NEAR, _MAX_OTHERS, _MAX_UNSENT, _MILLISECOND, M32
cdef uint64_t _KIND, _IS_NEAR, _SMALL, _ROUNDS, _MAX_REFRESH
cdef int TELL, TELL_NEAR, TOLD, TOLD_NEAR
cdef int _TICK, _LAST, _HI, _LO, _IDENT
cdef int _TELL, _MAX_RECORDS, _WORDS, _HALVES, _REMOTE, _SUM, _UNSENT, _ASKED, _RESERVED
cdef int _DUE, _QUEUED
cdef uint32_t _MAX_RESERVED, _LOOKED_AT, _LEAST


@cython.final
cdef class Exchange:
    cdef Table table
    cdef RetryAfter waits
    cdef readonly Rule rule
    cdef readonly uint32_t capacity, size, flown, refresh
    cdef uint32_t used, left, next, head, queued, most
    cdef uint64_t[::1] words
    cdef uint32_t[::1] halves, places, queue, flying
    cdef Writer writer, notices
    cdef readonly uint64_t overflow
    cdef public uint64_t interval
    cdef readonly uint64_t due
    cdef uint64_t round

    @cython.locals(
        table=Table, rule=Rule, place=uint32_t, first=Py_ssize_t, missed=uint32_t, i=int,
    )
    cpdef void heat(self, Py_ssize_t slot, uint32_t told) noexcept
    @cython.locals(
        n=Py_ssize_t, start=Py_ssize_t, slot=Py_ssize_t, place=uint32_t,
        hi=uint64_t, lo=uint64_t, kind=uint64_t, ident=uint64_t,
    )
    cpdef int warm(self, bytes notices, uint64_t now) except -1
    cpdef bytes notice(self)
    @cython.locals(
        rule=Rule, mine=Py_ssize_t, left=uint64_t, last=Py_ssize_t, own=Py_ssize_t,
        recent=uint64_t, unsent=uint64_t, period=uint64_t, until=uint64_t,
        near=uint64_t, horizon=uint64_t, wait=uint64_t,
    )
    cdef bint press(self, Py_ssize_t slot, uint32_t place, uint64_t counted) noexcept
    @cython.locals(at=uint64_t, millisecond=uint32_t, first=Py_ssize_t, planned=uint32_t)
    cdef bint plan(self, uint32_t place, uint64_t wait) noexcept
    @cython.locals(end=uint64_t)
    cdef void enqueue(self, uint32_t place) noexcept
    @cython.locals(place=uint32_t)
    cdef uint32_t dequeue(self) noexcept
    @cython.locals(place=uint32_t, queued=bint, reserved=uint64_t)
    cdef void reserve(self, Py_ssize_t slot, uint64_t hits) noexcept
    @cython.locals(
        table=Table, rule=Rule, slot=Py_ssize_t, first=Py_ssize_t, here=uint64_t, oldest=uint64_t,
        total=uint64_t, unsent=uint64_t,
    )
    cdef uint64_t remote(self, uint32_t place, uint64_t hits) noexcept
    cdef uint64_t retry_after(self, Py_ssize_t slot, uint32_t place) noexcept
    cdef uint64_t exact(self, Py_ssize_t slot, uint32_t place) noexcept
    @cython.locals(
        rule=Rule, first=Py_ssize_t, last=uint64_t, at=uint64_t, steps=uint64_t, _=int,
    )
    cdef void advance(self, uint32_t place) noexcept
    @cython.locals(since=uint64_t)
    cpdef uint64_t wait(self, uint64_t now) noexcept
    cpdef bytes pack(self, uint64_t now)
    @cython.locals(looked=uint32_t, queued=uint32_t, place=uint32_t)
    cdef void pack_due(self, uint64_t now) noexcept
    @cython.locals(
        rule=Rule, milliseconds=uint64_t, age=uint64_t, looked=uint32_t, place=uint32_t,
        first=Py_ssize_t, quiet=bint, most=uint32_t,
    )
    cdef void pack_round(self, uint64_t now) noexcept
    @cython.locals(table=Table, slot=Py_ssize_t, first=Py_ssize_t)
    cdef void send(self, uint32_t place, uint64_t now) noexcept
    @cython.locals(milliseconds=uint64_t, wait=uint64_t, at=uint64_t)
    cdef bint later(self, Py_ssize_t first, uint64_t now) noexcept
    @cython.locals(
        table=Table, rule=Rule, writer=Writer, at=uint64_t, own=uint32_t, delta=uint32_t,
        sent=uint32_t, _=int,
    )
    cdef void record(self, uint32_t place, Py_ssize_t slot) noexcept
    @cython.locals(told=uint32_t, kind=uint64_t)
    cdef void tell(self, uint32_t place, Py_ssize_t slot) noexcept
    @cython.locals(
        rule=Rule, table=Table, count=uint32_t, n=uint32_t, place=uint32_t, slot=Py_ssize_t,
        first=Py_ssize_t, start=Py_ssize_t, epoch=uint64_t, tick=uint64_t, i=uint64_t, at=uint64_t, total=uint64_t, sent=uint64_t,
        others=uint64_t, ahead=uint64_t, counted=uint64_t,
    )
    cpdef int learn(self, bytes answers, uint32_t begin=*) except -1
    @cython.locals(first=Py_ssize_t, i=int)
    cdef void settle(self, uint32_t place) noexcept
    @cython.locals(table=Table, first=Py_ssize_t)
    cdef bint owns(self, uint32_t place, Py_ssize_t slot) noexcept
    @cython.locals(table=Table, place=uint32_t, slot=Py_ssize_t)
    cdef void drop(self, uint32_t index) noexcept
    @cython.locals(p='const unsigned char *', value=uint64_t, i=int)
    cdef uint64_t number(self, bytes data, Py_ssize_t start, int size) noexcept
