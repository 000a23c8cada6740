"""The operations of Witmem programs, and what each of them means."""
