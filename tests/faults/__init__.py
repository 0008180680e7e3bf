"""Tools that break things on purpose: `plant` breaks the source and sees which test notices, `campaign` breaks runs of it."""
