"""C99 from an integer program: self-contained, without an allocator, equal to the program in every code."""
