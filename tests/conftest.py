"""Fixtures shared by every test."""

import contextlib

with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)  # tests run beside each other; more threads make them slower
