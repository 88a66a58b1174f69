"""What the limiter costs and how exact it is, measured: ``python -m benchmarks --help``."""
