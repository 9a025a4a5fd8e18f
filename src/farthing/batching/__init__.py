"""Which requests run together, and when: queue, pure batcher, measured row times, loop."""
