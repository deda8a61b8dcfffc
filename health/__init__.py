"""The vocabulary of accelerator health and the diagnosis. Pure: no I/O, no clock, no imports of other rooms."""
