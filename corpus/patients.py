"""Patients as keyed hashes: the same person has one key, and the key says nothing about the person."""

import hmac
import re
import unicodedata


def patient_key(salt: bytes, source: str, identifier: str) -> str:
    """Keyed hash (HMAC-SHA256, 20 hex) of a patient's identifier within a source."""
    # An identifier may come from a file name, whose bytes need not be UTF-8.
    return hmac.digest(salt, f"{source}/{normal(identifier)}".encode(errors="surrogatepass"), "sha256").hex()[:20]


def normal(identifier: str) -> str:
    """An identifier as it is compared: however its letters are composed, and whatever blanks are around it or come together."""
    return " ".join(unicodedata.normalize("NFC", identifier).split())


def is_key(text: str) -> bool:
    """True of what `patient_key` may have given."""
    return re.fullmatch("[0-9a-f]{20}", text) is not None
