"""Patients as keyed hashes: the same person has one key, and the key says nothing about the person."""

import hmac


def patient_key(salt: bytes, source: str, identifier: str) -> str:
    """Keyed hash (HMAC-SHA256, 20 hex) of a patient's identifier within a source."""
    return hmac.digest(salt, f"{source}/{identifier}".encode(), "sha256").hex()[:20]
