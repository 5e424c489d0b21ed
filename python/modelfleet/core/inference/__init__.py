"""Proofs of inference, each run in a child process of the managed environment."""
