"""The command line: reads arguments, shows results. Decides nothing that the rooms below don't."""
