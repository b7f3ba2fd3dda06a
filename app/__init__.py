"""The shared core: what is due, what ran, and how the two are kept. Knows neither HTTP nor processes."""
