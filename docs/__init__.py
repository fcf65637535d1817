"""The documentation and the scripts that make parts of it: `generate`, `make_picture` and what they share."""
