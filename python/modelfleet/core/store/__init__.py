"""The model store: layout, safe creation, manifest, lock, publishing."""
