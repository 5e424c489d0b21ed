"""Pure parsers of recorded text, and the probe that feeds them."""
