"""Networks of Ingenic operators, the vendor's recorded cases, and what the tests of the magik files share."""
