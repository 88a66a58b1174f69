"""Bytes of HAProxy's protocols: what SPOP and the peers protocol have in common; no I/O.

Both write numbers as the same variable-length integers (SPOE.txt, section 3.1; peers.txt,
"Encoding").
"""
