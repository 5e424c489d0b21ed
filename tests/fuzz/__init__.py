"""The fuzz target of the readers of model files, and the valid files that it starts from."""
