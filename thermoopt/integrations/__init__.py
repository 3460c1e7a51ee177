"""Callbacks for common training frameworks; a framework is imported only when its callback is."""
