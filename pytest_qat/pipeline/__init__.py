"""One model through one recipe: what is checked first, the stages, and the run that computes each once."""
