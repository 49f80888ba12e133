"""Every name of vLLM that this plugin touches stands in this folder, by the part that needs it.

A new release of vLLM should need changes here and nowhere else. Apart from `platform`, nothing here is imported before
the user's flag is read, so a release that lacks a name breaks nobody who did not ask for us.
"""
