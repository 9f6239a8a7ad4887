"""What takes minutes or needs more of the machine: `make more`."""
