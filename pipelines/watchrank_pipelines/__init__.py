"""Kubeflow pipelines made of `watchrank_components`."""
