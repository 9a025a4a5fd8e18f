"""A model and a target in; the cheapest plan that is still right out, measured on the machine at hand.

    samples      data to judge by, read and divided      recipes    what could be made of a model
    quantise     int8 files, made by ONNX Runtime        agreement  how far answers have moved, and how sure that is
    sensitivity  which layers int8 hurts                 judging    which recipes are right
    timing       how fast one runs, alone on the machine race       who is measured again, and who has won
    plan         the result on disk                      search     all of it, in order

Whoever serves reads `plan` alone.
"""

from farthing.optimizer.judging import Target
from farthing.optimizer.plan import Plan
from farthing.optimizer.search import optimize

__all__ = ["Plan", "Target", "optimize"]
