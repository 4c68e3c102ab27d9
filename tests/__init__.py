"""The tests mirror dsv3lab/; what they share lies here (`tolerances`, `typecheck`)."""
