"""What runs on hosts and on the controller alike: standard library only, Python 3.8, relative imports."""
