# C types of baselines.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from ratelimit.engine.table cimport Table

cdef int FETCHED, _WAYS, _ENTRY_WORDS, _IDENT, _OPEN
cdef uint64_t _SET_WORDS, M32


@cython.final
cdef class Baselines:
    cdef Table table
    cdef object memory
    cdef uint64_t[::1] words
    cdef uint32_t[::1] halves, losses
    cdef readonly uint64_t sets
    cdef readonly uint64_t entries, lost
    cdef public uint64_t expire
    cdef readonly uint64_t stamp, since_loss
    cdef readonly bint known
    cdef Py_ssize_t base
    cdef uint64_t tag
    cdef int way
    cdef uint64_t[::1] aims
    cdef int expected
    cdef uint64_t touched

    @cython.locals(
        tag=uint64_t, number=uint64_t, base=Py_ssize_t, way=int, slot=Py_ssize_t, i=int,
    )
    cpdef Py_ssize_t visit(self, uint64_t hi, uint64_t lo, uint64_t ident, uint64_t now) except -1
    @cython.locals(tag=uint64_t, base=Py_ssize_t, way=int, slot=Py_ssize_t)
    cpdef Py_ssize_t peek(self, uint64_t hi, uint64_t lo, uint64_t ident) noexcept
    @cython.locals(mixed=uint64_t)
    cdef void aim(self, uint64_t hi, uint64_t lo, uint64_t ident) noexcept
    cdef void expect(self, uint64_t hi, uint64_t lo, uint64_t ident) noexcept
    @cython.locals(touched=uint64_t, i=int, base=Py_ssize_t, tag=uint64_t, way=int)
    cdef void fetch(self) noexcept
    @cython.locals(base=Py_ssize_t, way=int, stamp=uint64_t, slot=Py_ssize_t, last=uint64_t)
    cdef int vacate(self, uint64_t number, uint64_t now) noexcept
    @cython.locals(stalest=int, longest=int64_t, idle=int64_t, way=int, word=uint64_t)
    cdef int stalest(self, Py_ssize_t base, uint64_t now, bint closed) noexcept
