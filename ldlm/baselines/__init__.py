"""Rival methods on one backbone: MDLM, ReMDM, Duo, Ψ-samplers, CANDI and FLM, a file for each."""
