"""modelfleet: from a bare operating system to proven local inference.

This file imports nothing: it ships to hosts with every module.
"""

__version__ = "0.1.0"
