"""Helpers of the tests of Witmem layers."""
