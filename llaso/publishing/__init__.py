"""Publishing a finished run, or the `evaluate` module, on the Hub."""
