# C types of networks.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport uint64_t

cdef uint64_t MIXED


@cython.final
cdef class Networks:
    cdef const uint64_t[::1] starts, values
    cdef Py_ssize_t size
    cdef readonly bint empty

    cpdef int load(self, bytes starts, bytes values) except -1
    @cython.locals(low=Py_ssize_t, high=Py_ssize_t, middle=Py_ssize_t, start=uint64_t)
    cdef Py_ssize_t place(self, uint64_t hi, uint64_t lo) noexcept
    cpdef uint64_t value(self, uint64_t hi, uint64_t lo) noexcept
    @cython.locals(first=Py_ssize_t, start=uint64_t)
    cpdef uint64_t uniform(
        self, uint64_t hi, uint64_t lo, uint64_t last_hi, uint64_t last_lo
    ) noexcept
