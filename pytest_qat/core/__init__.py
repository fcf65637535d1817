"""The ground: torch's global state, forked children, files, tracebacks, batches, parsing. It knows no `QATCase`."""
