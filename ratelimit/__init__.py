"""The global rate limiter for HAProxy."""

__version__ = "0.1.0"
