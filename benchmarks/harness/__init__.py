"""What the benchmarks share; a benchmark imports nothing else of this folder."""
