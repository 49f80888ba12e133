"""Where vLLM's front end keeps statistics of requests."""

from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.loggers import StatLoggerBase, StatLoggerManager
from vllm.v1.metrics.stats import IterationStats

__all__ = ["IterationStats", "OutputProcessor", "StatLoggerBase", "StatLoggerManager"]
