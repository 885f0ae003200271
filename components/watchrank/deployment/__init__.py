"""Bringing a release into a Triton server: publish, load, smoke-test, take back."""
