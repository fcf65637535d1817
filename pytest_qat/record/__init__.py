"""The record of a session: its schema as types, the metrics in it, what names a run, the environment and the store."""
