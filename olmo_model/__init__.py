"""OLMo 2: the architecture, its presets, initialisation, and conversion to and from Hugging Face's format."""
