"""``python -m ratelimit`` and the command ``ratelimit``."""

import sys

from ratelimit.process.hold_signals import hold


def main() -> None:
    """Run the command; block early signals before the long imports."""
    if sys.argv[1:2] in (["serve"], ["up"]):
        hold()
    from ratelimit.cli.main import main as command

    command(prog_name="ratelimit")


if __name__ == "__main__":
    main()
