"""Hooks of the LangChain plugin. It adds no strategies of its own: the core's serve it as they are."""
