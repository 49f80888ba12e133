"""The testbed is numpy and torch all through."""

import pytest

for module in ("torch", "transformers"):
    pytest.importorskip(module, reason="needs the extra hf")
