"""The vendor's package name; everything comes from `chipfit.chips.ingenic`."""
