"""The operations of Ingenic programs, and what each of them means."""
