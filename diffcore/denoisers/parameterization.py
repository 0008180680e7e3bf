"""What a network can state of (x_0, eps). Apart from `prediction.PARAMETERIZATIONS`, for a card is read without torch."""

NAMES = ("x0", "eps", "v", "score", "x0_eps", "flow", "edm")
