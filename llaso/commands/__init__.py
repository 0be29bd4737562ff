"""One file for each group of `llaso` commands: it parses arguments, calls the code that does the work, and prints."""
