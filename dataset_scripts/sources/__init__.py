"""One corpus a file: each module walks one public on-disk layout and yields items."""
