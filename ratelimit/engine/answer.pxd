# C types of answer.py; the compiler reads this beside it, plain Python does not.
cimport cython
from libc.stdint cimport int64_t, uint64_t
from ratelimit.engine.acknowledge cimport Acknowledge
from ratelimit.engine.exchange cimport Exchange
from ratelimit.engine.key cimport Key
from ratelimit.engine.networks cimport Networks
from ratelimit.engine.rule cimport Rule
from ratelimit.engine.table cimport Table
from ratelimit.spop.codec cimport Reader

cdef int _NOTIFY, _FIN, _FRAGMENTED, _TOO_BIG, _ALLOW, _THROTTLE, _BLOCK, _DENYLIST
cdef int _ANSWER, _ANNOUNCE, _FETCH, _FEW, _LONG, FETCHED
cdef int _WRITTEN, ADDRESS, HOT, TELL, LISTED_BITS, _MINUTE_SHIFT, _GENERATION_SHIFT
cdef uint64_t NONE, MIXED, ALLOW, DENY, LOOK, APART, _MAX_MINUTE, _MAX_GENERATION, _DENY_WAIT
cdef uint64_t _M32, _M64
cdef int _NULL, _INT32, _INT64, _UINT64, _IPV4, _IPV6, _STRING, _BINARY
cdef uint64_t SECOND, _MAPPED, _MAX_HITS


@cython.final
cdef class Engine:
    cdef readonly list rules, exchanges
    cdef readonly Table table
    cdef Reader reader
    cdef Acknowledge ack
    cdef readonly Networks lists, barred
    cdef object strike
    cdef readonly uint64_t now, checks, unknown, keyless
    cdef readonly dict notes
    cdef Py_ssize_t text_start, text_size
    cdef readonly uint64_t until, wait
    cdef readonly uint64_t shared, refresh, index
    cdef bint listing
    cdef uint64_t generation, minute_start, minute_id, minute, hi, lo
    cdef readonly uint64_t counted
    cdef bint sure, apart, exempt, told
    cdef uint64_t least
    cdef public bint urgent
    cdef int mode
    cdef Py_ssize_t walked
    cdef public bint fetching
    cdef public int64_t ahead
    cdef readonly Key key
    cdef int worst
    cdef Rule worst_rule
    cdef uint64_t worst_until, worst_wait

    cpdef relist(self)
    cpdef begin_minute(self)
    cpdef void at(self, uint64_t now) noexcept
    @cython.locals(pos=Py_ssize_t, frames=Py_ssize_t)
    cpdef Py_ssize_t answer(
        self, bytes data, Py_ssize_t start, Py_ssize_t max_frame_size
    ) except -1
    cpdef int reserve(self, bytes data, Py_ssize_t start, Py_ssize_t max_frame_size) except -1
    cdef Py_ssize_t fetch(
        self, bytes data, Py_ssize_t start, Py_ssize_t max_frame_size
    ) except -1
    @cython.locals(p='const unsigned char *', pos=Py_ssize_t, size=Py_ssize_t, length=Py_ssize_t)
    cdef Py_ssize_t walk(
        self, bytes data, Py_ssize_t start, Py_ssize_t max_frame_size, Py_ssize_t frames
    ) except -1
    cpdef bytes take(self)
    @cython.locals(
        reader=Reader, flags=uint64_t, ids=Py_ssize_t, ids_size=Py_ssize_t,
    )
    cdef int notify(self) except -1
    @cython.locals(ack=Acknowledge, until=int64_t)
    cdef int acknowledge(self, Py_ssize_t ids, Py_ssize_t ids_size) except -1
    @cython.locals(
        reader=Reader, data=bytes, name=Py_ssize_t, name_size=Py_ssize_t, kind=int,
        key=Py_ssize_t, key_size=Py_ssize_t, number=uint64_t, hits=uint64_t, usable=bint,
        start=Py_ssize_t, size=Py_ssize_t, rule=Rule, candidate=Rule, _=int,
    )
    cdef int message(self) except -1
    @cython.locals(data=bytes)
    cdef int take_key(
        self, int kind, Py_ssize_t key, Py_ssize_t key_size, uint64_t number
    ) except -1
    @cython.locals(verdict=int, left=uint64_t)
    cdef int judge(self, Rule rule, uint64_t hits) except -1
    @cython.locals(
        table=Table, slot=Py_ssize_t, text=bytes,
        counted=uint64_t, exchange=Exchange, place=uint64_t, listed=uint64_t, mark=uint64_t,
    )
    cpdef int check(self, Rule rule, uint64_t hits) except -1
    cpdef Py_ssize_t slot(self, Rule rule, bytes key) except -1
    @cython.locals(table=Table, exchange=Exchange)
    cpdef int hold(self, Rule rule, Py_ssize_t slot, uint64_t until) except -1
    cpdef Py_ssize_t known(self, Rule rule, bytes key) except -2
    @cython.locals(table=Table, exchange=Exchange, counted=uint64_t, place=uint64_t)
    cpdef uint64_t hits(self, Rule rule, Py_ssize_t slot) except? 7777777777777777777
    @cython.locals(table=Table, mark=uint64_t, found=uint64_t)
    cdef uint64_t listed(self, Rule rule, Py_ssize_t slot) noexcept
    @cython.locals(
        key=Key, hi=uint64_t, lo=uint64_t, last_hi=uint64_t, last_lo=uint64_t,
        listed=uint64_t, barred=uint64_t,
    )
    cdef uint64_t classify(self, Rule rule) noexcept
    @cython.locals(key=Key)
    cdef void mask(self, Rule rule) noexcept
    cdef Py_ssize_t locate(self, Rule rule) except -1
    @cython.locals(slot=Py_ssize_t, exchange=Exchange)
    cdef int announce(self, Rule rule, uint64_t hits) except -1
    @cython.locals(p='const unsigned char *', q='const unsigned char *', i=Py_ssize_t)
    cdef bint same(self, bytes data, Py_ssize_t start, bytes name, Py_ssize_t size) noexcept
    cdef int note(self, str problem, Py_ssize_t start, Py_ssize_t size) except -1
