"""How what is wanted becomes what exists: resolving, building, validating. The only room that runs uv.

Knows nothing of revisions, of the index or of the loop.
"""
