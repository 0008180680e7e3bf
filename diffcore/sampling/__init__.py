"""From noise to samples: solvers, samplers, and what makes a network call cheaper."""
