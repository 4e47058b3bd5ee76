"""Patients as keyed hashes: the same person has one key, and the key says nothing about the person."""

import hmac


def patient_key(salt: bytes, source: str, identifier: str) -> str:
    """Keyed hash (HMAC-SHA256, 20 hex) of a patient's identifier within a source."""
    # An identifier may come from a file name, whose bytes need not be UTF-8.
    return hmac.digest(salt, f"{source}/{identifier}".encode(errors="surrogatepass"), "sha256").hex()[:20]
