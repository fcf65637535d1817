"""Views of the record: pure functions from its dicts to text."""
