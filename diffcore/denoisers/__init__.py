"""Who predicts x_0 and eps: networks, exact rulers, and what is put around them."""
