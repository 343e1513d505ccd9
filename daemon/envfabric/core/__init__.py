"""Words that every room shares: ids, reasons, errors. Imports nothing of the project."""
