"""Reading training files that the vendor's own kit wrote, of 2020 to 2023, which follow older and looser conventions.

Source: spec/ingenic.md, sections 5 and 8.
"""
