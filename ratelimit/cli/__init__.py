"""The command line: ``ratelimit`` and its subcommands."""
