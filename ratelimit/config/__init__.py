"""The configuration: a TOML file, overridden by environment variables, as typed models.

``load()`` reads it. All mistakes are reported in one ``ConfigError``, one line per mistake,
``source: field: problem``. Lines do not repeat values that may be secret.
"""

from ratelimit.config.settings import Config, load

__all__ = ["Config", "load"]
