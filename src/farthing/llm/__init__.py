"""Text generation: a decoder's weights, its scheduler, caches, sampler and loop. No sockets, no wire formats."""
