"""The managed Python environment: what it must hold, how it is built, what state it is in."""
