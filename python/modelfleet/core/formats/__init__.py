"""Bounded readers of model files' headers, which also judge whether a file may be published or loaded."""
