"""What a run needs around its work: devices, launches, messages, and watching."""
