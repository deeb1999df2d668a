"""The paper: what is trained, and the objective it is trained by."""
