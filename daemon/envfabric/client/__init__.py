"""The consumers' side: reads index.json. Standard library only, and of the project only itself."""
