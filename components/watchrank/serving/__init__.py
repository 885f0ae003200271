"""Asking a Triton server."""
