"""Views of the record: `tables` decides what is shown and in which words, the others draw or write it."""
