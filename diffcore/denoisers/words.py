"""The words for what a network can state; `prediction.PARAMETERIZATIONS` reads each of them."""

WORDS = ("x0", "eps", "v", "score", "x0_eps")
