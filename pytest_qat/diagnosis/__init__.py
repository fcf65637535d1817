"""Why a quantized model is bad, and what remedies it: explanations of what the checks found."""
