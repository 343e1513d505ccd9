"""The loop: notices commits, compares what is wanted with what is served, and has the difference built."""
