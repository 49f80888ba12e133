"""A local web page to look into memories: records and their versions, episodes, changes, the quarantine.

Needs the extra `ui`. `remnant memory ui` starts it; `serve` does so from a program, where the page
also shows what the program's model calls cost.
"""

from typing import TYPE_CHECKING

from remnant.lazy import attach

if TYPE_CHECKING:
    from remnant.memory.ui.server import Address, bind, make_app, serve

__all__ = ["Address", "bind", "make_app", "serve"]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, "remnant.memory.ui.server"), extra="ui")
