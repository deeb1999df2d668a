"""From noise to text: solvers, generation, trained runs and exported models."""
