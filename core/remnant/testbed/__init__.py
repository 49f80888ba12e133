"""A small trained model and tasks with known answers: what the demo, the quality tests and the benchmarks run on."""
