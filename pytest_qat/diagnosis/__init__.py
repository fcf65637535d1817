"""Why a quantized model is bad, in the user's terms."""
