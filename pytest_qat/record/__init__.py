"""What was measured, as types: its schema, its metrics, the environment and the store."""
