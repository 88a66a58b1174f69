# C types of told.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from ratelimit.engine.table cimport Table

cdef int _WORDS, _IDENT, _END, _KEY, _SIZE_SHIFT
cdef uint64_t M32, _QUEUED


@cython.final
cdef class Told:
    cdef Table table
    cdef readonly uint64_t places, queued
    cdef uint64_t[::1] words
    cdef unsigned char[::1] octets
    cdef uint32_t[::1] queue
    cdef uint64_t head

    @cython.locals(p='const unsigned char *', i=Py_ssize_t, place=int64_t, first=Py_ssize_t)
    cdef int tell(
        self, uint64_t hi, uint64_t lo, uint64_t ident, uint64_t end,
        bytes data, Py_ssize_t start, Py_ssize_t size
    ) except -1
    @cython.locals(place=int64_t)
    cdef uint64_t end(self, uint64_t hi, uint64_t lo, uint64_t ident) noexcept
    @cython.locals(place=int64_t)
    cdef int forget(self, uint64_t hi, uint64_t lo, uint64_t ident) except -1
    @cython.locals(place=int64_t, first=Py_ssize_t, _=int)
    cdef int64_t find(self, uint64_t hi, uint64_t lo, uint64_t ident) noexcept
    @cython.locals(i=uint64_t, place=uint64_t)
    cpdef list take(self, uint64_t most)
    cpdef list held(self, uint64_t begin, uint64_t stop, uint64_t now)
    @cython.locals(first=Py_ssize_t, size=Py_ssize_t)
    cdef tuple told(self, uint64_t place)
