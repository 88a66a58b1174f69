"""``python -m ratelimit`` and the command ``ratelimit``."""

import sys

from ratelimit.process.signals import hold


def main() -> None:
    """Run the command; before all that takes long to import, hold early signals back."""
    if sys.argv[1:2] in (["serve"], ["up"]):
        hold()
    from ratelimit.cli.main import main as command

    command(prog_name="ratelimit")


if __name__ == "__main__":
    main()
