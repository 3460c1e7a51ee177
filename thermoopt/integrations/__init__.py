"""Callbacks for the stacks people train with; nothing of them is imported before it is chosen."""
