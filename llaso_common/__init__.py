"""What the other packages share. It imports none of them."""

__version__ = "0.1.0"
