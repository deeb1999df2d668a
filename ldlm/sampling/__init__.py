"""From noise to text: solvers, generators of texts, trained runs and exported models."""
