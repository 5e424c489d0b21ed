"""``python -m modelfleet.cli``: how the launcher starts the command line."""

from . import main

main()
