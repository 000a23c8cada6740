"""Files for the WTM2101's simulator: the cells of the array, input frames, and the codes that must come out.

Source: spec/wtm2101-silicon.md, sections 1 and 5.
"""
