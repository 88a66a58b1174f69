# C types of table.py; plain Python does not read this file.
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from ratelimit.engine.rule cimport Rule

cdef int WAYS, SET_WORDS, SLOT_WORDS, FIRST_COUNTER, STAMP_BITS, WEIGHT_BITS
cdef int EPOCH, FETCHED, HOT, SUM, UNTIL
cdef uint64_t RING, SECOND, BY_HAND
cdef uint64_t _MAX_COUNTER, HALF, _SPREAD, M64, M32


@cython.final
cdef class Table:
    cdef object memory
    cdef uint64_t[::1] words
    cdef uint32_t[::1] halves
    cdef readonly uint64_t sets
    cdef uint64_t m0, m1, m2, m3, m4, m5
    cdef readonly uint64_t now, stamp
    cdef Py_ssize_t base
    cdef uint64_t tag
    cdef int way
    cdef uint64_t[::1] aims
    cdef int expected
    cdef uint64_t touched
    cdef readonly uint64_t entries, evictions, idle
    cdef readonly dict orphans

    cpdef void at(self, uint64_t now) noexcept
    cpdef Py_ssize_t find(self, uint64_t hi, uint64_t lo, uint64_t ident) except -1
    @cython.locals(slot=Py_ssize_t, i=int, kept=uint64_t)
    cdef Py_ssize_t visit(
        self, uint64_t hi, uint64_t lo, uint64_t ident, Py_ssize_t base, uint64_t tag
    ) except -1
    @cython.locals(mixed=uint64_t)
    cdef void aim(self, uint64_t hi, uint64_t lo, uint64_t ident) noexcept
    @cython.locals(mixed=uint64_t)
    cdef uint64_t mix(self, uint64_t hi, uint64_t lo, uint64_t ident) noexcept
    cdef void expect(self, Py_ssize_t base, uint64_t tag) noexcept
    @cython.locals(
        touched=uint64_t, i=int, base=Py_ssize_t, tag=uint64_t, way=int, slot=Py_ssize_t,
    )
    cdef void fetch(self) noexcept
    cpdef Py_ssize_t peek(self, uint64_t hi, uint64_t lo, uint64_t ident) noexcept
    @cython.locals(way=int, slot=Py_ssize_t)
    cdef Py_ssize_t search(
        self, uint64_t hi, uint64_t lo, uint64_t ident, Py_ssize_t base, uint64_t tag
    ) noexcept
    @cython.locals(way=int, slot=Py_ssize_t, key=tuple)
    cdef int vacate(self, Py_ssize_t base) except -1
    @cython.locals(stalest=int, longest=int64_t, idle=int64_t, way=int, word=uint64_t)
    cdef int stalest(self, Py_ssize_t base, bint unblocked) noexcept
    @cython.locals(
        first=Py_ssize_t, counter=uint64_t, total=uint64_t,
        oldest=uint64_t,
    )
    cpdef uint64_t count(self, Py_ssize_t slot, Rule rule, uint64_t hits) noexcept
    @cython.locals(at=uint64_t)
    cdef void add(self, Py_ssize_t slot, Rule rule, uint64_t hits, uint64_t parts) noexcept
    @cython.locals(
        first=Py_ssize_t, last=uint64_t, at=uint64_t, total=uint64_t,
        i=int, _=int,
    )
    cdef void advance(self, Py_ssize_t slot, Rule rule) noexcept
    @cython.locals(first=Py_ssize_t, i=int)
    cdef void settle(self, Py_ssize_t slot, Rule rule) noexcept
    cpdef uint64_t until(self, Py_ssize_t slot) noexcept
    cdef int by_hand(self, Py_ssize_t slot) noexcept
    @cython.locals(mark=uint64_t)
    cpdef void block(self, Py_ssize_t slot, uint64_t until, bint by_hand) noexcept
    cpdef uint64_t mark(self, Py_ssize_t slot) noexcept
    cpdef void set_mark(self, Py_ssize_t slot, uint64_t mark) noexcept
    @cython.locals(number=uint64_t, way=int, slot=Py_ssize_t, i=int)
    cpdef int forget(self, uint64_t begin, uint64_t stop) except -1
