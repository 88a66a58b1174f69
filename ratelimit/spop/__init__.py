"""The Stream Processing Offload Protocol as HAProxy speaks it (SPOE.txt, section 3)."""
