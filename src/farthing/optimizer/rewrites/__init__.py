"""Parts of a graph written another way that computes the same: what exporters spell out, and engines do not recognise.

Each rewrite is the same arithmetic in exact numbers:

    one-hot(ids) x W         ->  rows of W, looked up; ids outside of W give zeros, as their one-hot rows are zeros
    f(rows of T)             ->  rows of f(T), for elementwise f: computed once for the table, not for each lookup
    all of x, by a Slice     ->  x
    squeeze(Conv) + channels ->  squeeze(Conv with a bias)
    a turn of [n, l, c, 1]   ->  the turn of [n, l, 1, c] to channels first, which engines leave out where they keep
                                 channels last
    pool(squeeze(x))         ->  squeeze(pool(x)), for pools over all of a channel
    tanh-GELU, any spelling  ->  the spelling both engines fuse: 0.5 x (1 + tanh(0.79788 (x + 0.044715 x^3)))
                                 (Hendrycks and Gimpel, arXiv 1606.08415, section 2), before a squeeze, not behind it

What came of them is judged and timed like any other recipe.
"""

from typing import Any

from farthing.optimizer.rewrites.convolutions import into_bias, pool_before_squeeze, turn_channels, without_full_slice
from farthing.optimizer.rewrites.gelu import respell_gelu
from farthing.optimizer.rewrites.lookups import into_table, one_hot_to_lookup
from farthing.optimizer.rewrites.wiring import without_identities


def rewrite(model: Any) -> tuple[str, ...]:
    """Rewrites the ONNX model in place; says what was done. Nodes that nobody needs any more are left for others.

    Shapes that inference has told are used. A model with loops or branches stays as it is: nobody sees here what their
    bodies read from outside.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute):
        return ()
    done = []
    while one_hot_to_lookup(model):
        done.append("a product of one-hot rows became a lookup")
    while moved := into_table(model):
        done.append(f"{moved} elementwise nodes moved into a table")
    slices = 0
    while without_full_slice(model):
        slices += 1
    if slices:
        done.append("slices of everything left out")
    without_identities(model.graph)
    while into_bias(model):
        done.append("what is added to a convolution's channels became its bias")
    while turn_channels(model):
        done.append("channels turned to the front as engines know it")
    without_identities(model.graph)
    gelus = 0
    while respell_gelu(model):
        gelus += 1
    while pool_before_squeeze(model):
        done.append("a pool over whole channels moved before a squeeze")
    if gelus:
        done.append(f"GELU respelled in {gelus} place" + ("s" if gelus > 1 else ""))
    return tuple(done)
