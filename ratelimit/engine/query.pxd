# C types of query.py; plain Python does not read this file.
from libc.stdint cimport uint64_t
from ratelimit.engine.rule cimport Rule

cdef uint64_t UNTOLD


cdef class Query:
    cdef Rule rule
    cdef int kind
    cdef uint64_t hits, hi, lo, client_hi, client_lo, tag, via, left
    cdef bytes data
    cdef Py_ssize_t text, text_size, base
