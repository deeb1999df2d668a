"""LDLM and the token-level methods on one text: trained, sampled, scored and timed with `ldlm` commands."""
