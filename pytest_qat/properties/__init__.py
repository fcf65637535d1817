"""Laws of quantization, and the Hypothesis strategies and the runner that test them."""
