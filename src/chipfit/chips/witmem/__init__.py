"""Witmem WTM2101: analog in-memory compute, with a digital unit beside it."""
