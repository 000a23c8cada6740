"""A plain int8 NPU that nobody makes: the smallest whole chip, and the text of docs/add-a-chip.md.

Copy this folder under another name, change what your chip does otherwise, and every verb of chipfit knows it.
"""
