"""The bridge between torch and a simulator or chip. Only `module` imports torch."""
