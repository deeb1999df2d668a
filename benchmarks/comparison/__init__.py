"""LDLM and the token-level methods on one text: trained, drawn from, scored and timed by the product's commands."""
