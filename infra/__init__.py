"""Ground floor: settings, object store, model registry, git/DVC wrappers and the local stack."""
