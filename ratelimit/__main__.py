"""``python -m ratelimit`` is the command ``ratelimit``."""

from ratelimit.cli import main

main(prog_name="ratelimit")
