"""Widgets of the algorithms' dialogs; imported only where there is a window."""
