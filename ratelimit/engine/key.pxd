# C types of key.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport int64_t, uint64_t

cdef int ADDRESS, TEXT
cdef uint64_t M64, _V0, _V1, _V2, _V3, MAPPED, _NAT64


@cython.final
cdef class Key:
    cdef readonly uint64_t hi, lo
    cdef readonly int kind
    cdef uint64_t k0, k1, v0, v1, v2, v3
    cdef bytes written
    cdef unsigned char[::1] digits, parts

    cpdef rekey(self, bytes secret)
    @cython.locals(p='const unsigned char *', lo=uint64_t, i=int)
    cpdef void ipv4(self, bytes data, Py_ssize_t start) noexcept
    @cython.locals(p='const unsigned char *', hi=uint64_t, lo=uint64_t, i=int)
    cpdef void ipv6(self, bytes data, Py_ssize_t start) noexcept
    cdef void take(self, uint64_t hi, uint64_t lo) noexcept
    cpdef int text(self, bytes data, Py_ssize_t start, Py_ssize_t size) except -1
    @cython.locals(negative=bint, at=int)
    cpdef int number(self, uint64_t value) except -1
    @cython.locals(
        p='const unsigned char *', whole=Py_ssize_t, i=Py_ssize_t, j=int, word=uint64_t,
        byte=uint64_t,
    )
    cpdef void binary(self, bytes data, Py_ssize_t start, Py_ssize_t size) noexcept
    cdef void absorb(self, uint64_t word) noexcept
    @cython.locals(v0=uint64_t, v1=uint64_t, v2=uint64_t, v3=uint64_t, _=int)
    cdef void rounds(self, int count) noexcept
    @cython.locals(
        p='const unsigned char *', filled=int, gap=int, digits=int,
        group=int, pos=Py_ssize_t, group_start=Py_ssize_t, c=int, quad=int64_t, i=int,
        hi=uint64_t, lo=uint64_t,
    )
    cpdef bint address(self, bytes data, Py_ssize_t start, Py_ssize_t end) except -1
    @cython.locals(
        p='const unsigned char *', quad=int64_t, octet=int, digits=int, dots=int,
        pos=Py_ssize_t, c=int,
    )
    cdef int64_t dotted(self, bytes data, Py_ssize_t start, Py_ssize_t end) noexcept
