"""Calibration of networks of Ingenic operators: clips, weight factors, and their float view."""
