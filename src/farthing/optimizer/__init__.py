"""A model and a target in; the cheapest plan that is still right out, measured on the machine at hand.

    samples, texts  data to judge by, read and divided      recipes     what could be made of a model: the catalogue
    graphs          a graph, cleaned                        quantise    int8 files, made by ONNX Runtime
    weights         weights in few bits                     making      all of these files, when they are wanted
    agreement       how far answers have moved              judging     which recipes are right
    custom_metric   a metric of the user's own              trouble     in which layer numbers went wrong
    sensitivity     which layers int8 hurts                 race        who is measured again, and who has won
    timing          how fast one runs, alone on the machine racing      the race, carried out
    plan            the result on disk                      journal     what was found so far, to go on from
    search          all of it, in order                     joint       several models on one machine, and in
                                                            sharing     which ways there are to share it

Whoever serves reads `plan` alone.
"""

from farthing.optimizer.joint import Wanted, optimize_jointly
from farthing.optimizer.judging import Target
from farthing.optimizer.plan import Plan
from farthing.optimizer.search import optimize

__all__ = ["Plan", "Target", "Wanted", "optimize", "optimize_jointly"]
