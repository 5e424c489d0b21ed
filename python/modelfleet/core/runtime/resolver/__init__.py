"""From a host's hardware to what is built and installed for it. Decides, does nothing.

``build`` has the build of llama-cpp-python that every run names; ``stack``, loaded only where it is asked for, has
the whole decision: backend, flags, package versions and their wheel indexes, Python. docs/runtime.md has its rules.
"""

from .build import Build

__all__ = ["Build"]
