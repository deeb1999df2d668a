"""The paper's networks, and the objective they are trained with."""
