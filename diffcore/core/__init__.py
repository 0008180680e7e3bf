"""The ground: errors, shapes, randomness by key, writing that cannot be half done. No mathematics of diffusion."""
