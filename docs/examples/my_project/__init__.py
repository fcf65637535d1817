"""The project of the reader of the documentation."""
