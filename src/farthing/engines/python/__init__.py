"""Python models: a user's class, run in processes of its own, tensors through shared memory.

`engine` is the server's side and `process` one supervised process of it; `worker` is what runs in that process,
with `native` and `triton` as the two ways to write a model. `messages` and `channel` are what the two sides say
to each other. A user's file is imported in the worker only, never in the server.
"""

from farthing.engines.python.engine import Python

__all__ = ["Python"]
