"""What is wanted: the git repository, the spec folders of a commit, and what one spec asks for.

Reads git and bytes; knows nothing of ROOT, of uv's processes or of what is published.
"""
