"""What a model needs, on which device: from a dry run, from its header, or from published figures."""
