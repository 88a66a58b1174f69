# C types of notify.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t
from ratelimit.engine.check cimport Engine
from ratelimit.engine.key cimport Key
from ratelimit.engine.query cimport Query
from ratelimit.engine.rule cimport Rule
from ratelimit.spop.codec cimport Typed
from ratelimit.wire.reader cimport Reader

cdef int FETCHED, _NOTIFY, _FIN, _FRAGMENTED, _TOO_BIG
cdef int _NULL, _INT32, _INT64, _UINT64, _IPV4, _IPV6, _STRING, _BINARY
cdef int CHECKED, UNKNOWN, KEYLESS, EMPTY
cdef uint64_t _MAX_HITS, UNTOLD


@cython.final
cdef class Message(Query):
    cdef int state
    cdef Py_ssize_t name, name_size, ids, ids_size
    cdef bint ends


@cython.final
cdef class NotifyParser:
    cdef Engine engine
    cdef Reader reader
    cdef Typed typed
    cdef list messages
    cdef bytes data
    cdef Py_ssize_t pos, max_frame_size, ids, ids_size
    cdef bint within
    cdef object error

    cdef void begin(self, bytes data, Py_ssize_t start, Py_ssize_t max_frame_size) noexcept
    @cython.locals(reader=Reader, message=Message, whole=int, count=int)
    cdef int read(self, list rules, Py_ssize_t frames) except -1
    @cython.locals(
        p='const unsigned char *', pos=Py_ssize_t, left=Py_ssize_t, length=Py_ssize_t,
        reader=Reader, flags=uint64_t,
    )
    cdef bint open(self) except -1
    @cython.locals(
        reader=Reader, typed=Typed, data=bytes, kind=int, key=Py_ssize_t, key_size=Py_ssize_t,
        number=uint64_t, hits=uint64_t, via=uint64_t, left=uint64_t, usable=bint, named=bint,
        start=Py_ssize_t, size=Py_ssize_t, rule=Rule, _=int,
    )
    cdef int message(self, Message message, list rules) except -1
    @cython.locals(key=Key, data=bytes)
    cdef int take(
        self, Message message, int kind, Py_ssize_t start, Py_ssize_t size, uint64_t number
    ) except -1


@cython.locals(p='const unsigned char *', q='const unsigned char *', i=Py_ssize_t)
cdef bint same(bytes data, Py_ssize_t start, bytes name, Py_ssize_t size) noexcept
