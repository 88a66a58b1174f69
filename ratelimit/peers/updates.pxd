# C types of updates.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport int64_t, uint64_t
from ratelimit.wire.reader cimport Reader

cdef int _UPDATE, _TIMED, _INTEGER, _STRING, _SERVER_KEY, _ENTRIES, _MAX_TEXT
cdef uint64_t _U32


@cython.final
cdef class Shared:
    cdef readonly uint64_t[::1] values
    cdef readonly list texts


@cython.final
cdef class UpdateReader:
    cdef readonly object definition
    cdef public object owner
    cdef readonly uint64_t id, number
    cdef readonly int64_t expiry
    cdef readonly bytes data
    cdef readonly Py_ssize_t end, key_start, key_size
    cdef readonly int key_type
    cdef readonly uint64_t[::1] values
    cdef Py_ssize_t _announced
    cdef list _texts
    cdef Reader _reader
    cdef int _count
    cdef int[::1] _places
    cdef uint64_t[::1] _masks

    @cython.locals(
        reader=Reader, p='const unsigned char *', pos=Py_ssize_t, i=int, at=int, value=uint64_t,
    )
    cpdef int read(self, int kind, bytes data, Py_ssize_t start, Py_ssize_t end) except -1
    cpdef int forget(self) except -1
    cpdef uint64_t value(self, int place) noexcept
    cpdef bytes key(self)
    cdef int _key(self, Reader reader) except -1
    @cython.locals(end=Py_ssize_t, number=uint64_t)
    cdef uint64_t _entry(self, Reader reader, uint64_t size) except? 7777777777777777777
