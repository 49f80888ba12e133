"""Hooks of the LlamaIndex plugin. It adds no strategies of its own: the core's serve it as they are."""
