"""Sources of model files, and the transfer into the store's temporary folder."""
