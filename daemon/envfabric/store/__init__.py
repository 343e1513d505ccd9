"""What exists: ROOT on the NAS with its closures, generations and writer's lock.

Knows nothing of git, of uv's processes or of what is wanted.
"""
