"""Hooks of the Hugging Face plugin. It adds no policies of its own: the core's serve it as they are."""
