"""Publish a stage's checkpoint as a model version in the registry."""

from infra.registry import ModelRegistry, ModelVersion
from ray_jobs.checkpoints import fetch_folder


def publish_version(checkpoint: dict, lineage: dict) -> ModelVersion:
    """The immutable version of a checkpoint; the same weights give the same version."""
    return ModelRegistry().publish(fetch_folder(checkpoint), lineage)
