"""Laws of quantize and dequantize, driven by Hypothesis."""
