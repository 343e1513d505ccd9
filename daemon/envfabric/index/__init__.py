"""The index: what consumers read. Writes index.json and envs/; builds and decides nothing."""
