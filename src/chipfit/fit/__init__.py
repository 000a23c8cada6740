"""The way from a float network to one that survives its chip: calibrate, train in stages, evaluate."""
