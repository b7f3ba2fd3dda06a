"""Everything on one machine: embedded stores and a supervisor. Nothing of the product imports it."""
